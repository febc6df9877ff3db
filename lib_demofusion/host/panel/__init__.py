"""What people see and set: the panel, its line, presets and the axes of the X/Y/Z plot."""
