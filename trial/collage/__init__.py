"""Scenes of a cut-out on a photographed ground, rendered as true images of any size with real texture."""
