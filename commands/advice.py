"""A line of advice where a bound is far above the true gradient found."""

from __future__ import annotations

import shlex
from argparse import Namespace
from typing import Any

from utils import significant

# Advice is given where the bound is this many times the true gradient. A choice.
_FAR = 10.0
# Options that only some methods have; the command that is suggested goes without them.
_OF_A_METHOD = ("--method", "--engine", "--timeout", "--ob-iteration", "--ob-lr", "--tolerance")
_SWITCHES = ("--no-optimize",)
_LONGER = 10  # the suggested --timeout, in multiples of the one that was too short; a choice


def advice(
    args: Namespace,
    argv: list[str],
    row: dict[str, Any],
    called: str,
    *,
    can_search: bool = True,
) -> str | None:
    """What to try next, with the command; None if the bound is tight or there is nothing to try.

    Args:
        args: The command line.
        argv: The same as it was typed.
        row: An example's result.
        called: How the program was called, such as ``python main.py``.
        can_search: Whether branch and bound may gain anything on this network.
    """
    upper, lower = row.get("upper_bound"), row.get("lower_bound")
    if not upper or not lower or upper <= _FAR * lower:
        return None
    found = "true Hessian" if args.curvature else "true gradient"
    far = f"the bound is {significant(upper / lower, 3)} times the {found} found"
    options, what = _better(args, row, can_search)
    if options is None:
        return f"{far}; {what}"
    command = shlex.join([*called.split(), *_without(argv), *options])
    return f"{far}; {what}: {command}"


def _better(args: Namespace, row: dict[str, Any], can_search: bool) -> tuple[list[str] | None, str]:
    """Options to try and what they do; no options where only another question helps."""
    seconds = 60.0 if args.timeout is None else args.timeout
    searchable = args.norm == "inf" or row["outputs"] == "each"
    if not can_search and (args.bab or args.method != "ibp"):
        return None, "take a smaller eps: there are too many inputs for branch and bound"
    if args.bab and row["status"] == "timeout":
        longer = ["--bab", "--timeout", f"{_LONGER * seconds:g}"]
        return longer, "give branch and bound more time, or take a smaller eps"
    if args.bab:
        return None, "take a smaller eps: branch and bound has done what it can"
    if args.method in ("crown", "alpha", "sdp"):
        if searchable:
            return ["--bab", "--timeout", f"{seconds:g}"], "search with branch and bound"
        return None, "take a smaller eps, or --outputs each with --bab"
    return ["--method", "alpha"], "propagate linear bounds with optimised slopes"


def _without(argv: list[str]) -> list[str]:
    """The command line without what the suggested options replace."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in _OF_A_METHOD:
            skip = True
        elif word.split("=")[0] not in (*_OF_A_METHOD, *_SWITCHES, "--bab"):
            kept.append(word)
    return kept
