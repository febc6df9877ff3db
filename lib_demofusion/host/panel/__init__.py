"""The user interface: the panel, its summary line, its presets and the axes of the X/Y/Z plot."""
