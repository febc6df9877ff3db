"""The user interface: the panel, its live line, the presets and the axes of the X/Y/Z plot."""
