"""Networks of ``.pt2`` files, which torch.export.save writes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from lipschitz.errors import InputError, first_line


class ExportedNetwork(nn.Module):
    """An exported program, on batches of any size.

    Args:
        program: The program's calls, or a module that makes them.
        batch: The only number of examples that it takes, None if it takes any.

    Attributes:
        program, batch: The same.
    """

    def __init__(self, program: fx.GraphModule | nn.Module, batch: int | None) -> None:
        super().__init__()
        self.program = program
        self.batch = batch
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """The program's output, [B, ...]."""
        missing = -len(x) % (self.batch or 1)
        padded = torch.cat([x, x[:1].expand(missing, *x.shape[1:])])
        parts = padded.split(self.batch or len(x))
        try:
            return torch.cat([self.program(part) for part in parts])[: len(x)]
        except AssertionError as error:  # the program's check of its input's shape
            raise RuntimeError(str(error)) from error

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Nothing: a program has the mode it was exported in."""
        return self


def load_exported(path: Path) -> tuple[ExportedNetwork, tuple[int, ...]]:
    """The network of a file and the shape of one input.

    Raises:
        InputError: Not such a file, several inputs, or an input shape that is left open.
    """
    try:
        with _silence():
            program = torch.export.load(str(path))
    except Exception as error:  # torch reports a damaged file in many ways
        raise InputError(
            f"{path} is not a program of torch.export.save, or it is damaged{_why(path, error)}"
        ) from error
    names = set(program.graph_signature.user_inputs)
    inputs = [node for node in program.graph.nodes if node.name in names]
    if len(inputs) != 1 or len(program.graph_signature.user_outputs) != 1:
        raise InputError(
            f"{path} has {len(inputs)} inputs and {len(program.graph_signature.user_outputs)} "
            "outputs: a bound needs one of each"
        )
    batch, *shape = inputs[0].meta["val"].shape
    if not shape or not all(isinstance(size, int) for size in shape):
        raise InputError(
            f"{path} takes inputs of shape {[batch, *shape]}: expected a batch dimension and then "
            "numbers; export it for one input shape"
        )
    fixed = batch if isinstance(batch, int) else None
    return ExportedNetwork(program.module(), fixed), tuple(shape)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed: torch logs the whole traceback of a damaged file before it raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _why(path: Path, error: Exception) -> str:
    """What is wrong with a file, as far as it can be said."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/data.pkl") for name in archive.namelist()):
                return ": torch.save wrote it; weights alone go with a model, as .pth"
    # For most files torch only refers to warnings in its log, which is silenced here.
    return "" if "warnings above" in str(error) else f" ({first_line(error)})"
