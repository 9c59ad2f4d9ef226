"""Pasado's bounds of derivatives, by its own code in a checkout at hand.

Laurel et al., *Synthesizing precise static analyzers for automatic differentiation*, OOPSLA 2023;
github.com/uiuc-arc/Pasado, MIT licence. A value and its derivative in t are zonotopes, carried
forward; behind a sigmoid the derivative gets the plane of a regression, and the largest error at
corners and at critical points is its new generator. The code is imported from the checkout, none of
it stands here.

What is trusted: its results are no more than what its code returns. It adds noise to its planes
and looks for critical points in single precision.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.sigmoid_files import Layers, sigmoid_mlp
from lipschitz.errors import InputError, first_line

# Where its modules lie; those of the experiment import those of the analysis.
_FOLDERS = ("Section_5_4", "forward_mode_tensorized_src")


@dataclass(frozen=True)
class Pasado:
    """The parts of its code that its experiment on MNIST networks is made of.

    Attributes:
        checkout: Where they come from.
        interval: An interval of values and one of derivatives.
        zonotope: The zonotopes of such a pair.
        network: From the zonotopes of the input to those of the output.
    """

    checkout: Path
    interval: Callable[..., Any]
    zonotope: Callable[..., Any]
    network: Callable[..., Any]

    def bound(
        self, layers: Layers, image: Tensor, eps: float, line: Callable[[Any, Tensor], Any]
    ) -> tuple[float, float]:
        """The largest ``|d f_c / d t|`` that it gives for t in [0, eps].

        Args:
            layers: Of a sigmoid MLP.
            image: [D].
            eps: Length of the line.
            line: From the zonotopes of t and the image to those of the input; one of :data:`LINES`.

        Returns:
            The bound, and the seconds it took.

        Raises:
            InputError: Its code fails, as one of another version may.
        """
        model = SimpleNamespace(layers=sigmoid_mlp(layers))
        np.random.seed(0)  # noqa: NPY002 (its noise is drawn from numpy's global generator)
        try:
            with _double_precision(), torch.no_grad():
                begin = time.process_time()
                t = self.interval(real_l=torch.tensor([0.0]), real_u=torch.tensor([eps]))
                t.e1_l[0] = t.e1_u[0] = 1
                output = self.network(model, line(self.zonotope(t), image), (1, 1, len(image)))
                ends = output.dual.get_lb().abs(), output.dual.get_ub().abs()
                largest = float(torch.maximum(*ends).max())
                return largest, time.process_time() - begin
        except Exception as error:  # whatever foreign code raises
            raise InputError(f"--pasado {self.checkout}: its code fails: {_named(error)}") from None


def _as_its_script(t: Any, image: Tensor) -> Any:
    """``(1 - t) image + t``, as ``Section_5_4/get_lipschitz.py`` writes it.

    Its negation turns the centres of zonotopes and leaves the generators, so the values are on
    ``image + t (1 + image)`` around the middle of the line: their derivatives are no bound.
    """
    return (torch.tensor([1]) - t) * image + t


def _without_negation(t: Any, image: Tensor) -> Any:
    """``image + t (1 - image)``, by its products and sums."""
    return t * (1 - image) + image


# Name -> how the input is formed.
LINES: dict[str, Callable[[Any, Tensor], Any]] = {
    "Pasado, its script": _as_its_script,
    "Pasado, x + t (1 - x)": _without_negation,
}


def load_pasado(checkout: Path) -> Pasado:
    """Pasado's code in a checkout of its repository.

    Raises:
        InputError: There is none, or not all of it, or it cannot be imported.
    """
    folders = [(checkout / folder).resolve() for folder in _FOLDERS]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"--pasado {checkout}: expected a checkout of github.com/uiuc-arc/Pasado, and "
                f"there is no {folder.name} in it"
            )
    before = list(sys.path), set(sys.modules)
    sys.path[:0] = map(str, folders)
    try:
        with _double_precision():  # importing it changes the default
            duals, zonotopes, networks = map(
                importlib.import_module, ("Duals", "SimpleZono", "cnn_helper")
            )
        return Pasado(
            checkout,
            duals.DualIntervalTensor,
            zonotopes.HyperDualIntervalToDualZonotope,
            networks.ConvPasado,
        )
    except Exception as error:  # whatever foreign code raises
        raise InputError(f"--pasado {checkout}: cannot be imported: {_named(error)}") from None
    finally:
        sys.path[:] = before[0]
        # Its modules have names such as `model`, which must not be found by anybody else.
        for name in set(sys.modules) - before[1]:
            source = getattr(sys.modules[name], "__file__", None)
            if source and Path(source).resolve().parent in folders:
                del sys.modules[name]


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    """Its code makes tensors of the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
