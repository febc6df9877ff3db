"""Controls the webui's progress bar, and measures the speed of this machine."""
