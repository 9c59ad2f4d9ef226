"""Certified local Lipschitz constants of neural networks.

What is listed here is the public interface; everything else may change.
"""

from lipschitz.api import Prepared, local_lipschitz
from lipschitz.methods import METHODS, MethodOptions
from lipschitz.problem import LipschitzResult, LocalProblem, make_problem
from lipschitz.searching import BranchOptions
from lipschitz.tracing import build_graph

__all__ = [
    "METHODS",
    "BranchOptions",
    "LipschitzResult",
    "LocalProblem",
    "MethodOptions",
    "Prepared",
    "build_graph",
    "local_lipschitz",
    "make_problem",
]
