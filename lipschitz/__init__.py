"""Certified local Lipschitz constants of neural networks.

What is listed here is the public interface; everything else may change. Each name is loaded when it
is first used: importing torch takes seconds, and reading an error or a table of options needs none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipschitz.api import local_lipschitz
    from lipschitz.applications.curvature import HessianBounds, hessian_bounds, local_curvature
    from lipschitz.applications.jacobian import JacobianBounds, jacobian_bounds, jvp_bounds
    from lipschitz.applications.radii import CertifiedRadius, CertifyOptions, certified_radius
    from lipschitz.bounds.methods import METHODS
    from lipschitz.bounds.options import MethodOptions
    from lipschitz.errors import InputError
    from lipschitz.network.formats import load_model
    from lipschitz.network.tracing import build_graph
    from lipschitz.prepared import Prepared
    from lipschitz.problem import LocalProblem, make_problem
    from lipschitz.result import LipschitzResult
    from lipschitz.search.options import BranchOptions

__version__ = "0.2.0"
__all__ = [
    "METHODS",
    "BranchOptions",
    "CertifiedRadius",
    "CertifyOptions",
    "HessianBounds",
    "InputError",
    "JacobianBounds",
    "LipschitzResult",
    "LocalProblem",
    "MethodOptions",
    "Prepared",
    "build_graph",
    "certified_radius",
    "hessian_bounds",
    "jacobian_bounds",
    "jvp_bounds",
    "load_model",
    "local_curvature",
    "local_lipschitz",
    "make_problem",
]

# Public name -> the module that defines it.
_HOME = {
    "local_lipschitz": "lipschitz.api",
    **dict.fromkeys(
        ("HessianBounds", "hessian_bounds", "local_curvature"), "lipschitz.applications.curvature"
    ),
    **dict.fromkeys(
        ("JacobianBounds", "jacobian_bounds", "jvp_bounds"), "lipschitz.applications.jacobian"
    ),
    **dict.fromkeys(
        ("CertifiedRadius", "CertifyOptions", "certified_radius"), "lipschitz.applications.radii"
    ),
    "METHODS": "lipschitz.bounds.methods",
    "MethodOptions": "lipschitz.bounds.options",
    "InputError": "lipschitz.errors",
    "load_model": "lipschitz.network.formats",
    "build_graph": "lipschitz.network.tracing",
    "Prepared": "lipschitz.prepared",
    **dict.fromkeys(("LocalProblem", "make_problem"), "lipschitz.problem"),
    "LipschitzResult": "lipschitz.result",
    "BranchOptions": "lipschitz.search.options",
}


def __getattr__(name: str) -> object:
    """A public name, loaded from its module and kept."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
