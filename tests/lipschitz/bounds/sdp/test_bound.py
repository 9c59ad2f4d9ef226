"""The method ``sdp`` as a whole: certified, tight, and never above the linear bound."""

import dataclasses
import json
from functools import cache
from itertools import pairwise

import pytest
import torch
from cases import CASES, REFERENCE, REFERENCES, Case
from oracles import jacobians, points_in_box
from shared import problem_of, sampled_jacobians
from torch import Tensor

import lipschitz.bounds.sdp.bound as bound_module
import main
from lipschitz import local_lipschitz
from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.alpha import native_alpha
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.sdp.bound import SdpOptions, sdp_bounds, tightened
from lipschitz.bounds.sdp.boxes import (
    Effort,
    Solved,
    largest_size,
    root_facts,
    solve_boxes,
    warm_starts,
)
from lipschitz.bounds.sdp.recovery import points_to_try
from lipschitz.network.tracing import build_graph
from lipschitz.problem import LocalProblem, make_problem
from lipschitz.words import INTERRUPTED, TIMEOUT
from models import build_model
from utils import run_cli

MLP_16 = ["--data", "simple", "--model", "simple_mlp_3layer", "--width", "16", "--load"]
MLP_16.append(str(REFERENCE / "simple_mlp_3layer_16.pth"))


@cache
def reference_problem(file: str, eps: float, dtype=torch.float64):
    reference = next(r for r in REFERENCES if (r.file, r.eps) == (file, eps))
    graph = build_graph(reference.model(dtype), (16,))
    return make_problem(graph, reference.point(dtype), eps), reference


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_between_true_gradients_and_the_linear_bound(case: Case, dtype, norm):
    problem = problem_of(case, 0.7, dtype, norm)
    outcome = sdp_bounds(problem, SdpOptions(timeout=5, sweeps=10))
    gradients = sampled_jacobians(case, 0.7, dtype, 200).flatten(2)
    true = (gradients.norm(dim=2) if norm == "2" else gradients.abs().sum(2)).amax(0)
    rounding = 1e-5 if dtype == torch.float32 else 1e-9
    bounds, found = outcome.class_upper_bounds, outcome.found
    assert (bounds >= true * (1 - rounding)).all()
    assert (bounds <= native_alpha(problem).class_upper_bounds).all()
    assert (found.norms <= bounds).all()
    assert (found.norms.max() >= true.max() * 0.9).all()
    at = jacobians(case.model(dtype), found.witnesses).flatten(2)
    at = at.norm(dim=2) if norm == "2" else at.abs().sum(2)
    assert at.diagonal() == pytest.approx(found.norms, rel=rounding)


def test_half_of_it_is_caught():
    """Negative control: the comparison with true gradients is not vacuous."""
    bounds = sdp_bounds(problem_of(CASES[1], 0.7)).class_upper_bounds
    gradients = sampled_jacobians(CASES[1], 0.7, torch.float64, 200)
    assert (bounds / 2 < gradients.abs().sum(2).amax(0)).all()


@pytest.mark.parametrize(
    ("file", "eps", "most"),
    [
        ("simple_mlp_3layer_16", 0.05, 22.9),
        ("simple_mlp_3layer_16", 0.2, 23.75),
        ("simple_mlp_3layer_32", 0.05, 32.7),
        ("simple_mlp_3layer_32", 0.2, 36.1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tight_on_the_reference_networks(file, eps, most, dtype):
    problem, reference = reference_problem(file, eps, dtype)
    outcome = sdp_bounds(problem, SdpOptions(timeout=30))
    upper_bound = float(outcome.class_upper_bounds.max())
    assert (reference.exact or 32.9) * (1 - 1e-6) <= upper_bound <= most
    assert float(outcome.found.norms.max()) >= 0.9 * upper_bound
    if reference.exact is not None:
        assert float(outcome.found.norms.max()) <= reference.exact * (1 + 1e-6)


@cache
def nearly_optimal() -> float:
    problem, _ = reference_problem("simple_mlp_3layer_32", 0.05)
    return float(sdp_bounds(problem, SdpOptions(tolerance=1e-5)).class_upper_bounds.max())


@pytest.mark.parametrize("sweeps", [1, 12, 500])
def test_the_gap_says_how_far_the_optimum_may_be(sweeps):
    """No certified bound of the same program is further below than the gap."""
    problem, _ = reference_problem("simple_mlp_3layer_32", 0.05)
    best = nearly_optimal()
    outcome = sdp_bounds(problem, SdpOptions(sweeps=sweeps))
    upper_bound = float(outcome.class_upper_bounds.max())
    assert 0 < outcome.solver_gap < (1e-3 if sweeps == 500 else 0.1)
    assert upper_bound * (1 - outcome.solver_gap) <= best * (1 + 1e-6)
    if sweeps == 1:  # negative control: a tenth of it would be too little
        assert upper_bound * (1 - outcome.solver_gap / 10) > best * (1 + 1e-6)


def test_outputs_that_cannot_hold_the_maximum_keep_their_linear_bound():
    problem, _ = reference_problem("simple_mlp_3layer_32", 0.2)
    outcome = sdp_bounds(problem, SdpOptions(timeout=30))
    linear, most = outcome.root_upper_bounds, outcome.found.norms.max()
    pruned = outcome.class_upper_bounds == linear
    assert (linear[pruned] <= most * 1.001).all()
    assert (outcome.class_upper_bounds[~pruned] < linear[~pruned]).all()
    alone = dataclasses.replace(problem, rows=problem.rows[:3], row_names=("0", "1", "2"))
    few = sdp_bounds(alone, SdpOptions(timeout=30))
    assert few.class_upper_bounds.max() <= outcome.class_upper_bounds[:3].max() * 1.001


def test_margins_have_programs_too():
    case = CASES[1]
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 1.0, margin_of=1)
    outcome = sdp_bounds(problem)
    gradients = jacobians(case.model(), points_in_box(problem.lower, problem.upper, 300))
    true = torch.einsum("rc,pcd->prd", problem.rows, gradients).abs().sum(2).amax(0)
    assert (outcome.class_upper_bounds >= true * (1 - 1e-9)).all()
    linear = native_alpha(problem).class_upper_bounds
    assert float(outcome.class_upper_bounds.max()) < float(linear.max()) * 0.98


def test_only_inputs_that_count_are_summed():
    case = CASES[1]
    eps = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), eps, inputs="free")
    every = make_problem(graph, case.point(), eps)
    gradients = jacobians(case.model(), points_in_box(problem.lower, problem.upper, 300))
    true = gradients[..., eps > 0].abs().sum(2).amax(0)
    bounds = sdp_bounds(problem).class_upper_bounds
    assert (bounds >= true * (1 - 1e-9)).all()
    assert float(bounds.max()) < float(sdp_bounds(every).class_upper_bounds.max())


def solved_at_root(problem: LocalProblem, rows: Tensor, sweeps: int) -> Solved:
    """Programs of the whole box, from a cold start."""
    root = native_alpha(problem)
    starts, nothing = warm_starts(problem, root), torch.full_like(rows, -1)
    facts, known = root_facts(problem, root, rows), root.class_upper_bounds[rows]
    with torch.no_grad():
        return solve_boxes(problem, facts, known, Effort(1e-6, sweeps), starts, nothing)


def test_alone_and_in_batches_meet(monkeypatch):
    problem, _ = reference_problem("simple_mlp_3layer_32", 0.05)
    in_batches = sdp_bounds(problem, SdpOptions(timeout=30)).class_upper_bounds.max()
    monkeypatch.setattr(bound_module, "_LONG", 0.0)
    alone = sdp_bounds(problem, SdpOptions(timeout=30)).class_upper_bounds.max()
    assert float(alone) == pytest.approx(float(in_batches), rel=2e-3)


def test_a_program_may_be_stopped_after_any_sweep():
    problem, reference = reference_problem("simple_mlp_3layer_16", 0.2)
    linear = native_alpha(problem).class_upper_bounds
    row = linear.argmax()[None]
    bounds = [
        float(solved_at_root(problem, row, sweeps).upper_bound) for sweeps in (0, 1, 30, 100, 400)
    ]
    for before, after in pairwise([float(linear.max()), *bounds]):
        assert reference.exact * 0.5 < after <= before * (1 + 1e-9)
    assert bounds[-1] < bounds[0] < float(linear.max())
    assert bounds[-1] >= 22


def test_points_read_off_a_solution_lie_in_the_box():
    for case in CASES:
        problem = problem_of(case, 0.5)
        solved = solved_at_root(problem, torch.arange(len(problem.rows))[:1], 5)
        with torch.no_grad():
            points = points_to_try(problem, solved.sweeps)
        assert points.shape[1:] == (1, *case.input_shape)
        assert (points >= problem.lower).all()
        assert (points <= problem.upper).all()


def test_a_thousand_unstable_neurons_are_no_obstacle():
    torch.manual_seed(0)
    model = build_model("mnist_cnn_4layer").eval()
    x = torch.rand(1, 28, 28)
    problem = make_problem(build_graph(model, x.shape), x, 0.02)
    problem = dataclasses.replace(problem, rows=problem.rows[:1], row_names=("0",))
    root = native_crown(problem)
    assert largest_size(problem, root) > 1500
    outcome = tightened(problem, root, Clock.of(120), SdpOptions())
    true = jacobians(model, points_in_box(problem.lower, problem.upper, 50))[:, 0].flatten(1)
    upper_bound = float(outcome.class_upper_bounds)
    assert float(true.abs().sum(1).max()) <= upper_bound < 0.8 * float(root.class_upper_bounds)
    assert float(outcome.found.norms) <= upper_bound


# --- limits -------------------------------------------------------------------------------------


def test_no_time_gives_the_linear_bound():
    problem, _ = reference_problem("simple_mlp_3layer_32", 0.2)
    outcome = sdp_bounds(problem, SdpOptions(timeout=0))
    assert outcome.status == TIMEOUT
    assert torch.isfinite(outcome.class_upper_bounds).all()
    assert float(outcome.class_upper_bounds.max()) >= 32.9
    assert "slope optimisation" in outcome.not_reached
    assert outcome.solver_gap is None


@pytest.mark.parametrize("calls", [1, 2])
def test_an_interrupt_returns_what_is_certified(monkeypatch, calls):
    problem, _ = reference_problem("simple_mlp_3layer_32", 0.2)
    left = [calls]
    solve_boxes = bound_module.solve_boxes

    def interrupting(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return solve_boxes(*arguments)

    monkeypatch.setattr(bound_module, "solve_boxes", interrupting)
    outcome = sdp_bounds(problem, SdpOptions(timeout=30))
    assert outcome.status == INTERRUPTED
    changed = (outcome.class_upper_bounds < outcome.root_upper_bounds).sum()
    assert int(changed) == calls - 1
    assert (outcome.found.norms <= outcome.class_upper_bounds).all()


# --- the call and the command -------------------------------------------------------------------


def test_from_the_library():
    reference = REFERENCES[2]
    result = local_lipschitz(reference.model(), reference.point(), 0.2, method="sdp")
    assert reference.exact <= result.upper_bound <= 23.75
    assert result.lower_bound <= reference.exact * (1 + 1e-9)
    assert (result.method, result.engine) == ("sdp", "native")


def run(*argv: str) -> int:
    return run_cli(main.main, [*MLP_16, "--eps", "0.2", "--quiet", *argv])


@pytest.mark.parametrize(
    "argv",
    [
        ["--method", "sdp"],
        ["--bab", "--sdp", "always"],
        ["--bab", "--sdp", "never"],
        ["--bab"],
    ],
    ids=" ".join,
)
def test_from_the_command_line(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*argv, "--timeout", "20", "--output", "rows.jsonl") == 0
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert 23.2567 * (1 - 1e-5) <= row["upper_bound"] <= 23.75
    assert row["lower_bound"] <= 23.2567 * (1 + 1e-5)
    assert row["status"] == ("bound" if argv[-1] == "sdp" else "exact")
    if argv[-1] == "sdp":
        assert 0 < row["solver_gap"] <= 1e-3
    else:
        assert row["solver_gap"] is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bab", "--sdp", "sometimes"], "sdp 'sometimes': expected auto, always, never"),
        (["--bab", "--engine", "auto_lirpa", "--sdp", "always"], "no semidefinite bounds"),
        (["--method", "sdp", "--engine", "auto_lirpa"], "does not run on engine 'auto_lirpa'"),
    ],
    ids=lambda p: " ".join(p) if isinstance(p, list) else "",
)
def test_a_mistake_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
