"""Other features and extensions: what works beside the stages, and what is refused by name."""
