"""The import order of the project: a file imports only from what stands above it."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The library stands alone; the floors are its folders, with what lies between them.
LIBRARY = [
    "lipschitz.errors",
    "lipschitz.precision",
    "lipschitz.words",
    "lipschitz.checks",
    "lipschitz.arguments",
    "lipschitz.rounding",
    "lipschitz.relaxation",
    "lipschitz.norms",
    "lipschitz.network.activations",
    "lipschitz.network.affine",
    "lipschitz.network.ranges",
    "lipschitz.network.pooled",
    "lipschitz.network.graph",
    "lipschitz.network.composed",
    "lipschitz.network.pooling",
    "lipschitz.network.derivative",
    "lipschitz.network.formats",
    "lipschitz.network.scalar_forms",
    "lipschitz.network.written_out",
    "lipschitz.network.recording",
    "lipschitz.network.building",
    "lipschitz.network.one_example",
    "lipschitz.network.tracing",
    "lipschitz.network",
    "lipschitz.problem",
    "lipschitz.result",
    "lipschitz.bounds.options",
    "lipschitz.bounds.clock",
    "lipschitz.bounds.global_norm",
    "lipschitz.bounds.feasibility",
    "lipschitz.bounds.native.memory.budget",
    "lipschitz.bounds.native.memory.windows",
    "lipschitz.bounds.native.interval",
    "lipschitz.bounds.native.plan",
    "lipschitz.bounds.native.rows",
    "lipschitz.bounds.native.lines",
    "lipschitz.bounds.native.pool_lines",
    "lipschitz.bounds.native.pool_bounds",
    "lipschitz.bounds.native.memory",
    "lipschitz.bounds.native.forward",
    "lipschitz.bounds.native.slopes",
    "lipschitz.bounds.native.backward",
    "lipschitz.bounds.native.terms",
    "lipschitz.bounds.native.root",
    "lipschitz.bounds.native.joint",
    "lipschitz.bounds.native.products",
    "lipschitz.bounds.native.crown",
    "lipschitz.bounds.native.alpha",
    "lipschitz.bounds.native.curvature",
    "lipschitz.bounds.native.hessian_norms",
    "lipschitz.bounds.native.hessian_matrices",
    "lipschitz.bounds.native.hessian_root",
    "lipschitz.bounds.native",
    "lipschitz.bounds.witness",
    "lipschitz.bounds.lower",
    "lipschitz.bounds.true_gradients",
    "lipschitz.bounds.true_curvature",
    "lipschitz.bounds.outcome",
    "lipschitz.bounds.lirpa",
    "lipschitz.bounds.coupled",
    "lipschitz.bounds.sdp",
    "lipschitz.bounds.baselines",
    "lipschitz.bounds.methods",
    "lipschitz.bounds",
    "lipschitz.search.options",
    "lipschitz.search.subdomains",
    "lipschitz.search.interface",
    "lipschitz.search.splits",
    "lipschitz.search.heuristics",
    "lipschitz.search.pool",
    "lipschitz.search.state",
    "lipschitz.search.loop",
    "lipschitz.search.trials",
    "lipschitz.search.subdomain_bounds",
    "lipschitz.search.engines",
    "lipschitz.search.boxes_first",
    "lipschitz.search.with_programs",
    "lipschitz.search.run",
    "lipschitz.search.curvature",
    "lipschitz.search",
    "lipschitz.prepared",
    "lipschitz.applications.jacobian_intervals",
    "lipschitz.applications.jacobian",
    "lipschitz.applications.curvature",
    "lipschitz.applications.radii",
    "lipschitz.applications.sign_search",
    "lipschitz.applications.signs",
    "lipschitz.applications.monotonicity",
    "lipschitz.applications",
    "lipschitz.api",
    "lipschitz",
]
COMMANDS = [
    "utils",
    "bab",
    "models",
    "data",
    "commands",
    "train_model",
    "main",
    "experiments.machine",
    "experiments.jobs",
    "experiments.ledger",
    "experiments.workers",
    "experiments.slurm",
    "experiments.units",
    "experiments.rows",
    "experiments.parallel",
    "experiments.tables",
    "experiments.figures",
    "experiments.report",
    "experiments.stand_in",
    "experiments",
]
ORDER = LIBRARY + COMMANDS


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
            names |= {submodule_or(node.module, alias.name) for alias in node.names}
    return names


def submodule_or(module: str, name: str) -> str:
    """The module that ``from module import name`` asks for."""
    path = ROOT / module.replace(".", "/") / name
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else module


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


def test_floors_are_in_order():
    """A floor is one stretch of the list: nothing of another stands between its files."""
    for names in (LIBRARY, COMMANDS):
        floors = [".".join(name.split(".")[:2]) for name in names]
        for floor in set(floors):
            first = floors.index(floor)
            assert floors[first : first + floors.count(floor)] == [floor] * floors.count(floor)


def test_a_wrong_import_is_caught(tmp_path):
    """Negative control."""
    wrong = tmp_path / "affine.py"
    wrong.write_text("from lipschitz.api import local_lipschitz\n")
    assert violations(wrong, "lipschitz.network.affine")


def test_only_the_adapter_imports_auto_lirpa():
    users = {p.name for p in sources() if any(n.split(".")[0] == "auto_LiRPA" for n in imported(p))}
    assert users == {"compat.py"}


@pytest.mark.parametrize("folder", ["benchmarks", "experiments"])
def test_every_script_can_be_imported(folder):
    """They are run rarely; a name that has moved is noticed here."""
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.name != "__init__.py":
            importlib.import_module(f"{folder}.{path.stem}")
