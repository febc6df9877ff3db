"""An autoencoder run part by part, with the same result as at once."""
