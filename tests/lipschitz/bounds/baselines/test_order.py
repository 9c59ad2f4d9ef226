"""All methods together, in the order that theory promises.

What is a theorem here, for every row and up to rounding, on the native engine:

- every upper bound >= the constant >= every lower bound (soundness);
- global >= ibp: intervals sum what the product of norms takes the largest of;
- ibp >= fastlip, whose stable neurons include interval arithmetic's;
- ibp >= recurjac >= crown: the lines of each lie within those of the one before, around
  pre-activation bounds that are the same for recurjac and crown;
- crown >= alpha >= bab and lipmip, and ibp >= lipbab: each starts from the bound of the one before
  it and keeps the better of that and its own, unless the clock stops it in its start;
- the product of spectral norms, times the square root of the inputs, >= lipsdp and eclipse (tested
  with these).

No theorem orders fastlip and recurjac, lipsdp or eclipse and any local method (that they are above
crown below holds for these networks only), the bounds reached at a time limit by methods that are
exact in the end, or crown on different engines: auto_LiRPA optimises other slopes.
"""

import importlib.util
from itertools import pairwise

import pytest
import torch
from cases import CASES, REFERENCES
from shared import problem_of

from lipschitz import METHODS, BranchOptions, MethodOptions, Prepared, make_problem
from lipschitz.bounds.true_gradients import Sampling

ORDER = ["global", "ibp", "recurjac", "crown", "alpha", "bab"]
SMALL = [r for r in REFERENCES if r.eps <= 0.02 or (r.eps, r.file[-2:]) == (0.05, "16")]
INSTALLED = [
    name
    for name, entry in METHODS.items()
    if entry.extra and importlib.util.find_spec(entry.extra.replace("-", "_")) is not None
]


def result_of(method, model, point, eps, timeout=30.0):
    prepared = Prepared(
        model,
        tuple(point.shape),
        method="crown" if method == "bab" else method,
        engine="native",
        options=MethodOptions(timeout=timeout),
        branching=BranchOptions(timeout=timeout) if method == "bab" else None,
    )
    return prepared.bound(make_problem(prepared.graph, point, eps))


@pytest.mark.parametrize("reference", SMALL, ids=lambda r: f"{r.file}-{r.eps}")
def test_every_method_is_in_its_place(reference):
    """The theorems, and that each step of the order is a strict one on these networks."""
    model, point, eps = reference.model(), reference.point(), reference.eps
    others = ["fastlip", "lipmip", "lipbab", "sampling", *INSTALLED]
    # LipSDP may stop where it likes, and would take most of the time of all.
    seconds = {"lipsdp": 1.0}
    results = {m: result_of(m, model, point, eps, seconds.get(m, 30)) for m in [*ORDER, *others]}
    upper = {m: r.upper_bound for m, r in results.items()}
    bounds = [upper[m] for m in ORDER]
    assert bounds == sorted(bounds, reverse=True)
    assert all(a > b * 1.0001 for a, b in pairwise(bounds[:4]))
    assert upper["fastlip"] <= upper["ibp"]
    assert upper["lipmip"] <= upper["alpha"]
    exact = results["lipbab"]
    assert exact.status == results["lipmip"].status == results["bab"].status == "exact"
    assert upper["lipmip"] == pytest.approx(exact.upper_bound, rel=1e-5)
    assert upper["bab"] == pytest.approx(exact.upper_bound, rel=1.01e-4)
    assert all(bound >= exact.lower_bound for bound in upper.values())
    assert all(r.lower_bound <= exact.upper_bound for r in results.values())
    assert exact.root_upper_bound <= upper["ibp"] * (1 + 1e-9)
    assert results["lipmip"].root_upper_bound == pytest.approx(upper["alpha"])
    for method in INSTALLED:
        assert upper["crown"] < upper[method] < upper["global"]  # of these networks


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_a_method_never_exceeds_what_it_starts_from(case, eps):
    problem, options = problem_of(case, eps), MethodOptions(timeout=0.3)

    def rows(method):
        if method == "bab":
            prepared = Prepared(problem.graph, branching=BranchOptions(timeout=0.3))
            result = prepared.bound(problem, sampling=Sampling(num_random=4, ascent_steps=2))
            return torch.tensor(result.class_upper_bounds, dtype=torch.float64)
        prepared = Prepared(problem.graph, method=method, engine="native", options=options)
        return prepared.upper_bounds(problem)

    interval, alpha = rows("ibp"), rows("alpha")
    slack = 1 + 1e-9
    assert bool((rows("fastlip") <= interval * slack).all())
    assert bool((rows("lipbab") <= interval * slack).all())
    assert bool((rows("lipmip") <= alpha * slack).all())
    assert bool((rows("bab") <= alpha * slack).all())
