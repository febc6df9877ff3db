"""Renders collages, scenes of a cut-out subject on a photographed or flat ground, at any size."""
