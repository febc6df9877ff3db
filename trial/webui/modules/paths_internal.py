"""Stand-in: the folder for all written files. It is set before anything else is imported."""

from pathlib import Path

data_path = str(Path.cwd())
extensions_dir = str(Path.cwd() / "extensions")
