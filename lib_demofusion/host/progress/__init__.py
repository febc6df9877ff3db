"""The webui's progress bar, and what this machine has taken so far."""
