"""A user's file beside which stand modules of the same names as ours."""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

# The folder of these commands, and their top-level modules: names that a user's own files may have
# too.
_HERE = Path(__file__).resolve().parents[1]
OURS = ("main", "train_model", "bab", "utils", "commands", "models", "data", "experiments")


class Neighbours(MetaPathFinder):
    """The modules in the folder of a user's file, which that file means by its imports.

    Where the folder holds a ``utils.py``, a ``models/`` or a ``data/``, these take the place of
    ours while code of the file runs, and ours come back afterwards. What the file has imported
    stays bound in it. Names that it imports later, inside a ``forward``, are ours again: import
    such modules at the top of the file.

    Args:
        folder: The folder of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._theirs: dict[str, ModuleType] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Where a neighbour is that has one of our names; None for all else."""
        if path is not None or fullname not in OURS or Path(self._folder) == _HERE:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [self._folder])

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The folder is first on the path, its modules hide ours; what is printed is no result."""
        hidden = {name for name in OURS if self.find_spec(name) is not None}
        ours = _taken_out(hidden)
        sys.modules.update(self._theirs)
        sys.path.insert(0, self._folder)
        sys.meta_path.insert(0, self)
        try:
            # Lines on stdout are the results of a run.
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            sys.meta_path.remove(self)
            with contextlib.suppress(ValueError):  # the file may have taken it out itself
                sys.path.remove(self._folder)
            self._theirs = _taken_out(hidden)
            sys.modules.update(ours)


def _taken_out(names: set[str]) -> dict[str, ModuleType]:
    """Takes modules and their submodules out of those that are loaded."""
    found = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in found}
