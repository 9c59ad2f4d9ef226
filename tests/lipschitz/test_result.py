"""Results as JSON."""

import json
from dataclasses import fields

import torch
from torch import nn

from lipschitz import LipschitzResult, local_lipschitz


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
