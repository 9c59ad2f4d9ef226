"""All methods together on the reference networks, in the order that theory promises."""

import pytest
from cases import REFERENCES

from lipschitz import MethodOptions, Prepared, make_problem

ORDER = ["global", "ibp", "recurjac", "crown", "alpha", "lipmip"]
SMALL = [r for r in REFERENCES if r.eps <= 0.02 or (r.eps, r.file[-2:]) == (0.05, "16")]


def result_of(method, reference):
    model, point = reference.model(), reference.point()
    prepared = Prepared(
        model,
        tuple(point.shape),
        method=method,
        engine="native",
        options=MethodOptions(timeout=30),
    )
    return prepared.bound(make_problem(prepared.graph, point, reference.eps))


@pytest.mark.parametrize("reference", SMALL, ids=lambda r: f"{r.file}-{r.eps}")
def test_every_method_is_in_its_place(reference):
    results = {m: result_of(m, reference) for m in [*ORDER, "fastlip", "lipbab", "sampling"]}
    bounds = [results[m].upper_bound for m in ORDER]
    assert bounds == sorted(bounds, reverse=True)
    assert results["fastlip"].upper_bound <= results["ibp"].upper_bound
    exact = results["lipbab"]
    assert exact.status == results["lipmip"].status == "exact"
    assert exact.upper_bound == pytest.approx(results["lipmip"].upper_bound, rel=1e-5)
    assert exact.upper_bound <= exact.root_upper_bound <= results["ibp"].upper_bound * (1 + 1e-9)
    assert results["sampling"].lower_bound <= exact.upper_bound
    assert results["lipmip"].root_upper_bound == pytest.approx(results["alpha"].upper_bound)
