"""Activations: everything bound propagation must know about one, in one table."""

from lipschitz.network.activations.base import Activation
from lipschitz.network.activations.elementary import (
    Exponential,
    Logarithm,
    Power,
)
from lipschitz.network.activations.piecewise import Absolute, PReLU
from lipschitz.network.activations.relu import PiecewiseLinear
from lipschitz.network.activations.smooth import Softsign, Square
from lipschitz.network.activations.table import (
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
    "Exponential",
    "Logarithm",
    "PReLU",
    "PiecewiseLinear",
    "Power",
    "Softsign",
    "Square",
]
