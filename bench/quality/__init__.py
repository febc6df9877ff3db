"""Measures methods for larger images, and compares the results with correct images: `python -m bench.quality`."""
