"""Certified local Lipschitz constants of neural networks.

What is listed here is the public interface; everything else may change.
"""

from lipschitz.api import Prepared, local_lipschitz
from lipschitz.applications.certify import CertifiedRadius, CertifyOptions, certified_radius
from lipschitz.bounds.methods import METHODS, MethodOptions
from lipschitz.entries import JacobianBounds, jacobian_bounds, jvp_bounds
from lipschitz.network.formats import load_model
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LipschitzResult, LocalProblem, make_problem
from lipschitz.search.options import BranchOptions

__all__ = [
    "METHODS",
    "BranchOptions",
    "CertifiedRadius",
    "CertifyOptions",
    "JacobianBounds",
    "LipschitzResult",
    "LocalProblem",
    "MethodOptions",
    "Prepared",
    "build_graph",
    "certified_radius",
    "jacobian_bounds",
    "jvp_bounds",
    "load_model",
    "local_lipschitz",
    "make_problem",
]
