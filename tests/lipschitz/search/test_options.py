"""Options of a search that make no sense are refused when they are made."""

import math

import pytest

from lipschitz import BranchOptions
from lipschitz.errors import InputError
from lipschitz.search.options import check_branching

WRONG = [
    ({"timeout": -1}, "^timeout -1: expected a positive number"),
    ({"timeout": 0}, "^timeout 0: expected a positive number"),
    ({"timeout": math.nan}, "^timeout nan: expected a positive number"),
    ({"timeout": None}, "^timeout None: expected a positive number"),
    ({"tolerance": -1e-4}, "^tolerance -0.0001: expected a number, 0 or larger"),
    ({"tolerance": math.nan}, "^tolerance nan: expected a number, 0 or larger"),
    ({"tolerance": math.inf}, "^tolerance inf: expected a number, 0 or larger"),
    ({"batch_size": 0}, "^batch size 0: expected a whole number, 1 or larger"),
    ({"batch_size": 1.5}, "^batch size 1.5: expected a whole number"),
    ({"max_domains": 0}, "^max domains 0: expected a whole number, 1 or larger"),
    ({"beta_steps": -1}, "^beta steps -1: expected a whole number, 0 or larger"),
    ({"branch": "both"}, "^branch 'both': expected relu, input, auto"),
    ({"branch": None}, "^branch None: expected relu, input, auto"),
    ({"refresh": True}, "^refresh True: expected on, off, auto"),
    ({"sdp": "sometimes"}, "^sdp 'sometimes': expected auto, always, never"),
    ({"heuristic": "sing"}, "^unknown heuristic 'sing': did you mean 'sign'"),
    ({"heuristic": 3}, "^unknown heuristic 3; known"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=lambda v: str(v) if type(v) is dict else "")
def test_nonsense_is_refused_at_once(given, words):
    with pytest.raises(InputError, match=words):
        BranchOptions(**given)
    with pytest.raises(InputError, match=words):
        BranchOptions().having(**given)


def test_sense_is_taken():
    options = BranchOptions(
        timeout=math.inf, tolerance=0, batch_size=1, max_domains=1, beta_steps=0
    )
    check_branching(options, "native")
    assert options.having(timeout=3).timeout == 3


@pytest.mark.parametrize("given", [True, False, {}, "relu", BranchOptions, 60])
def test_what_are_no_options_is_refused_with_what_to_write(given):
    with pytest.raises(InputError, match=r"^branching .*expected branching=BranchOptions\(\)"):
        check_branching(given, "native")
