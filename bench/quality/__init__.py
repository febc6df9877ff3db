"""Measures methods for larger images, and compares their images with true renderings: `python -m bench.quality`."""
