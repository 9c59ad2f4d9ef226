"""Activations: everything bound propagation must know about one, in one table."""

from lipschitz.activations.base import Activation
from lipschitz.activations.piecewise import Absolute, PReLU
from lipschitz.activations.relu import PiecewiseLinear
from lipschitz.activations.smooth import Softsign, Square
from lipschitz.activations.table import (
    ACTIVATION_FUNCTIONS,
    ACTIVATION_MODULES,
    SUPPORTED_ACTIVATIONS,
)

__all__ = [
    "ACTIVATION_FUNCTIONS",
    "ACTIVATION_MODULES",
    "SUPPORTED_ACTIVATIONS",
    "Absolute",
    "Activation",
    "PReLU",
    "PiecewiseLinear",
    "Softsign",
    "Square",
]
