import importlib
import subprocess
import sys
import warnings

import torch

from lipschitz.bounds.lirpa import compat


def test_import_is_silent_and_can_be_repeated():
    command = "import lipschitz.bounds.lirpa.compat as c, importlib; importlib.reload(c)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_repairs_touch_nothing_that_is_there(monkeypatch):
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    mine = object()
    monkeypatch.setattr(helper, "_set_opset_version", mine)
    monkeypatch.setattr(torch._C.Node, "__getitem__", mine)
    compat._restore_set_opset_version()
    compat._restore_node_subscript()
    assert helper._set_opset_version is mine
    assert torch._C.Node.__getitem__ is mine


def test_bounded_module_still_lists_its_parameters():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = compat.BoundedModule(torch.nn.Linear(3, 2), torch.zeros(2, 3))
    assert len(list(model.named_parameters(remove_duplicate=False))) == 2
