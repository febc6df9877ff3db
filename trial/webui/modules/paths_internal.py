"""Stand-in: the webui's folders. `launch.prepare` sets `data_path`, into which all files are written."""

from pathlib import Path

data_path = str(Path.cwd())
extensions_dir = str(Path.cwd() / "extensions")
