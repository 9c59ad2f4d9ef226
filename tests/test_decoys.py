"""A user's own `utils.py`, `data/` and so on are theirs: the library takes none for its own.

The decoys raise when imported, and stand first on the path.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ("bab.py", "utils.py", "main.py", "train_model.py")
FOLDERS = ("data", "models", "commands", "experiments", "benchmarks", "tests")
LIBRARY = """
import sys
sys.path[:0] = [{folder!r}, {root!r}]
import torch
before = torch.get_default_dtype()
from lipschitz import *
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
x = torch.zeros(3)
for method in ("crown", "alpha", "sdp", "ibp", "global", "recurjac", "fastlip", "lipmip", "lipbab"):
    assert local_lipschitz(model, x, 0.1, method=method).upper_bound > 0, method
local_lipschitz(model, x, 0.1, branching=BranchOptions(timeout=5))
jacobian_bounds(model, x, 0.1)
certified_radius(model, x, 0)
assert torch.get_default_dtype() is before is torch.float32
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{{names}}}))
"""


def write_decoys(folder: Path) -> None:
    """A module or a package of every name at the top of a checkout."""
    for name in (*FILES, *(f"{name}/__init__.py" for name in FOLDERS)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('the decoy {name} was imported')\n")


def in_folder(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    write_decoys(tmp_path)
    return tmp_path


def test_the_decoys_cover_the_top_level():
    """A new top-level name needs one too."""
    named = {p.name for p in ROOT.glob("*.py")} | {
        p.parent.name for p in ROOT.glob("*/__init__.py")
    }
    assert named - {"lipschitz"} <= {*FILES, *FOLDERS}


def test_a_decoy_is_found_first(folder):
    """Negative control."""
    done = in_folder(folder, "-c", f"import sys; sys.path.append({str(ROOT)!r}); import utils")
    assert "the decoy utils.py was imported" in done.stderr


def test_the_library_imports_nothing_from_the_top_level(folder):
    names = ", ".join(map(repr, (*(Path(f).stem for f in FILES), *FOLDERS)))
    done = in_folder(folder, "-c", LIBRARY.format(folder=str(folder), root=str(ROOT), names=names))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[]\n"


def test_the_command_takes_its_own(folder):
    """`python -m` puts the folder it is called in first on the path."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); sys.argv = ['lipschitz', '--list-models']"
    code += "; from lipschitz.command_line import main; sys.exit(main())"
    done = in_folder(folder, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "simple_mlp_3layer" in done.stdout
