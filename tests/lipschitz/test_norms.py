"""Every norm on every network: no true Jacobian beats a bound, and the simple bounds are beaten."""

import pytest
import torch
from cases import CASES, REFERENCES, RandomNet, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import jacobians, points_in_box
from shared import graph_of, problem_of, sampled_jacobians
from torch import nn

from lipschitz import METHODS, MethodOptions, Prepared, local_lipschitz, make_problem
from lipschitz.bounds.native.backward.tangents import column_sums
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.interval import Interval, slope_intervals
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from lipschitz.norms import Measure, spectral_norm_bound
from lipschitz.words import norm_name

OPTIONS = MethodOptions(timeout=0.3)
# Of the lower bounds found beside an upper bound those of one method are enough.
FEW = Sampling(num_random=4, ascent_steps=2)


def dual(norm, jacobian):
    """Independent of the tool: dual norms of rows [..., R, D]."""
    order = {"inf": 1, "1": float("inf"), "2": 2}[norm]
    return torch.linalg.vector_norm(jacobian, ord=order, dim=-1)


def operator(norm, jacobian):
    """Operator norms of [..., R, D], by torch's own matrix norms."""
    order = {"inf": float("inf"), "1": 1, "2": 2}[norm]
    return torch.linalg.matrix_norm(jacobian, ord=order)


def measured(problem, jacobian):
    """What a problem's bounds are compared with, over points [P, C, *shape]: [Q]."""
    jacobian = problem.rows @ jacobian.flatten(2)
    if problem.outputs == "all" and problem.norm != "inf":
        return operator(problem.norm, jacobian).amax(0, keepdim=True)
    return dual(problem.norm, jacobian).amax(0)


def bound_of(case, method, norm, outputs, eps, dtype=torch.float64, sampling=None):
    problem = problem_of(case, eps, dtype, norm, outputs)
    prepared = Prepared(problem.graph, method=method, engine="native")
    return problem, prepared.bound(problem, sampling=sampling)


def upper_bounds_of(case, method, norm, outputs, eps):
    """The upper bounds alone, [Q]."""
    problem = problem_of(case, eps, torch.float64, norm, outputs)
    return Prepared(problem.graph, method=method, engine="native").upper_bounds(problem)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("norm", ["1", "2"])
@pytest.mark.parametrize("outputs", ["each", "all"])
def test_no_sampled_jacobian_beats_a_bound(case, norm, outputs):
    for eps, dtype in ((1e-3, torch.float32), (0.1, torch.float64), (3.0, torch.float64)):
        problem = problem_of(case, eps, dtype, norm, outputs)
        largest = measured(problem, sampled_jacobians(case, eps, dtype))
        for method in ("global", "ibp", "recurjac", "crown", "alpha"):
            sampling = None if method == "crown" else FEW
            _, result = bound_of(case, method, norm, outputs, eps, dtype, sampling)
            assert (largest <= torch.tensor(result.class_upper_bounds, dtype=dtype)).all()
            assert 0 <= result.lower_bound <= result.upper_bound == max(result.class_upper_bounds)
            assert (result.norm, result.outputs) == (norm, outputs)
            if result.witness is None:  # no gradient but 0 was found
                assert result.lower_bound == 0
                continue
            witness = jacobians(case.model(dtype), result.witness[None])
            assert result.lower_bound <= float(measured(problem, witness).max())


def test_a_bound_of_the_wrong_norm_is_caught():
    """Negative control: the largest row is not the operator norm, nor a square the norm."""
    each_is_too_small = square_is_too_small = 0
    for case in CASES:
        problem = problem_of(case, 0.3, torch.float64, "2", "all")
        largest = measured(problem, sampled_jacobians(case, 0.3))
        each = upper_bounds_of(case, "crown", "2", "each", 0.3).max()
        each_is_too_small += bool(largest > each)
        every = upper_bounds_of(case, "crown", "2", "all", 0.3)
        square_is_too_small += bool(largest > every**2)
    assert each_is_too_small
    assert square_is_too_small


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 1e-3, 0.05, 0.5, 2.0, 100.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    negative_slope=st.sampled_from([0.0, 0.2]),
    residual=st.booleans(),
)
def test_random_networks_and_boxes(sizes, seed, eps, scale, negative_slope, residual):
    model = RandomNet(sizes, seed, scale, negative_slope, residual)
    graph = build_graph(model, (sizes[0],))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sizes[0], generator=generator, dtype=torch.float64)
    for norm in ("1", "2"):
        for method in ("crown", "alpha", "lipbab"):
            for outputs in ("each", "all")[: 1 if method == "lipbab" else 2]:
                prepared = Prepared(graph, method=method, options=OPTIONS, norm=norm)
                problem = make_problem(graph, x, eps, norm=norm, outputs=outputs)
                result = prepared.bound(problem, sampling=FEW)
                points = points_in_box(problem.lower, problem.upper, 30, seed)
                largest = measured(problem, jacobians(model, points))
                bounds = torch.tensor(result.class_upper_bounds, dtype=torch.float64)
                assert (largest <= bounds + 1e-12 * (1 + largest)).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_l2_beats_frobenius_and_the_mean_of_l1_and_linf(case):
    for eps in (0.1, 1.0):
        bounds = {
            (method, norm, outputs): upper_bounds_of(case, method, norm, outputs, eps)
            for method in ("crown", "ibp")
            for norm in ("inf", "1", "2")
            for outputs in ("each", "all")
        }
        for outputs in ("each", "all"):
            sums, columns = bounds["crown", "inf", outputs], bounds["crown", "1", outputs]
            if outputs == "all":
                sums = sums.max()
            mixed = float((sums * columns).sqrt().max())
            upper = bounds["crown", "2", outputs].max()
            assert upper <= mixed * (1 + 1e-6)
            assert upper <= bounds["ibp", "2", outputs].max() * (1 + 1e-6)
        rows = bounds["ibp", "2", "each"]
        assert bounds["crown", "2", "all"].max() <= float(rows.norm()) * (1 + 1e-6)
        for norm in ("1", "2"):
            each, every = (bounds["crown", norm, o].max() for o in ("each", "all"))
            assert each <= every * (1 + 1e-6)


def test_l2_is_far_below_what_the_other_norms_give():
    """Measured: the mean of L1 and Linf is 24 there, Frobenius of intervals 33."""
    reference = next(r for r in REFERENCES if r.file.endswith("mlp_3layer_32") and r.eps == 0.2)
    result = local_lipschitz(
        reference.model(), reference.point(), 0.2, method="crown", norm=2, outputs="each"
    )
    assert result.upper_bound < 18


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
@pytest.mark.parametrize("outputs", ["each", "all"])
def test_an_affine_network_is_exact(norm, outputs):
    case = next(c for c in CASES if c.name == "affine")
    jacobian = jacobians(case.model(), case.point()[None])[0]
    expected = operator(norm, jacobian) if outputs == "all" else dual(norm, jacobian).max()
    for method in ("crown", "alpha", "ibp"):
        _, result = bound_of(case, method, norm, outputs, 0.7)
        assert result.upper_bound == pytest.approx(float(expected), rel=1e-12)
        assert result.status == "exact"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_point_has_its_jacobian_s_norm(case):
    jacobian = jacobians(case.model(), case.point()[None])[0].flatten(1)
    for norm in ("1", "2"):
        _, each = bound_of(case, "crown", norm, "each", 0.0)
        _, every = bound_of(case, "crown", norm, "all", 0.0)
        assert each.class_upper_bounds == pytest.approx(dual(norm, jacobian).tolist(), rel=1e-9)
        assert every.upper_bound == pytest.approx(float(operator(norm, jacobian)), rel=1e-9)
        assert every.lower_bound == pytest.approx(every.upper_bound, rel=1e-6)


def test_columns_bounded_jointly_are_no_looser_and_mostly_tighter():
    tighter = 0
    for case in CASES:
        problem = problem_of(case, 0.3, torch.float64, "1", "all")
        prepared = Prepared(graph_of(case), method="crown", norm="1")
        entry_wise = Measure("1", joint=True)
        jointly = upper_bounds_of(case, "crown", "1", "all", 0.3)
        entries = upper_bounds_of(case, "recurjac", "1", "all", 0.3)
        assert jointly <= entries * (1 + 1e-9)
        tighter += bool(jointly < entries * 0.99)
        assert entry_wise.joint == problem.measure.joint or len(problem.rows) == 1
        assert prepared.engine == "native"
    assert tighter >= 8


def test_a_tangent_that_starts_elsewhere_is_caught():
    """Negative control of the forward pass: columns of half the direction are too small."""
    case = CASES[1]
    graph = build_graph(case.model(), case.input_shape)
    problem = make_problem(graph, case.point(), 0.3, norm=1)
    points = points_in_box(problem.lower, problem.upper, 50)
    largest = float(measured(problem, jacobians(case.model(), points)))
    root = native_crown(problem)
    slopes = slope_intervals(graph, root.preacts)
    wide = Interval(*(end * 100 for end in root.norm.entries))
    sums, entries = column_sums(Plan(graph), problem, problem.measure, slopes, wide, 2**24)
    assert float(sums) >= largest
    assert (entries.upper < wide.upper).any()
    halved = {i: Interval(s.lower / 2, s.upper / 2) for i, s in slopes.items()}
    assert (
        float(column_sums(Plan(graph), problem, problem.measure, halved, wide, 2**24)[0]) < largest
    )


def test_free_inputs_only():
    torch.manual_seed(0)
    model = mlp(5, 8, 8, 3).double().eval()
    x = torch.rand(5, dtype=torch.float64)
    eps = torch.tensor([0.3, 0.0, 0.3, 0.0, 0.3], dtype=torch.float64)
    graph = build_graph(model, (5,))
    for norm in ("inf", "1", "2"):
        for outputs in ("each", "all"):
            problem = make_problem(graph, x, eps, norm=norm, outputs=outputs, inputs="free")
            points = points_in_box(problem.lower, problem.upper, 100)
            jacobian = jacobians(model, points)
            largest = float(measured(problem, jacobian[:, :, eps > 0]).max())
            whole = float(measured(problem, jacobian).max())
            options = {"norm": norm, "outputs": outputs, "method": "crown"}
            result = local_lipschitz(model, x, eps, inputs="free", **options)
            assert largest <= result.upper_bound
            every = local_lipschitz(model, x, eps, **options)
            # Inputs of radius 0 have derivatives all the same; leaving them out is another norm.
            assert whole <= every.upper_bound
            assert largest < whole
            assert result.upper_bound <= every.upper_bound
            witness = jacobians(model, result.witness[None])[:, :, eps > 0]
            assert result.lower_bound == pytest.approx(float(measured(problem, witness).max()))
    with pytest.raises(InputError, match="no input is free"):
        make_problem(graph, x, 0.0, inputs="free")


def test_pairs_are_the_margins_of_every_label():
    case = CASES[0]
    graph = build_graph(case.model(), case.input_shape)
    pairs = make_problem(graph, case.point(), 0.1, pairs=True, norm=2)
    assert pairs.row_names == ("0-1", "0-2", "1-2")
    assert pairs.outputs == "each"
    assert pairs.rows.tolist() == [[1, -1, 0], [1, 0, -1], [0, 1, -1]]
    prepared = Prepared(graph, method="crown", norm=2)
    upper = prepared.bound(pairs).upper_bound
    labels = [make_problem(graph, case.point(), 0.1, margin_of=y, norm=2) for y in range(3)]
    assert upper == pytest.approx(max(prepared.bound(p).upper_bound for p in labels))


def test_what_is_asked_decides_the_outputs():
    graph = build_graph(CASES[0].model(), CASES[0].input_shape)
    x = CASES[0].point()
    assert make_problem(graph, x, 0.1).outputs == "each"
    assert make_problem(graph, x, 0.1, norm=2).outputs == "all"
    assert make_problem(graph, x, 0.1, norm=2, margin_of=0).outputs == "each"
    assert not make_problem(graph, x, 0.1, norm=2, classes=[1]).measure.joint


@pytest.mark.parametrize(
    ("given", "name"), [(2, "2"), ("L2", "2"), (1.0, "1"), (float("inf"), "inf"), ("Linf", "inf")]
)
def test_names_of_norms(given, name):
    assert norm_name(given) == name


@pytest.mark.parametrize("given", ["3", "", "fro", -1])
def test_other_norms_are_refused(given):
    with pytest.raises(InputError, match="expected inf, 1, 2"):
        norm_name(given)


@pytest.mark.parametrize(
    ("method", "engine", "options", "message"),
    [
        ("crown", "auto_lirpa", {"norm": 2}, "use engine native"),
        ("crown", "auto_lirpa", {"inputs": "free"}, "use engine native"),
        ("lipmip", None, {"norm": 1}, "knows inf"),
        ("lipbab", None, {"norm": 2}, "outputs 'each'"),
        ("lipmip", None, {"inputs": "free"}, "counts all inputs"),
    ],
)
def test_what_a_method_does_not_bound_is_refused(method, engine, options, message):
    case = CASES[0]
    with pytest.raises(InputError, match=message):
        local_lipschitz(case.model(), case.point(), 0.1, method=method, engine=engine, **options)


def test_the_table_of_methods_names_known_norms():
    for method in METHODS.values():
        assert set(method.joint) <= set(method.norms) <= {"inf", "1", "2"}


def test_spectral_norm_bound():
    torch.manual_seed(0)
    for shape in ((3, 5), (40, 7), (1, 1), (300, 90), (90, 300)):
        orthogonal, _ = torch.linalg.qr(torch.randn(max(shape), max(shape), dtype=torch.float64))
        matrix = orthogonal[: shape[0], : shape[1]] * 3
        bound = spectral_norm_bound(matrix.float())
        assert float(bound) >= float(torch.linalg.matrix_norm(matrix.float().double(), ord=2))
        assert float(bound) <= 3 * (1 + 1e-6)


def test_the_square_s_chord_is_above_it_with_either_sign():
    torch.manual_seed(0)
    ends = torch.randn(200, 2, dtype=torch.float64) * torch.logspace(-3, 3, 200)[:, None]
    lower, upper = ends.sort(dim=1).values.T.unsqueeze(1).unbind(0)
    for sign in (-1.0, 0.0, 1.0):
        slope, intercept = Measure("2").chord(lower, upper, torch.full_like(lower, sign))
        for t in torch.linspace(0, 1, 21, dtype=torch.float64):
            g = lower + t * (upper - lower)
            part = g if sign == 0 else (sign * g).clamp(min=0)
            slack = 1e-12 * torch.maximum(lower.abs(), upper.abs()) ** 2
            assert (slope * g + intercept >= part**2 - slack).all()
        # Negative control: at one of the ends it touches, so a thousandth less would be too low.
        ends = torch.cat([lower, upper])
        part = ends if sign == 0 else (sign * ends).clamp(min=0)
        assert (slope * ends + intercept - 1e-3 * part**2 < part**2).any()


def test_an_output_that_ignores_the_input():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.zero_()
    for norm in (1, 2):
        for outputs in ("each", "all"):
            result = local_lipschitz(model, torch.ones(3), 0.1, norm=norm, outputs=outputs)
            assert result.upper_bound == 0


@pytest.mark.parametrize("size", [3, 200])
def test_spectral_bound_of_what_overflowed_is_not_a_number(size):
    """The others of the batch keep theirs, and nothing is raised."""
    matrices = torch.eye(size).repeat(3, 1, 1)
    matrices[0, 0, 1], matrices[1, 1, 0] = torch.inf, torch.nan
    found = spectral_norm_bound(matrices)
    assert found.isnan().tolist() == [True, True, False]
    assert 1 <= float(found[2]) < 1 + 1e-6
    assert Measure("2", joint=True)(matrices).isnan().flatten().tolist() == [True, True, False]
