"""Plain numbers and words that users give, refused where they make no sense.

Nothing here loads torch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from numbers import Real
from typing import Any

from lipschitz.errors import InputError


def shown(value: Any) -> str:
    """A value as messages name it: itself where it is short, else its type."""
    if value is None or isinstance(value, (bool, str)):
        return repr(value)
    if isinstance(value, Real):
        return str(value)
    if isinstance(value, type):
        return f"of the class {value.__name__} itself"
    return f"of type {type(value).__name__}"


def check_number(name: str, value: Any, *, zero: bool = False, infinite: bool = False) -> None:
    """Refuse what is no positive number.

    Args:
        name: What it is, for the message.
        value: What was given.
        zero: 0 is allowed.
        infinite: Infinity is allowed, for limits.

    Raises:
        InputError: Not a number, NaN, negative.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and (value > 0 or (zero and value == 0)) and (infinite or math.isfinite(value)):
        return
    expected = "a number, 0 or larger" if zero else "a positive number"
    raise InputError(f"{name} {shown(value)}: expected {expected}")


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number, which may come as numpy's or as a tensor of one element.

    Raises:
        InputError: Not a whole number, or below ``least``.
    """
    expected = "a whole number" if least is None else f"a whole number, {least} or larger"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} {shown(value)}: expected {expected}") from None
    if least is not None and number < least:
        raise InputError(f"{name} {number}: expected {expected}")
    return number


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        InputError: Anything else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} {shown(value)}: expected True or False")


def check_word(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse a word that is not one of those known.

    Raises:
        InputError: With those that are.
    """
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} {value!r}: expected {', '.join(known)}")


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse what is neither None nor of a class.

    Raises:
        InputError: With the class.
    """
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{name} {shown(value)}: expected {kind.__name__}, or None")
