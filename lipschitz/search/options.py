"""What can be asked of a branch and bound, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipschitz.bounds.methods import require_engine
from lipschitz.checks import check_number, check_word, shown, whole_number
from lipschitz.errors import InputError, suggest
from lipschitz.words import BRANCHES, ENGINES, HEURISTICS, PROGRAMS, REFRESH, Asked


@dataclass(frozen=True)
class BranchOptions:
    """How to search.

    Attributes:
        timeout: Seconds, root bound included.
        tolerance: Relative gap up to which the result is called exact.
        batch_size: Subdomains split per round; by the network's size if None.
        max_domains: Open subdomains kept; by memory if None.
        heuristic: ``sign``, ``slope``, ``area`` or ``babsr``; None is ``sign`` on the native engine
            (in norm 2 ``slope``; in norm 1 always that) and ``area``, the paper's, on auto_LiRPA's.
        branch: ``relu`` (neurons and signs of entries), ``input`` (the box) or ``auto``.
        beta_steps: Steps with which multipliers of the splits (beta-CROWN) tighten recomputed
            intervals; 0 leaves them out, None is 8 on the native engine.
        refresh: ``on`` (intervals recomputed in every subdomain that reaches the top), ``off``, or
            ``auto``: by cost.
        sdp: Semidefinite bounds of subdomains: ``auto`` (where linear bounds lag far behind),
            ``always`` (for every subdomain that is split) or ``never``.

    Raises:
        InputError: Numbers that make no sense, or words that do not exist.
    """

    timeout: float = 60.0
    tolerance: float = 1e-4
    batch_size: int | None = None
    max_domains: int | None = None
    heuristic: str | None = None
    branch: str = "auto"
    refresh: str = "auto"
    beta_steps: int | None = None
    sdp: str = "auto"

    def __post_init__(self) -> None:
        check_number("timeout", self.timeout, infinite=True)
        check_number("tolerance", self.tolerance, zero=True)
        for name, value, least in (
            ("batch size", self.batch_size, 1),
            ("max domains", self.max_domains, 1),
            ("beta steps", self.beta_steps, 0),
        ):
            if value is not None:
                whole_number(name, value, least=least)
        check_word("branch", self.branch, BRANCHES)
        check_word("refresh", self.refresh, REFRESH)
        check_word("sdp", self.sdp, PROGRAMS)
        check_heuristic(self.heuristic)

    def having(self, **changes: object) -> BranchOptions:
        """The same with some options replaced."""
        return replace(self, **changes)


def check_branching(options: BranchOptions, engine: str) -> None:
    """Refuse options that an engine does not have.

    Raises:
        InputError: With what to use instead.
    """
    if not isinstance(options, BranchOptions):
        raise InputError(
            f"branching {shown(options)}: expected branching=BranchOptions(), or None for no search"
        )
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}: use {' or '.join(ENGINES)}")
    require_engine(engine)
    if engine == "native":
        return
    if options.heuristic is not None and HEURISTICS[options.heuristic]:
        raise InputError(
            f"heuristic {options.heuristic!r} splits signs of entries, which only the native "
            "engine bounds: use slope, area or babsr with auto_lirpa"
        )
    if options.sdp == "always":
        raise InputError("auto_lirpa's search has no semidefinite bounds: use engine native")
    if options.branch == "input" or options.refresh == "on" or options.beta_steps:
        raise InputError("auto_lirpa splits neurons and keeps the root's intervals: use native")


def check_heuristic(heuristic: str | None) -> None:
    """Refuse a way to choose what is split that does not exist; None leaves it to the engine.

    Raises:
        InputError: With those that do.
    """
    if heuristic is not None and (not isinstance(heuristic, str) or heuristic not in HEURISTICS):
        raise InputError(
            f"unknown heuristic {heuristic!r}{suggest(str(heuristic), HEURISTICS)}; "
            f"known: {', '.join(HEURISTICS)}"
        )


def check_searched(asked: Asked, options: BranchOptions, engine: str) -> None:
    """Refuse what no search bounds.

    Raises:
        InputError: With what to use instead.
    """
    if asked.joint:
        raise InputError(
            f"branch and bound searches single outputs in norm {asked.norm}: ask for outputs "
            "'each', or leave it out"
        )
    if options.sdp == "always" and asked.norm == "1":
        raise InputError("semidefinite programs do not bound norm 1: use sdp auto or never")
    if engine == "auto_lirpa" and not asked.is_plain:
        raise InputError(f"engine 'auto_lirpa' does not search {asked}: use engine native")
