"""Renders collages at any size and detects what an image shows. A collage is a cut-out subject on a background."""
