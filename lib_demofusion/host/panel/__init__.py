"""The user interface: the panel with its summary line and presets, and the axes that are added to the X/Y/Z plot."""
