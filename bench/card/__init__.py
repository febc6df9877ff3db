"""Measures DemoFusion on a graphics card in a few minutes."""
