"""Hessians and curvature against torch.func.hessian, closed forms and brute force."""

import itertools
import json
import math
import time

import curved
import pytest
import torch
from curved import Function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipschitz import InputError, build_graph, hessian_bounds, local_curvature
from lipschitz.bounds.clock import Clock
from lipschitz.bounds.native.curvature import HessianTerms
from lipschitz.bounds.native.hessian_matrices import matrix_bound
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.terms import relaxations
from lipschitz.bounds.native.terms.relaxations import Relaxations
from lipschitz.network.activations.derivative import Derivative
from lipschitz.search import curvature

DOUBLE = torch.float64
X = torch.linspace(-0.8, 0.9, 3, dtype=DOUBLE)


_CONTINUOUS = (
    *("elu", "tanh", "tanhshrink", "sigmoid", "logsigmoid", "softsign"),
    *("silu", "mish", "gelu", "gelu_tanh", "arctan", "sine"),
)
ACTIVATIONS = {
    **{name: curved.ACTIVATIONS[name] for name in _CONTINUOUS},
    "celu": nn.CELU(2.0),
    "softplus": nn.Softplus(3.0),
    "square": Function(torch.square),
}


def mlp(activation: nn.Module, sizes=(3, 6, 5, 2), seed: int = 0, dtype=DOUBLE) -> nn.Module:
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation]
    return nn.Sequential(*layers[:-1]).eval().to(dtype)


def neuron(activation: nn.Module, weights=(1.0, 1.0)) -> nn.Module:
    """``act(w . x)``."""
    model = nn.Sequential(nn.Linear(len(weights), 1), activation, nn.Linear(1, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))
        model[0].bias.zero_()
        model[2].weight.fill_(1.0)
        model[2].bias.zero_()
    return model.double()


def hessians(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    """[P, C, D, D]"""
    shape, dim = points.shape[1:], points[0].numel()

    def scalar(output):
        return lambda z: model(z.reshape(1, *shape))[0, output]

    count = model(points[:1]).shape[1]
    flat = points.double().flatten(1)
    found = [torch.func.vmap(torch.func.hessian(scalar(c)))(flat) for c in range(count)]
    return torch.stack(found, dim=1).detach().reshape(len(points), count, dim, dim)


def sampled(centre, eps, count=40):
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(count, *centre.shape, generator=generator, dtype=DOUBLE) * 2 - 1
    share[: count // 2] = share[: count // 2].sign()
    return centre.double() + eps * share


def norm_of(matrices, norm):
    """Brute force, over all sign vectors in Linf."""
    if norm == "2":
        return torch.linalg.matrix_norm(matrices, ord=2)
    if norm == "1":
        return matrices.abs().amax((-2, -1))
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=matrices.shape[-1])))
    return (matrices @ signs.to(matrices).T).abs().sum(-2).amax(-1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_true_hessian_is_inside(name):
    model, norms = mlp(ACTIVATIONS[name]), ("inf", "2", "1")
    one = norms[sorted(ACTIVATIONS).index(name) % 3]
    for eps, norms_there in ((1e-3, (one,)), (0.5, norms)):
        found = hessians(model, sampled(X, eps))
        bounds = hessian_bounds(model, X, eps)
        slack = 1e-12 * found.abs().max()
        assert bool(((found >= bounds.lower - slack) & (found <= bounds.upper + slack)).all())
        assert bool((bounds.lower == bounds.lower.mT).all())
        for norm in norms_there:
            result = local_curvature(model, X, eps, norm, search=False)
            rows = torch.tensor(result.class_upper_bounds, dtype=DOUBLE)
            assert bool((norm_of(found, norm).amax(0) <= rows * (1 + 1e-12)).all())
            at_witness = norm_of(hessians(model, result.witness[None]), norm).max()
            assert result.lower_bound <= float(at_witness) * (1 + 1e-12)
            assert result.lower_bound <= result.upper_bound


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_the_search_ends_and_no_climb_beats_it(norm, dtype):
    model = mlp(nn.Tanh(), (3, 8, 8, 2), dtype=dtype)
    result = local_curvature(model, X, 0.1, norm, timeout=30, tolerance=1e-3)
    assert result.status == "exact"
    assert (result.method, result.engine, result.norm) == ("curvature", "native", norm)
    assert result.root_upper_bound >= result.upper_bound
    model = model.double()
    point, best = result.witness.double(), 0.0
    moves = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3)), dtype=DOUBLE)
    for step in (0.05, 0.02, 0.01, 0.005):  # a coordinate search from the witness
        trials = torch.minimum(torch.maximum(point + step * moves, X - 0.1), X + 0.1)
        best = max(best, float(norm_of(hessians(model, trials), norm).max()))
    assert best <= result.upper_bound * (1 + 1e-6)
    assert json.loads(json.dumps(result.to_dict()))["status"] == "exact"


@pytest.mark.parametrize(
    ("activation", "largest"),
    [
        (nn.Tanh(), 4 / (3 * math.sqrt(3))),
        (nn.Sigmoid(), 1 / (6 * math.sqrt(3))),
        (nn.Softplus(), 0.25),
        (Function(torch.sin), 1.0),
    ],
)
@pytest.mark.parametrize(("norm", "factor"), [("inf", 9.0), ("2", 5.0), ("1", 4.0)])
def test_one_neuron_has_the_largest_second_derivative(activation, largest, norm, factor):
    """``H = act''(w . x) w w^T``, with the norms (sum |w|)^2, |w|_2^2 and max |w|^2."""
    model = neuron(activation, (1.0, -2.0))
    result = local_curvature(model, torch.zeros(2), 2.0, norm, timeout=30)
    assert result.status == "exact"
    assert result.lower_bound <= largest * factor <= result.upper_bound
    assert result.upper_bound == pytest.approx(largest * factor, rel=2e-4)


def test_a_quadratic_form_is_exact_at_once():
    """x^T A x as a sum of squares: the Hessian is 2 A everywhere."""
    weight = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]])
    model = nn.Sequential(nn.Linear(3, 2, bias=False), Function(torch.square), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[2].weight.copy_(torch.tensor([[1.0, -2.0]]))
    matrix = 2 * weight.T @ torch.diag(torch.tensor([1.0, -2.0])) @ weight
    model, matrix = model.eval().double(), matrix.double()
    bounds = hessian_bounds(model, X, 5.0)
    torch.testing.assert_close(bounds.lower[0], matrix, rtol=0, atol=1e-10)
    torch.testing.assert_close(bounds.upper[0], matrix, rtol=0, atol=1e-10)
    for norm in ("inf", "2", "1"):
        result = local_curvature(model, X, 5.0, norm, search=False)
        assert result.status == "exact"
        assert result.upper_bound == pytest.approx(float(norm_of(matrix, norm)), rel=1e-9)


def test_a_kink_of_the_slope_has_both_sides():
    """ELU: 1 before 0 and 0 after it; softsign: 2 and -2."""
    point = torch.zeros(1, dtype=DOUBLE)
    for activation, least, most in ((nn.ELU(), 0.0, 1.0), (nn.Softsign(), -2.0, 2.0)):
        model = neuron(activation, (1.0,))
        for eps in (0.0, 1e-6):
            bounds = hessian_bounds(model, point, eps)
            assert float(bounds.lower) <= least
            assert most <= float(bounds.upper) <= most + 1e-4
    assert local_curvature(neuron(nn.ELU(), (1.0,)), point, 1.0).upper_bound >= 1.0


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_convolution(norm):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)
    )
    model, x = model.eval().double(), torch.rand(1, 4, 4, dtype=DOUBLE)
    found = hessians(model, sampled(x, 0.2, 12))
    bounds = hessian_bounds(model, x, 0.2)
    assert bounds.lower.shape == (2, 1, 4, 4, 1, 4, 4)
    lower, upper = (end.reshape(2, 16, 16) for end in (bounds.lower, bounds.upper))
    assert bool(((found >= lower - 1e-12) & (found <= upper + 1e-12)).all())
    result = local_curvature(model, x, 0.2, norm, timeout=1)
    largest = norm_of(found, norm) if norm != "inf" else found.diagonal(dim1=2, dim2=3).abs().sum(2)
    assert float(largest.max()) <= result.upper_bound
    assert result.lower_bound <= result.upper_bound


def test_products_with_directions():
    model = mlp(nn.SiLU())
    directions = torch.tensor([[1.0, 0.0, 0.0], [1.0, -1.0, 2.0]], dtype=DOUBLE)
    entries = hessian_bounds(model, X, 0.1)
    products = hessian_bounds(model, X, 0.1, directions=directions)
    assert products.lower.shape == (2, 2, 3)
    found = hessians(model, sampled(X, 0.1)) @ directions.T
    found = found.transpose(2, 3)
    assert bool(((found >= products.lower - 1e-12) & (found <= products.upper + 1e-12)).all())
    # One linear bound is no wider than the sum of the entries' intervals.
    summed = (entries.upper - entries.lower) @ directions[1].abs()
    assert bool((products.upper - products.lower)[:, 1].le(summed * 1.01).all())
    one = hessian_bounds(model, X, 0.1, directions=directions[1], classes=1)
    assert one.row_names == ("1",)
    torch.testing.assert_close(one.upper[0, 0], products.upper[1, 1], rtol=0.02, atol=1e-6)


def test_the_width_of_a_bound_of_the_norm_shrinks_with_the_square():
    """The excess over the true constant, root only: slope 2, as planes promise."""
    model, excess = mlp(nn.Tanh()), []
    for eps in (1e-3, 1e-2):
        root = local_curvature(model, X, eps, search=False)
        excess.append(root.upper_bound / root.lower_bound - 1)
    assert math.log10(excess[1] / excess[0]) > 1.6


class _Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_layer_normalisation(norm):
    """Its variance may be nearly 0 on a wide box, as far as intervals know."""
    torch.manual_seed(1)
    model = _Normalised().eval()
    for eps in (0.01, 0.3, 3.0):
        found = hessians(model.double(), sampled(X, eps))
        result = local_curvature(model.float(), X, eps, norm, search=False)
        assert float(norm_of(found, norm).max()) <= result.upper_bound < math.inf
        assert 0 < result.lower_bound <= result.upper_bound
        assert eps > 0.01 or result.upper_bound < 2 * result.lower_bound


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_box_on_which_numbers_overflow_leaves_the_others_alone(norm):
    torch.manual_seed(1)
    graph = build_graph(_Normalised().eval(), (3,))
    terms, rows = HessianTerms(graph, 2**24), torch.eye(2)

    def bounds(*radii: float) -> torch.Tensor:
        radius, centre = torch.tensor(radii).unsqueeze(1), X.float()
        box = Interval(centre - radius, centre + radius)
        return matrix_bound(terms, norm, box, rows[: len(radii)])[0]

    small, wide = bounds(0.01, 1e30)
    assert float(small) == pytest.approx(float(bounds(0.01)), rel=1e-5)
    assert float(wide) == math.inf


def test_rows_box_and_clip():
    model = mlp(nn.Tanh())
    margin = torch.tensor([[1.0, -1.0]], dtype=DOUBLE)
    by_rows = hessian_bounds(model, rows=margin, box=(X - 0.1, X + 0.1))
    found = hessians(model, sampled(X, 0.1))
    found = found[:, 0] - found[:, 1]
    assert bool(((found >= by_rows.lower[0]) & (found <= by_rows.upper[0])).all())
    assert by_rows.row_names == ("row0",)
    cut = hessian_bounds(model, X, 0.5, clip=(-0.8, 0.9))
    whole = hessian_bounds(model, X, 0.5)
    assert float((cut.upper - cut.lower).sum()) < float((whole.upper - whole.lower).sum())
    assert json.loads(json.dumps(cut.to_dict()))["row_names"] == ["0", "1"]


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_an_affine_network_has_no_curvature(norm):
    model = nn.Linear(3, 2).eval()
    result = local_curvature(model, torch.zeros(3), 0.1, norm)
    assert (result.status, result.upper_bound, result.lower_bound) == ("exact", 0.0, 0.0)
    assert result.class_upper_bounds == (0.0, 0.0)
    assert float(hessian_bounds(model, torch.zeros(3), 0.1).upper.abs().max()) == 0
    along = hessian_bounds(model, torch.zeros(3), 0.1, directions=torch.ones(3))
    assert along.upper.shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (nn.ReLU(), "ReLU .* straight pieces"),
        (nn.LeakyReLU(), "LeakyReLU.* straight pieces"),
        (nn.PReLU(), "PReLU .* straight pieces"),
        (nn.Hardtanh(), "Hardtanh.* straight pieces"),
        (nn.ReLU6(), "straight pieces"),
        (nn.Softshrink(), "Softshrink.* straight pieces"),
        (Function(torch.abs), "abs .* straight pieces"),
        (nn.ELU(2.0), "slope of ELU.* jumps"),
        (nn.SELU(), "slope of SELU .* jumps"),
        (nn.Hardswish(), "slope of Hardswish .* jumps"),
    ],
)
def test_what_has_no_curvature_is_refused_by_name(activation, words, monkeypatch):
    model = mlp(activation, (3, 4, 2))
    monkeypatch.setattr(curvature, "_Curvature", None)  # nothing is bounded before
    for call in (local_curvature, hessian_bounds):
        with pytest.raises(InputError, match=words) as error:
            call(model, X, 0.1)
        assert "\n" not in str(error.value)


def test_max_pooling_is_refused_by_its_name():
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten()).eval()
    with pytest.raises(InputError, match="max pooling"):
        local_curvature(model, torch.zeros(1, 3, 3), 0.1)


def test_arguments_are_refused_in_one_line():
    model = mlp(nn.Tanh())
    for wrong in (
        {"norm": "3"},
        {"timeout": 0},
        {"timeout": "soon"},
        {"tolerance": -1},
        {"search": "yes"},
        {"classes": 7},
        {"seed": -1},
    ):
        with pytest.raises(InputError):
            local_curvature(model, X, 0.1, **wrong)
    with pytest.raises(InputError, match="directions have shape"):
        hessian_bounds(model, X, 0.1, directions=torch.ones(4))
    with pytest.raises(InputError, match="either eps"):
        hessian_bounds(model, X)
    with pytest.raises(InputError, match="not a finite number"):
        local_curvature(mlp(Function(torch.square), dtype=torch.float32), X, 1e30)


def test_a_wrong_plane_is_caught(monkeypatch):
    """Negative control."""
    real = Relaxations.product

    def wrong(self, index, coefficients, shares):
        of_v, of_g, constant, size = real(self, index, coefficients, shares)
        return of_v, of_g, constant - 0.1 * size, size

    monkeypatch.setattr(relaxations.Relaxations, "product", wrong)
    with pytest.raises((AssertionError, ArithmeticError)):
        test_every_true_hessian_is_inside("tanh")


def test_a_wrong_second_derivative_is_caught(monkeypatch):
    """Negative control: intervals of the second derivative cut by a fifth."""
    real = Derivative.interval

    def wrong(self, lower, upper):
        least, most = real(self, lower, upper)
        if self.order == 1:
            return least, most
        cut = 0.2 * (most - least)
        return least + cut, most - cut

    monkeypatch.setattr(Derivative, "interval", wrong)
    with pytest.raises((AssertionError, ArithmeticError)):
        test_every_true_hessian_is_inside("tanh")


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_a_time_limit_is_kept(norm):
    model = mlp(nn.Tanh(), (6, 64, 64, 64, 3), dtype=torch.float32)
    local_curvature(model, torch.zeros(6), 0.01, norm, timeout=0.2)  # what is set up once
    begin = time.perf_counter()
    result = local_curvature(model, torch.zeros(6), 2.0, norm, timeout=1.0, tolerance=0.0)
    assert time.perf_counter() - begin < 1.6  # a tenth, and what else the machine does
    assert result.status == "timeout"
    assert 0 < result.lower_bound < result.upper_bound < math.inf


def test_hardly_any_time_still_gives_bounds():
    model = mlp(nn.Tanh())
    result = local_curvature(model, X, 0.5, timeout=1e-6)
    assert result.status == "timeout"
    assert result.not_reached
    true = norm_of(hessians(model, sampled(X, 0.5)), "inf").max()
    assert float(true) <= result.upper_bound < math.inf


@pytest.mark.parametrize(("norm", "inputs"), [("inf", 3), ("inf", 14), ("2", 3), ("1", 3)])
def test_bounds_hold_wherever_the_time_ends(norm, inputs, monkeypatch):
    """A time that stands still for so many looks at it, and is then over."""
    model, x = mlp(nn.Tanh(), (inputs, 6, 2)), torch.linspace(-0.8, 0.9, inputs, dtype=DOUBLE)
    found, uppers = hessians(model, sampled(x, 0.3, 20)), []
    true = norm_of(found, norm).max() if inputs < 13 else found.abs().sum((2, 3)).max() / 1.8
    for looks in (0, 3, 9, 27, 81, 243, 10**6):
        left = itertools.chain(itertools.repeat(0.0, looks), itertools.repeat(1e9))
        clock = Clock(1.0, lambda left=left: next(left))
        monkeypatch.setattr(curvature.Clock, "of", lambda seconds, clock=clock: clock)
        result = local_curvature(model, x, 0.3, norm, search=False)
        assert float(true) <= result.upper_bound * (1 + 1e-12)
        assert result.upper_bound < math.inf
        assert (result.status == "timeout") == bool(clock.missed)
        at = hessians(model, result.witness[None]) if result.witness is not None else found * 0
        assert inputs > 12 or result.lower_bound <= float(norm_of(at, norm).max()) * (1 + 1e-12)
        uppers.append(result.upper_bound)
    assert uppers[-1] < uppers[0]
    assert not clock.missed


def test_many_inputs_and_little_time():
    """Nothing that grows with the square or cube of the inputs is begun without the time for it."""
    model = mlp(nn.Sigmoid(), (784, 50, 10), dtype=torch.float32)
    for norm in ("inf", "2", "1"):
        local_curvature(model, torch.zeros(784), 0.1, norm, timeout=0.1)  # what is set up once
        begin = time.perf_counter()
        result = local_curvature(build_graph(model, (784,)), torch.zeros(784), 0.1, norm, timeout=1)
        assert time.perf_counter() - begin < 2.5  # five to seven before; and what else is running
        assert 0 < result.lower_bound < result.upper_bound < math.inf


@pytest.mark.parametrize("where", ["sample", "root", "search"])
def test_an_interrupt_returns_what_is_certified(where, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "search":
        monkeypatch.setattr(curvature.DirectionSearch, "children", interrupt)
    else:
        monkeypatch.setattr(curvature._Curvature, where, interrupt)
    model = mlp(nn.Tanh())
    result = local_curvature(model, X, 0.5)
    assert result.status == "interrupted"
    true = float(norm_of(hessians(model, sampled(X, 0.5)), "inf").max())
    assert true <= result.upper_bound * (1 + 1e-12)
    assert result.upper_bound < math.inf


def test_many_inputs():
    """Beyond the inputs for which all sign vectors are tried; weights instead."""
    model = mlp(nn.Sigmoid(), (16, 8, 2))
    x = torch.linspace(-1, 1, 16, dtype=DOUBLE)
    result = local_curvature(model, x, 0.05, timeout=2, tolerance=0.01)
    found = hessians(model, sampled(x, 0.05, 10))
    signs = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).sign().double()
    assert float((found @ signs.T).abs().sum(2).max()) <= result.upper_bound
    assert result.lower_bound <= float(norm_of(hessians(model, result.witness[None]), "inf").max())
    assert result.upper_bound < float(found.abs().sum((2, 3)).amax()) * 1.5


def test_a_fixed_input_is_no_obstacle():
    model = mlp(nn.Tanh())
    eps = torch.tensor([0.1, 0.0, 0.1], dtype=DOUBLE)
    for norm in ("inf", "2", "1"):
        result = local_curvature(model, X, eps, norm, timeout=20)
        assert result.status == "exact"
        true = norm_of(hessians(model, X + eps * (sampled(X, 1.0) - X)), norm).max()
        assert float(true) <= result.upper_bound * (1 + 1e-12)
    point = local_curvature(model, X, 0.0)
    assert point.upper_bound == pytest.approx(float(norm_of(hessians(model, X[None]), "inf").max()))


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    name=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(0, 100),
    eps=st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
    norm=st.sampled_from(["inf", "2", "1"]),
)
def test_small_networks(sizes, name, seed, eps, norm):
    model = mlp(ACTIVATIONS[name], (*sizes, 2), seed)
    x = torch.randn(sizes[0], generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    graph = build_graph(model, (sizes[0],))
    result = local_curvature(graph, x, eps, norm, timeout=0.3)
    true = norm_of(hessians(model, sampled(x, eps, 10)), norm).max()
    assert float(true) <= result.upper_bound * (1 + 1e-9) + 1e-12
    assert result.lower_bound <= result.upper_bound * (1 + 1e-12)
