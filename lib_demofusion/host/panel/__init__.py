"""The user interface: the panel, its status line, its presets and the axes of the X/Y/Z plot."""
