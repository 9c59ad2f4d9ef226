"""Errors that a user can cause, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake the user can fix: what came, what was expected, what to do, in one line."""

    def __init__(self, message: str) -> None:
        # Quoted messages of other libraries run over several lines.
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """A message with its line breaks and runs of blanks made single blanks."""
    return " ".join(message.split())


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggest(name: str, choices: Iterable[str]) -> str:
    """Ending for "unknown ..." messages: `: did you mean 'x'?`, or '' when nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f": did you mean {by_lower[close[0]]!r}?" if close else ""
