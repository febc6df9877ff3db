"""Scenes of a cut-out on a photographed ground: true pictures of any size, with real texture."""
