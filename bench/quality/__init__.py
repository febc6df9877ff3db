"""Compares ways to a larger image with true renderings of the same scenes: `python -m bench.quality`."""
