"""Certified local Lipschitz constants of neural networks.

What is listed here is the public interface; everything else may change.
"""

from lipschitz.api import local_lipschitz
from lipschitz.applications.jacobian import JacobianBounds, jacobian_bounds, jvp_bounds
from lipschitz.applications.radii import CertifiedRadius, CertifyOptions, certified_radius
from lipschitz.bounds.methods import METHODS, MethodOptions
from lipschitz.network.formats import load_model
from lipschitz.network.tracing import build_graph
from lipschitz.prepared import Prepared
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
