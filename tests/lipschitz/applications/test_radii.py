"""Certified radii: no attack within one succeeds, and on affine networks they are exact."""

import pytest
import torch
from cases import CASES, mlp
from curved import curved_model
from oracles import jacobians
from torch import nn

from lipschitz import BranchOptions, CertifyOptions, Prepared, certified_radius, make_problem
from lipschitz.applications import radii as certify
from lipschitz.applications.radii import certify_example, margins_at
from lipschitz.bounds.native import alpha
from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph

DUAL = {"inf": 1, "1": float("inf"), "2": 2}


def trained_like(seed, sizes=(6, 16, 16, 4)):
    """A network with large slopes, so that classes change nearby."""
    torch.manual_seed(seed)
    model = mlp(*sizes).double().eval()
    with torch.no_grad():
        for layer in model[1::2]:
            layer.weight.mul_(2.5)
    return model, torch.rand(sizes[0], dtype=torch.float64)


def project(delta, norm, radius):
    """Onto the ball: exactly for Linf and L2, by scaling for L1."""
    if norm == "inf":
        return delta.clamp(-radius, radius)
    length = torch.linalg.vector_norm(delta, ord=float(norm), dim=1, keepdim=True)
    return delta * (radius / length.clamp(min=1e-300)).clamp(max=1)


def is_flipped(model, x, label, norm, radius, steps=30) -> bool:
    """Projected gradient descent on every margin, from random points of the ball."""
    generator = torch.Generator().manual_seed(0)
    delta = project(
        radius * torch.randn(60, len(x), generator=generator, dtype=x.dtype), norm, radius
    )
    for step in range(steps):
        delta.requires_grad_()
        outputs = model(x + delta)
        others = outputs.clone()
        others[:, label] = -torch.inf
        margin = outputs[:, label] - others.max(1).values
        if bool((margin < 0).any()):
            return True
        (gradient,) = torch.autograd.grad(margin.sum(), delta)
        if norm == "inf":
            move = gradient.sign()
        elif norm == "1":
            best = gradient.abs().argmax(1, keepdim=True)
            move = torch.zeros_like(gradient).scatter(1, best, gradient.gather(1, best).sign())
        else:
            move = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-300)
        length = 2 * radius * (1 - step / steps)
        delta = project(delta.detach() - length * move, norm, radius)
    return False


@pytest.mark.parametrize("norm", DUAL)
def test_no_attack_within_the_radius_succeeds(norm):
    beyond = 0
    for seed in range(6):
        model, x = trained_like(seed)
        label = int(model(x[None]).argmax())
        found = certified_radius(model, x, label, norm=norm)
        assert found.radius > 0
        assert not is_flipped(model, x, label, norm, found.radius)
        # Negative control: the attack is strong enough to see a radius half as large again.
        beyond += is_flipped(model, x, label, norm, 1.5 * found.radius)
    assert beyond


def test_an_inflated_radius_is_caught(monkeypatch):
    """Negative control: with constants that are half the truth some radius is attacked."""
    true_bounds = certify._bounds
    monkeypatch.setattr(certify, "_bounds", lambda *a: true_bounds(*a) / 2)
    flipped = 0
    for seed in range(6):
        model, x = trained_like(seed)
        label = int(model(x[None]).argmax())
        flipped += is_flipped(
            model, x, label, "2", certified_radius(model, x, label, norm=2).radius
        )
    assert flipped


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("method", ["ibp", "alpha", "global"])
def test_an_affine_network_has_the_distance_to_its_planes(norm, method):
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double().eval()
    x = torch.rand(5, dtype=torch.float64)
    label = int(model(x[None]).argmax())
    outputs, weight = model(x[None])[0].detach(), model.weight.detach()
    others = [c for c in range(4) if c != label]
    lengths = torch.linalg.vector_norm(weight[label] - weight[others], ord=DUAL[norm], dim=1)
    exact = ((outputs[label] - outputs[others]) / lengths).min()
    found = certified_radius(model, x, label, norm=norm, method=method)
    assert found.radius == pytest.approx(float(exact), rel=1e-9)
    assert found.radius <= exact
    assert found.evaluations == 1
    assert found.margin == pytest.approx(float((outputs[label] - outputs[others]).min()))


def test_a_misclassified_example_has_no_radius():
    model, x = trained_like(0)
    outputs = model(x[None])[0]
    label, best = int(outputs.argmin()), int(outputs.argmax())
    found = certified_radius(model, x, label)
    assert (found.radius, found.evaluations, found.nearest) == (0, 0, best)
    assert found.margin < 0


def test_branch_and_bound_and_better_methods_reach_further():
    model, x = trained_like(1)
    label = int(model(x[None]).argmax())
    radii = [
        certified_radius(model, x, label, norm=2, method=m).radius
        for m in ("global", "recurjac", "crown")
    ]
    searched = certified_radius(
        model, x, label, norm=2, branching=BranchOptions(timeout=0.5)
    ).radius
    assert radii == sorted(radii)
    assert searched >= radii[-1] * 0.98  # up to where bisection stops
    assert not is_flipped(model, x, label, "2", searched)


def test_no_class_is_left_out_and_classes_can_be_chosen():
    model, x = trained_like(2)
    label = int(model(x[None]).argmax())
    whole = certified_radius(model, x, label)
    others = [c for c in range(4) if c != label]
    single = {c: certified_radius(model, x, label, classes=[c]).radius for c in others}
    assert whole.radius == pytest.approx(min(single.values()), rel=0.03)
    assert single[whole.nearest] == min(single.values())


def test_radii_of_interest_end_somewhere():
    model, x = trained_like(0)
    label = int(model(x[None]).argmax())
    far = certified_radius(model, x, label).radius
    near = certified_radius(model, x, label, options=CertifyOptions(largest=far / 3))
    assert near.radius == pytest.approx(far / 3)
    with torch.no_grad():
        model[-1].weight.zero_()
    constant = int(model(x[None]).argmax())
    assert certified_radius(model, x, constant).radius == pytest.approx(1000)


def test_inputs_outside_the_data_range_are_of_no_interest():
    model, x = trained_like(3)
    label = int(model(x[None]).argmax())
    assert (
        certified_radius(model, x, label, clip=(0.0, 1.0)).radius
        >= certified_radius(model, x, label).radius * 0.98
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_margins_allow_for_rounding(case):
    for dtype in (torch.float32, torch.float64):
        graph = build_graph(case.model(dtype), case.input_shape)
        problem = make_problem(graph, case.point(dtype), 0.0, margin_of=0)
        outputs = case.model(dtype).double()(case.point(dtype).double()[None])[0]
        true = outputs[0] - outputs[1:]
        margins = margins_at(problem)
        assert (margins <= true + 1e-15).all()
        close = 1e-9 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(margins, true, rtol=close, atol=close)


def test_the_gradient_at_the_example_limits_every_radius():
    model, x = trained_like(4)
    label = int(model(x[None]).argmax())
    jacobian = jacobians(model, x[None])[0]
    outputs = model(x[None])[0].detach()
    others = [c for c in range(4) if c != label]
    lengths = (jacobian[label] - jacobian[others]).norm(dim=1)
    limit = ((outputs[label] - outputs[others]) / lengths).min()
    assert certified_radius(model, x, label, norm=2).radius <= float(limit) * 1.002


def test_what_is_wrong_is_said():
    model, x = trained_like(0)
    with pytest.raises(InputError, match="label 9 does not exist"):
        certified_radius(model, x, 9)
    with pytest.raises(InputError, match="norm 3"):
        certified_radius(model, x, 0, norm=3)
    with pytest.raises(InputError, match="does not bound norm 2"):
        certified_radius(model, x, int(model(x[None]).argmax()), norm=2, method="lipmip")
    prepared = Prepared(model, (6,), method="alpha")
    with pytest.raises(InputError, match="NaN"):
        certify_example(prepared, x * float("nan"), 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": -0.1}, "^precision -0.1: expected a number, 0 or larger"),
        ({"precision": float("nan")}, "^precision nan: expected a number"),
        ({"most": 0}, "^most 0: expected a whole number, 1 or larger"),
        ({"most": 2.5}, "^most 2.5: expected a whole number"),
        ({"largest": 0}, "^largest 0: expected a positive number"),
        ({"largest": float("inf")}, "^largest inf: expected a positive number"),
    ],
)
def test_nonsense_options_are_refused_when_they_are_made(given, words):
    with pytest.raises(InputError, match=words):
        CertifyOptions(**given)


@pytest.mark.parametrize(("name", "norm"), [("tanh", "inf"), ("gelu", "2")])
def test_planes_reach_further_on_curved_networks(name, norm, monkeypatch):
    """Radii by planes are larger than by chords, those of a search too; no attack succeeds."""
    model = curved_model(name)
    x = torch.linspace(-0.8, 0.9, 3, dtype=torch.float64)
    label, options = int(model(x[None]).argmax()), CertifyOptions(precision=0.1, most=3)

    def radius(**given):
        return certified_radius(model, x, label, norm=norm, options=options, **given).radius

    with_planes, searched = radius(), radius(branching=BranchOptions(timeout=5, tolerance=1e-2))
    with monkeypatch.context() as patch:
        patch.setattr(alpha, "with_planes", lambda problem, root, **options: root)
        by_chords = radius()
    assert with_planes >= by_chords * 1.03
    assert searched >= by_chords * 1.03
    assert not is_flipped(model, x, label, norm, max(with_planes, searched))
