"""Tries DemoFusion Hires without a GPU, a large checkpoint or a webui: `python try_demofusion.py`.

You need only Python 3.10 to 3.13. The first start creates a virtual environment in `.venv` and installs packages there.
Then a page opens in your browser. The page is a miniature of the webui with a small model and the extension's real
panel. With `--out DIR`, the program saves generated images in a folder and opens no page. With `--webui DIR`, the
program installs the extension and the model into an existing webui (in Forge's family, only the extension), and starts
this webui.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trial import bootstrap

ROOT = Path(__file__).resolve().parent
CHECKPOINT = ROOT / "trial" / "checkpoint" / "demofusion-collage.safetensors"
INSIDE = "DEMOFUSION_TRY_INSIDE"
"""Name of an environment variable. It is set for the process that runs inside the virtual environment."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line. Ends the process with a message if an argument is not valid."""
    parser = argparse.ArgumentParser(prog="try_demofusion.py", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=7860, help="port of the page; if it is in use, the next free port")
    parser.add_argument("--no-browser", action="store_true", help="print the address of the page, but do not open it")
    parser.add_argument("--data", type=Path, default=ROOT / "try-output", help="folder in which the page saves images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="save images and a comparison in DIR, without a page")
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="file of another model with the layout of the bundled model"
    )
    pictures = parser.add_argument_group("with --out")
    pictures.add_argument(
        "--scale", type=int, choices=(2, 3, 4), default=4, help="scale of the final image (default: 4)"
    )
    pictures.add_argument("--prompt", default="a daffodil on moss")
    pictures.add_argument("--seed", type=int, default=5)
    pictures.add_argument("--steps", type=int, default=20)
    pictures.add_argument("--sampler", default="DPM++ 2M")
    webui = parser.add_argument_group("with an existing webui")
    webui.add_argument("--webui", type=Path, metavar="DIR", help="install the extension into this webui, then start it")
    webui.add_argument("--install-only", action="store_true", help="do not start the webui")
    options, rest = parser.parse_known_args(arguments)
    options.rest = [argument for argument in rest if argument != "--"]
    if options.rest and not options.webui:
        parser.error(f"unknown arguments: {' '.join(options.rest)}")
    return options


def work(options: argparse.Namespace) -> int:
    """Runs the requested action inside the virtual environment and returns the exit status."""
    if not sys.stderr.isatty():
        # progress bars would make a log unreadable; set here, because tqdm reads this variable when it is imported
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not options.checkpoint.is_file():
        print(f"--checkpoint: {options.checkpoint} does not exist. Use the path of an existing file.", file=sys.stderr)
        return 1
    if options.webui:
        from trial import install_webui

        return install_webui.main(options)
    sys.path.insert(0, str(ROOT / "trial" / "webui"))
    import launch

    launch.prepare(options.out or options.data, options.checkpoint)
    if options.out:
        from trial import compare

        compare.main(options)
    else:
        launch.serve(options.port, not options.no_browser)
    return 0


def main(arguments: list[str]) -> int:
    """Sets up the virtual environment and starts this file again inside it. Returns the exit status."""
    options = parse(arguments)
    if os.environ.get(INSIDE):
        return work(options)
    try:
        bootstrap.set_up(bootstrap.TRY)
    except bootstrap.SetUpError as error:
        print(f"The setup failed: {error}", file=sys.stderr)
        return 1
    os.environ[INSIDE] = "1"
    bootstrap.let_threads_sleep()
    return bootstrap.run(str(bootstrap.PYTHON), str(Path(__file__).resolve()), *_absolute(arguments), interactive=True)


def _absolute(arguments: list[str]) -> list[str]:
    """Makes the paths in the arguments absolute, because the new process runs in the root of the repository."""
    named = ("--out", "--webui", "--data", "--checkpoint")
    absolute = []
    for i, argument in enumerate(arguments):
        name, equals, path = argument.partition("=")
        if equals and name in named:
            argument = f"{name}={Path(path).absolute()}"
        elif i and arguments[i - 1] in named:
            argument = str(Path(argument).absolute())
        absolute.append(argument)
    return absolute


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (any Python version can start this file)
        sys.exit("Python 3.10 or newer is needed; this is {}.{}.".format(*sys.version_info))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
