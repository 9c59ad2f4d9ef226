"""Results as JSON."""

import json
from dataclasses import fields

import torch
from torch import nn

from lipschitz import (
    CertifiedRadius,
    CertifyOptions,
    JacobianBounds,
    LipschitzResult,
    certified_radius,
    jacobian_bounds,
    jvp_bounds,
    local_lipschitz,
)
from lipschitz.result import plain_fields


def test_a_result_survives_json():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    result = local_lipschitz(model, torch.zeros(3), eps=0.1, engine="native")
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(read) == {field.name for field in fields(LipschitzResult)}
    assert read["upper_bound"] == result.upper_bound
    assert read["witness"] == result.witness.tolist()
    assert read["class_upper_bounds"] == list(result.class_upper_bounds)


def test_no_upper_bound_is_none_in_json():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    result = local_lipschitz(model, torch.zeros(3), eps=0.1, method="sampling")
    assert result.to_dict()["upper_bound"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_radius_survives_json():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    found = certified_radius(model, torch.zeros(3), label=0, options=CertifyOptions(most=3))
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(read) == {field.name for field in fields(CertifiedRadius)}
    assert CertifiedRadius(**read) == found


def test_bounds_of_entries_survive_json():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x, directions = torch.zeros(3), torch.eye(3)[:2]
    for found, shape in (
        (jacobian_bounds(model, x, 0.1), (2, 3)),
        (jvp_bounds(model, x, 0.1, directions), (2, 2)),
    ):
        read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert set(read) == {field.name for field in fields(JacobianBounds)}
        assert read["row_names"] == ["0", "1"]
        for name in ("lower", "upper"):
            assert torch.tensor(read[name]).shape == shape
            assert torch.equal(torch.tensor(read[name]), getattr(found, name))


def test_no_number_is_none():
    bounds = JacobianBounds(torch.zeros(1), torch.ones(1), ())
    assert plain_fields(bounds) == {"lower": [0.0], "upper": [1.0], "row_names": []}
    found = CertifiedRadius(float("inf"), -1.0, 0, 1, 2, "2", "crown", "native", 0.5)
    assert found.to_dict()["radius"] is None
    assert found.to_dict()["margin"] == -1.0
