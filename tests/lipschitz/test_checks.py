import math

import numpy as np
import pytest
import torch

from lipschitz.checks import check_flag, check_number, check_word, shown, whole_number
from lipschitz.errors import InputError


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
def test_positive_numbers_pass(value):
    check_number("timeout", value)


def test_zero_and_infinity_only_where_they_are_allowed():
    check_number("tolerance", 0, zero=True)
    check_number("timeout", math.inf, infinite=True)
    for value, allowed in ((0, {"infinite": True}), (math.inf, {"zero": True})):
        with pytest.raises(InputError, match=r"expected a"):
            check_number("timeout", value, **allowed)


@pytest.mark.parametrize("value", [-1, math.nan, True, None, "3", [1.0], 1j, torch.tensor(1.0)])
def test_what_is_no_positive_number_is_refused(value):
    with pytest.raises(InputError, match=r"^timeout .*expected a positive number"):
        check_number("timeout", value, infinite=True)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_all_kinds_are_plain_ints(value):
    number = whole_number("label", value)
    assert (type(number), number) == (int, 3)


@pytest.mark.parametrize("value", [1.0, True, None, "3", [3], torch.tensor([1, 2]), np.array([3])])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(InputError, match=r"^label .*expected a whole number$"):
        whole_number("label", value)
    with pytest.raises(InputError, match=r"^label 3: expected a whole number, 4 or larger"):
        whole_number("label", 3, least=4)


def test_words_and_flags():
    check_word("sdp", "auto", ("auto", "never"))
    check_flag("optimize", False)
    for wrong in ("sometimes", 1, ["auto"], None):
        with pytest.raises(InputError, match=r"^sdp .*expected auto, never"):
            check_word("sdp", wrong, ("auto", "never"))
    for wrong in (1, "yes", None):
        with pytest.raises(InputError, match=r"^optimize .*expected True or False"):
            check_flag("optimize", wrong)


def test_long_values_are_shown_by_their_type():
    assert shown(torch.zeros(100)) == "of type Tensor"
    assert shown(dict) == "of the class dict itself"
    assert (shown(-5), shown("a"), shown(None)) == ("-5", "'a'", "None")
