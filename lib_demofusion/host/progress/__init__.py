"""The webui's progress bar, and the measured speed of this machine."""
