"""Affine maps: every operator whose backward pass is its adjoint.

:mod:`base` says what a map must offer, :mod:`maps` and :mod:`convolution` are the kinds there are,
:mod:`calls` what a rule is told about a call. :data:`MODULE_RULES` and :data:`FUNCTION_RULES` say
which PyTorch operators are affine and which map each of them is; an operator in none of them is
refused by :mod:`lipschitz.network.tracing`.
"""

from lipschitz.network.affine.base import AffineMap, Applied, Branch, Value
from lipschitz.network.affine.calls import Call, branches_of, operator_names, positive, reshaped
from lipschitz.network.affine.convolution import Convolution, TransposedConvolution
from lipschitz.network.affine.functions import (
    FUNCTION_RULES,
    LIKE_ANOTHER,
    METADATA,
    REFUSED_FUNCTIONS,
    SPLITS,
)
from lipschitz.network.affine.maps import Combination, Linear, Positive, Reshape, Scale, Weighted
from lipschitz.network.affine.modules import IDENTITY_MODULES, MODULE_RULES, REFUSED_MODULES

__all__ = [
    "FUNCTION_RULES",
    "IDENTITY_MODULES",
    "LIKE_ANOTHER",
    "METADATA",
    "MODULE_RULES",
    "REFUSED_FUNCTIONS",
    "REFUSED_MODULES",
    "SPLITS",
    "AffineMap",
    "Applied",
    "Branch",
    "Call",
    "Combination",
    "Convolution",
    "Linear",
    "Positive",
    "Reshape",
    "Scale",
    "TransposedConvolution",
    "Value",
    "Weighted",
    "branches_of",
    "operator_names",
    "positive",
    "reshaped",
]
