"""Makes other features and extensions work with the stages, or refuses them with a reason."""
