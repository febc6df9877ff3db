"""Measures ways to a larger picture against true renderings of the same scenes: `python -m bench.quality`."""
