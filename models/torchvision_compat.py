"""Imports torchvision where its compiled operators do not load.

A CUDA build of torchvision on a CPU build of torch cannot load its C++ library, and then fails at
import with "operator torchvision::nms does not exist", though reading images needs no such
operator. Declaring the missing operators lets the import pass; nothing is changed where it works.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A torch.library.Library takes its declarations along when it is collected.
_declared: dict[str, torch.library.Library] = {}


def import_torchvision(submodule: str = "datasets") -> ModuleType:
    """The module `torchvision.<submodule>`.

    Raises:
        RuntimeError: torchvision cannot be imported for another reason than operators it lacks.
    """
    while True:
        try:
            return importlib.import_module(f"torchvision.{submodule}")
        except RuntimeError as error:
            match = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if match is None or match[1] in _declared or match[1] not in _SCHEMAS:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(_SCHEMAS[match[1]])
            _declared[match[1]] = library
            # The failed import leaves submodules behind that would not be executed again.
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
