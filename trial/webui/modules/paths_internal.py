"""Stand-in: the folder that everything is written below; set before anything else is imported."""

from pathlib import Path

data_path = str(Path.cwd())
extensions_dir = str(Path.cwd() / "extensions")
