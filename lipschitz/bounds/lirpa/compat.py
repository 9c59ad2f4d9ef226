"""Makes auto_LiRPA 0.3, the release on PyPI, importable on current PyTorch and numpy.

That release was written for torch < 1.13. Four names it uses have gone since; each is put back
here, only where it is missing, so a newer auto_LiRPA or an older torch is left alone. Import
auto_LiRPA through this module and nowhere else.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings

import numpy
import torch

from lipschitz.bounds.lirpa import HOW_TO_INSTALL
from lipschitz.errors import InputError


def _restore_arraysetops() -> None:
    """``numpy.lib.arraysetops.isin``: numpy 2 moved it; auto_LiRPA imports it by the old path."""
    name = "numpy.lib.arraysetops"
    if name in sys.modules:
        return
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        module.isin = numpy.isin
        sys.modules[name] = module


def _restore_set_opset_version() -> None:
    """``_set_opset_version``: torch 2 keeps the exporter's opset in a global instead."""
    # By its full name: as an attribute of torch.onnx newer versions give another module.
    symbolic_helper = importlib.import_module("torch.onnx.symbolic_helper")
    if hasattr(symbolic_helper, "_set_opset_version"):
        return
    try:
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS
    except ImportError:
        from torch.onnx._globals import GLOBALS

    def set_opset_version(version: int) -> None:
        GLOBALS.export_onnx_opset_version = version

    symbolic_helper._set_opset_version = set_opset_version


def _restore_node_subscript() -> None:
    """``node["attribute"]`` on ``torch._C.Node``: torch 2 offers a helper function instead."""
    if hasattr(torch._C.Node, "__getitem__"):
        return
    node_get = importlib.import_module("torch.onnx.symbolic_helper")._node_get
    torch._C.Node.__getitem__ = lambda node, key: node_get(node, key)


def _accept_remove_duplicate(bounded_module: type) -> None:
    """``_named_members(..., remove_duplicate)``: an argument torch 2 added to ``nn.Module``."""
    original = bounded_module._named_members
    if "remove_duplicate" in inspect.signature(original).parameters:
        return

    def named_members(self, get_members_fn, prefix="", recurse=True, remove_duplicate=True):
        return original(self, get_members_fn, prefix=prefix, recurse=recurse)

    bounded_module._named_members = named_members


_restore_arraysetops()
_restore_set_opset_version()
_restore_node_subscript()
try:
    # Recorded and dropped: the import warns of deprecated torch.jit calls and resets the filters.
    with warnings.catch_warnings(record=True):
        import auto_LiRPA
        from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
        from auto_LiRPA.operators.base import Bound
except ImportError as error:
    raise InputError(
        f"auto_LiRPA cannot be imported ({error}): {HOW_TO_INSTALL}; or use engine native"
    ) from error
_accept_remove_duplicate(BoundedModule)

# auto_LiRPA 0.4 renamed the argument that hands known intermediate bounds to compute_bounds.
KNOWN_BOUNDS_ARGUMENT = (
    "intermediate_layer_bounds" if auto_LiRPA.__version__.startswith("0.3") else "interm_bounds"
)

__all__ = [
    "KNOWN_BOUNDS_ARGUMENT",
    "Bound",
    "BoundedModule",
    "BoundedTensor",
    "PerturbationLpNorm",
    "auto_LiRPA",
]
