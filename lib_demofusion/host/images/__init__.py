"""Decodes, upscales, encodes and saves images, and resizes masks."""
