"""Compares methods for larger images with true renderings of the same scenes: `python -m bench.quality`."""
