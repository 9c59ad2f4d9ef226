"""The import order of the project: a file imports only from what stands above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "utils",
    "models",
    "data",
    "lipschitz.relaxation",
    "lipschitz.network.activations",
    "lipschitz.network.affine",
    "lipschitz.network.pooling",
    "lipschitz.network.graph",
    "lipschitz.network.building",
    "lipschitz.network.tracing",
    "lipschitz.rounding",
    "lipschitz.norms",
    "lipschitz.problem",
    "lipschitz.search.subdomains",
    "lipschitz.bounds.feasibility.batched",
    "lipschitz.bounds.feasibility.by_program",
    "lipschitz.search.splits",
    "lipschitz.search.heuristics",
    "lipschitz.search.interface",
    "lipschitz.bounds.global_norm",
    "lipschitz.bounds.native",
    "lipschitz.bounds.lirpa",
    "lipschitz.bounds.true_gradients",
    "lipschitz.bounds.baselines",
    "lipschitz.search.pool",
    "lipschitz.search.state",
    "lipschitz.bounds.sdp",
    "commands.progress",
    "bab",
    "lipschitz.search.with_programs",
    "lipschitz.search.run",
    "lipschitz.bounds.methods",
    "lipschitz.api",
    "lipschitz.applications.jacobian_intervals",
    "lipschitz.applications.jacobian",
    "lipschitz.applications",
    "lipschitz",
    "train_model",
    "commands",
    "main",
    "experiments.machine",
    "experiments.jobs",
    "experiments.ledger",
    "experiments.workers",
    "experiments.slurm",
    "experiments.parallel",
    "experiments.rows",
    "experiments.tables",
    "experiments.figures",
    "experiments.report",
    "experiments.stand_in",
    "experiments",
]


def place(module: str) -> int | None:
    """Position in the order of the longest listed prefix of a module's name."""
    matching = [name for name in ORDER if module == name or module.startswith(f"{name}.")]
    return ORDER.index(max(matching, key=len)) if matching else None


def sources() -> list[Path]:
    listed = {name.split(".")[0] for name in ORDER}
    found = [p for p in ROOT.glob("*.py") if p.stem in listed]
    for name in listed:
        found += (ROOT / name).glob("**/*.py")
    return sorted(found)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(path: Path, module: str) -> list[str]:
    own = place(module)
    assert own is not None, f"{module} is missing in the order of this test"
    return [
        name
        for name in imported(path)
        if place(name) is not None and place(name) > own and ORDER[place(name)] != "lipschitz"
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(path):
    relative = path.relative_to(ROOT).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    assert violations(path, ".".join(parts)) == []


def test_a_wrong_import_is_caught(tmp_path):
    """Negative control."""
    wrong = tmp_path / "affine.py"
    wrong.write_text("from lipschitz.api import local_lipschitz\n")
    assert violations(wrong, "lipschitz.network.affine")


def test_only_the_adapter_imports_auto_lirpa():
    users = {p.name for p in sources() if any(n.split(".")[0] == "auto_LiRPA" for n in imported(p))}
    assert users == {"compat.py"}
