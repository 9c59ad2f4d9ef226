"""The wheel: what is in it, and that it works in a new environment outside the checkout.

The environment holds the wheel and the packages that the wheel declares, torch and the others by
links to those of the running environment: what is not declared is not there, auto_LiRPA neither.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_decoys import write_decoys

import utils
from lipschitz import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
NETWORK = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
"""
BOUND = ["--model", "mynet.py:make", "--input", "points.npz", "--eps", "0.01", "--quiet"]
# The commands' side of the wheel.
FILES = ("main.py", "train_model.py", "utils.py", "bab.py")
FOLDERS = ("commands", "data", "models")
SCRIPT = "data/tinyImageNet/tinyimagenet_download.sh"
# What the pinned files hold and pyproject.toml does not: these serve auto_LiRPA, which is optional
# and no dependency.
OF_AUTO_LIRPA = {"appdirs", "pyyaml", "packaging", "ninja"}
LINE = r"example 0 .*upper (\S+) lower (\S+) status"


def clean_environment() -> dict[str, str]:
    """Without what would lead a new environment back to this one or to the checkout."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHON", "VENV")
    return {key: value for key, value in os.environ.items() if key not in left_out}


def call(folder: Path, *command: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = call(
        ROOT, sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def metadata_of(wheel: Path) -> dict[str, list[str]]:
    """The fields of the wheel's metadata."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        header = file.read(name).decode().partition("\n\n")[0]
    fields: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([\w-]+): (.*)$", header, re.MULTILINE):
        fields.setdefault(key, []).append(value)
    return fields


def needed(requirements: list[str]) -> set[str]:
    """The distributions that requirements name, and those that these require, installed here."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        assert requirement.specifier.contains(metadata.version(name), prereleases=True), requirement
        found.add(name)
        waiting += metadata.requires(name) or []
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment with the wheel, and nothing that it does not declare."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    (target,) = home.glob("lib/python*/site-packages")
    for name in needed(metadata_of(wheel)["Requires-Dist"]):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            (target / top).symlink_to(Path(distribution.locate_file(top)))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    done = call(home, *pip, "--quiet", wheel)
    assert done.returncode == 0, done.stderr
    return home / "bin"


@pytest.fixture
def folder(tmp_path):
    """Where a user stands: a network, points, and own files of names that the checkout has too."""
    write_decoys(tmp_path)
    (tmp_path / "mynet.py").write_text(NETWORK)
    np.savez(tmp_path / "points.npz", x=np.zeros((1, 4), dtype=np.float32))
    return tmp_path


def test_the_wheel_holds_the_code_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {f"lipschitz/_commands/{name}" for name in (*FILES, SCRIPT)}
    expected.add("lipschitz/py.typed")
    for folder, place in (("lipschitz", ""), *((name, "lipschitz/_commands/") for name in FOLDERS)):
        for path in (ROOT / folder).rglob("*.py"):
            if "cache" not in path.parts:
                expected.add(f"{place}{path.relative_to(ROOT)}")
    assert names == expected


def test_the_metadata(wheel):
    fields = metadata_of(wheel)
    assert fields["Version"] == [__version__]
    assert fields["Requires-Python"] == ["<3.14,>=3.10"]
    extras = {"onnx", "keras", "baselines", "experiments", "docs", "test"}
    assert set(fields["Provides-Extra"]) == extras
    assert not any("lirpa" in line.lower() for line in fields["Requires-Dist"])
    torch = next(r for r in map(Requirement, fields["Requires-Dist"]) if r.name == "torch")
    assert all(torch.specifier.contains(version) for version in ("2.4.0", "2.9.1", "2.13.0+cpu"))
    assert not torch.specifier.contains("2.3.1")


def test_the_first_example_of_the_readme(installed, folder):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "local_lipschitz(" in block)
    done = call(folder, installed / "python", "-c", example)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<= constant <=" in done.stdout


def test_the_command(installed, folder):
    done = call(folder, installed / "lipschitz", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: lipschitz ")
    done = call(folder, installed / "lipschitz", *BOUND, "--output", "rows.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    upper, lower = map(float, re.search(LINE, done.stdout).groups())
    assert 0 < lower <= upper * (1 + 1e-6)
    row = json.loads((folder / "rows.jsonl").read_text())
    assert (row["method"], row["engine"]) == ("crown", "native")
    assert row["upper_bound"] == pytest.approx(upper, rel=1e-5)
    as_module = call(folder, installed / "python", "-m", "lipschitz", *BOUND)
    assert re.search(LINE, as_module.stdout).groups() == re.search(LINE, done.stdout).groups()


@pytest.mark.parametrize("search", [[], ["--bab"]], ids=["crown", "bab"])
def test_asking_for_auto_lirpa_says_how_to_get_it(installed, folder, search):
    done = call(folder, installed / "lipschitz", *BOUND, "--engine", "auto_lirpa", *search)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: engine 'auto_lirpa' needs the package auto_LiRPA: "
        "pip install --no-deps auto_LiRPA==0.3 appdirs; or use engine native\n"
    )


def test_training_and_a_data_set_that_needs_no_download(installed, folder):
    train = ["--data", "digits", "--model", "simple_mlp_3layer", "--width", "4"]
    done = call(folder, installed / "lipschitz-train", *train, "--num-epochs", "1", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    file = done.stdout.split()[-1]
    done = call(folder, installed / "lipschitz", "--load", file, "--eps", "0.01", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(LINE, done.stdout)


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.5])
def test_an_early_interrupt_is_one_line(installed, folder, delay):
    """While the command and torch are imported, which takes longer than these delays."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from lipschitz.command_line import main; print('ready', flush=True); sys.exit(main())"
    process = subprocess.Popen(
        [installed / "python", "-c", code, *BOUND],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: interrupted\n")


def test_an_installed_tool_takes_no_repository_around_it_for_its_own(monkeypatch):
    """Such as a user's, in which the environment lies."""
    tool_version = utils._tool_version.__wrapped__
    monkeypatch.setattr(utils, "__file__", str(ROOT / "lipschitz" / "utils.py"))
    assert tool_version() == __version__


def pins(file: str) -> list[Requirement]:
    lines = [line.partition(" #")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_pinned_versions_lie_in_the_ranges_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges: dict[str, list[Requirement]] = {}
    for line in (*project["dependencies"], *(line for extra in extras.values() for line in extra)):
        requirement = Requirement(line)
        ranges.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    pinned = set()
    for file in ("requirements.txt", "requirements-extra.txt", "requirements-docs.txt"):
        for pin in pins(file):
            name = canonicalize_name(pin.name)
            pinned.add(name)
            for allowed in ranges.get(name, []):
                (version, *_) = sorted(
                    part.version for part in pin.specifier if part.operator != "<"
                )
                is_exact = any(part.operator == "==" for part in pin.specifier)
                assert allowed.specifier.contains(version), f"{file}: {pin} and {allowed}"
                assert is_exact or pin.specifier == allowed.specifier, f"{file}: {pin}"
    assert pinned - ranges.keys() == OF_AUTO_LIRPA | {"mkdocstrings-python"}
    assert ranges.keys() <= pinned
