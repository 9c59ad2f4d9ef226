"""Operators that are written out in affine maps, unary functions and products of two values.

:data:`WRITTEN_FUNCTIONS` and :data:`WRITTEN_MODULES` say which: quotients, matrix products of two
values that depend on the input, softmax, normalisation by the input's statistics, attention, gates
and recurrent layers. :mod:`writer` has the steps they are written with.
"""

from lipschitz.network.composed.functions import WRITTEN_FUNCTIONS, Extreme
from lipschitz.network.composed.modules import WRITTEN_MODULES
from lipschitz.network.composed.recurrent import States, is_recurrent
from lipschitz.network.composed.softmax import MASK_FROM, MASKED
from lipschitz.network.composed.writer import Writer

__all__ = [
    "MASKED",
    "MASK_FROM",
    "WRITTEN_FUNCTIONS",
    "WRITTEN_MODULES",
    "Extreme",
    "States",
    "Writer",
    "is_recurrent",
]
