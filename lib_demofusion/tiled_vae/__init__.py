"""Runs an autoencoder tile by tile, with the same result as in one piece."""
