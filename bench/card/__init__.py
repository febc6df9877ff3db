"""Measures the speed and memory of DemoFusion on a graphics card in a few minutes."""
