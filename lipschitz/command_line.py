"""The commands `lipschitz` and `lipschitz-train` of an installed package.

They are `main.py` and `train_model.py`. An installation has these, and what they import, in the
folder `_commands` beside this file; a checkout has them at its root. Either folder goes first on
the path, so that a `utils.py` or a `data/` where the user stands is not taken for theirs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def commands_folder() -> Path:
    """The folder of `main.py`."""
    package = Path(__file__).resolve().parent
    installed = package / "_commands"
    return installed if installed.is_dir() else package.parent


def main(argv: list[str] | None = None) -> int:
    """Runs `main.py` and returns its exit code.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    return _run("main", argv)


def train(argv: list[str] | None = None) -> int:
    """Runs `train_model.py` and returns its exit code; `argv` as in `main`."""
    return _run("train_model", argv)


def _run(script: str, argv: list[str] | None) -> int:
    if Path(sys.argv[0]).name == "__main__.py":  # python -m lipschitz
        sys.argv[0] = "lipschitz"
    sys.path.insert(0, str(commands_folder()))
    try:
        utils = importlib.import_module("utils")
        with utils.importing():
            module = importlib.import_module(script)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return utils.run_cli(module.main, argv)
