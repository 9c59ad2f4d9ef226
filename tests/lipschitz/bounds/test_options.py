"""Options that make no sense are refused when they are made."""

import math

import pytest

from lipschitz import MethodOptions
from lipschitz.bounds.options import SlopeOptimization
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.errors import InputError

WRONG = [
    (MethodOptions, {"timeout": -1}, "^timeout -1: expected a positive number"),
    (MethodOptions, {"timeout": math.nan}, "^timeout nan: expected a positive number"),
    (MethodOptions, {"timeout": "10"}, "^timeout '10': expected a positive number"),
    (MethodOptions, {"rows_at_once": 0}, "^rows_at_once 0: expected a whole number, 1 or larger"),
    (MethodOptions, {"memory_budget": 0.5}, "^memory_budget 0.5: expected a whole number"),
    (MethodOptions, {"seed": -1}, "^seed -1: expected a whole number, 0 or larger"),
    (MethodOptions, {"optimize": None}, "^optimize None: expected True or False"),
    (MethodOptions, {"slopes": 20}, "^slopes 20: expected SlopeOptimization"),
    (SlopeOptimization, {"iterations": 0}, "^iterations 0: expected a whole number, 1 or larger"),
    (SlopeOptimization, {"learning_rate": 0}, "^learning_rate 0: expected a positive number"),
    (SlopeOptimization, {"decay": math.inf}, "^decay inf: expected a positive number"),
    (Sampling, {"num_random": 0}, "^num_random 0: expected a whole number, 1 or larger"),
    (Sampling, {"ascent_steps": -1}, "^ascent_steps -1: expected a whole number, 0 or larger"),
    (Sampling, {"ascent_rows": 1.5}, "^ascent_rows 1.5: expected a whole number"),
    (Sampling, {"points_at_once": 0}, "^points_at_once 0: expected a whole number, 1 or larger"),
    (Sampling, {"seed": None}, "^seed None: expected a whole number"),
]


@pytest.mark.parametrize(
    ("options", "given", "words"), WRONG, ids=lambda v: getattr(v, "__name__", "")
)
def test_nonsense_is_refused_at_once(options, given, words):
    with pytest.raises(InputError, match=words):
        options(**given)


def test_sense_is_taken():
    MethodOptions(timeout=math.inf, rows_at_once=1, memory_budget=1, seed=0)
    Sampling(num_random=1, ascent_steps=0)
    SlopeOptimization(iterations=1, learning_rate=0.1, decay=1)
