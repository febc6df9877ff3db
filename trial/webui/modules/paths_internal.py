"""Stand-in: the webui's folders. `launch.prepare` sets `data_path`. The stand-in writes all files into this folder."""

from pathlib import Path

data_path = str(Path.cwd())
extensions_dir = str(Path.cwd() / "extensions")
