"""What a run costs, and how far it has come."""
