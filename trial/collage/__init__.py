"""Renders collages at any size, and detects the subjects and the background of an image.

A collage is an image of a cut-out subject on a background.
"""
