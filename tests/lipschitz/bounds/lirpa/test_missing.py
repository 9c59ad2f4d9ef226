"""Without auto_LiRPA the native engine serves; asking for auto_LiRPA says how to get it."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from cases import CASES

from lipschitz import (
    BranchOptions,
    build_graph,
    certified_radius,
    jacobian_bounds,
    jvp_bounds,
    local_lipschitz,
)
from lipschitz.errors import InputError

CASE = CASES[0]
HOW = r"auto_LiRPA: pip install --no-deps auto_LiRPA==0\.3 appdirs; or use engine native"


@pytest.fixture
def without_package(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "auto_LiRPA" else find(name)
    )


@pytest.mark.usefixtures("without_package")
def test_crown_chooses_the_native_engine():
    model, x = CASE.model(), CASE.point()
    found = local_lipschitz(model, x, 0.1)
    assert found.engine == "native"
    assert found.upper_bound == local_lipschitz(model, x, 0.1, engine="native").upper_bound
    radius = certified_radius(model, x, int(model(x[None]).argmax()), method="crown")
    assert radius.engine == "native"


@pytest.mark.usefixtures("without_package")
@pytest.mark.parametrize(
    "ask",
    [
        lambda model, x, engine: local_lipschitz(model, x, 0.1, engine=engine),
        lambda model, x, engine: local_lipschitz(model, x, 0.1, method="ibp", engine=engine),
        lambda model, x, engine: local_lipschitz(
            model, x, 0.1, branching=BranchOptions(timeout=1), engine=engine
        ),
        lambda model, x, engine: certified_radius(model, x, 0, method="crown", engine=engine),
        lambda model, x, engine: jacobian_bounds(model, x, 0.1, engine=engine),
        lambda model, x, engine: jvp_bounds(
            build_graph(model, x.shape), x, 0.1, torch.ones(1, *x.shape).to(x), engine=engine
        ),
    ],
    ids=["crown", "ibp", "bab", "radius", "entries", "products"],
)
def test_asking_for_it_says_how_to_get_it(ask):
    with pytest.raises(InputError, match=HOW):
        ask(CASE.model(), CASE.point(), "auto_lirpa")


def test_a_package_that_does_not_import_is_one_line():
    """Installed without what it imports, as `pip install --no-deps` alone leaves it."""
    command = """
import sys
sys.modules["appdirs"] = None
import torch
from lipschitz import InputError, local_lipschitz
try:
    local_lipschitz(torch.nn.Linear(2, 1).eval(), torch.zeros(2), 0.1, engine="auto_lirpa")
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert "auto_LiRPA cannot be imported" in done.stdout
    assert "pip install --no-deps auto_LiRPA==0.3 appdirs" in done.stdout
