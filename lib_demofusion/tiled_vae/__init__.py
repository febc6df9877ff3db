"""Runs the decoder or encoder of an autoencoder tile by tile.

Except for rounding, the result is the same as without tiles. In this folder, a tile is a rectangle of a feature map,
not a view.
"""
