"""Downloads the Debian packages with the images of the collages: python -m trial.collage.fetch."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from trial.collage.content import default_folder, listed


def fetch(package: str, folder: Path) -> None:
    """Downloads a package with apt-get, and unpacks it into a subfolder that has the name of the package.

    Does nothing if the subfolder exists. Does not install the package.
    """
    target = folder / package
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["apt-get", "download", package], cwd=folder, check=False).returncode != 0:
        raise SystemExit(
            f"{package} could not be downloaded. The lines above give the reason. If your package lists are old, run"
            " `apt-get update` first."
        )
    archive = next(folder.glob(f"{package}_*.deb"))
    partial = folder / f"{package}.partial"
    subprocess.run(["dpkg", "-x", str(archive), str(partial)], check=True)
    partial.replace(target)
    archive.unlink()


def main() -> None:
    """Runs the command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--to", type=Path, default=default_folder(), help="folder for the packages")
    args = options.parse_args()
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise SystemExit("This command needs apt-get and dpkg. Run it on Debian or Ubuntu.")
    for package in listed()["packages"]:
        fetch(package, args.to)


if __name__ == "__main__":
    main()
