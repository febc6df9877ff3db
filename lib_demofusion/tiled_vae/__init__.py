"""Runs the decoder or encoder of an autoencoder tile by tile. The result is the same as without tiles."""
