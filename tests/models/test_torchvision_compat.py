"""Importing torchvision when its compiled operators do not load, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from cases import ROOT

# A CUDA build on a CPU-only torch fails in exactly this call, for want of the CUDA libraries.
BREAK = """
import torch

def cannot_load(path):
    raise OSError("libcudart.so.12: cannot open shared object file")

torch.ops.load_library = cannot_load
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_help_the_import_fails():
    """Negative control: the simulated fault is the known one."""
    assert "operator torchvision::nms does not exist" in run(BREAK + "import torchvision").stderr


def test_images_are_read_without_the_operators():
    done = run(
        BREAK
        + """
from models.torchvision_compat import import_torchvision
transforms = import_torchvision("transforms")
import_torchvision("datasets")
from PIL import Image
print(transforms.ToTensor()(Image.new("L", (2, 2), 255)).sum().item())
"""
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "4.0"


def test_a_working_torchvision_is_left_alone(tmp_path):
    """On a torchvision that imports: the one at hand may be of the broken kind."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "datasets.py").write_text("NAME = 'works'")
    done = run(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from models import torchvision_compat
        print(torchvision_compat.import_torchvision("datasets").NAME, torchvision_compat._declared)
        """
    )
    assert done.stdout.strip() == "works {}"


def test_other_errors_come_through():
    done = run(
        """
        import sys, types
        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "torchvision":
                    raise RuntimeError("operator torchvision::unheard_of does not exist")
        sys.meta_path.insert(0, Broken())
        from models.torchvision_compat import import_torchvision
        import_torchvision("datasets")
        """
    )
    assert done.returncode == 1
    assert "unheard_of" in done.stderr.splitlines()[-1]
