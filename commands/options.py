"""What options of ``main.py`` may be combined, checked before anything is loaded.

Nothing here imports torch.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from lipschitz.bounds.methods import METHODS, check_measure, choose_engine
from lipschitz.errors import InputError
from lipschitz.search.options import BranchOptions, check_branching, check_searched
from lipschitz.words import Asked, default_outputs, norm_name
from utils import numbers


def flag(option: str) -> str:
    """An option's name as it is typed."""
    return f"--{option.replace('_', '-')}"


def asked_of(args: Namespace) -> Asked:
    """What is to be measured."""
    return Asked(args.norm, only_free=args.inputs == "free")


def engine_of(args: Namespace) -> str:
    """The engine that will compute the bounds."""
    if args.bab:
        return args.engine or "native"
    if args.mono or args.curvature:
        return "native"
    return choose_engine(args.method, args.engine, asked_of(args))


@dataclass(frozen=True)
class Use:
    """Where options take effect.

    Attributes:
        options: Their names.
        has_effect: Whether they do, with the other options as they are.
        where: The same in words, after "goes with".
    """

    options: tuple[str, ...]
    has_effect: Callable[[Namespace], bool]
    where: str


def _optimises_by_engine_a(args: Namespace) -> bool:
    return engine_of(args) == "auto_lirpa" and (args.bab or args.method == "crown")


def _keeps_time(method: str, engine: str) -> bool:
    return engine in METHODS[method].timed_on


_TIMED = ", ".join(name for name in METHODS if _keeps_time(name, "native"))
_UNCHUNKED = ("ibp", "global", "lipmip", "lipbab", "lipsdp", "eclipse", "sampling")
USES = (
    Use(
        ("heuristic", "branch", "refresh", "beta_steps", "sdp", "max_domains", "trace"),
        lambda args: args.bab,
        "--bab: a single bound splits nothing",
    ),
    Use(
        ("no_optimize",),
        lambda args: (
            args.mono
            or args.bab
            or args.curvature
            or args.method == "joint"
            or _optimises_by_engine_a(args)
        ),
        "--bab, --mono, --curvature, --method joint, and --method crown on --engine auto_lirpa, "
        "which optimise; --method alpha without it is --method crown --engine native",
    ),
    Use(
        ("ob_iteration", "ob_lr"),
        _optimises_by_engine_a,
        "--engine auto_lirpa: the native engine chooses its steps itself",
    ),
    Use(
        ("timeout",),
        lambda args: (
            args.bab or args.mono or args.curvature or _keeps_time(args.method, engine_of(args))
        ),
        f"--bab, --mono, --curvature and --method {_TIMED}; other methods run to their end",
    ),
    Use(
        ("batch_size",),
        lambda args: args.bab or _optimises_by_engine_a(args),
        "--bab and --engine auto_lirpa; for the native engine see --memory-budget",
    ),
    Use(
        ("memory_budget",),
        lambda args: args.bab or args.method not in _UNCHUNKED,
        "methods that bound rows in chunks, not --method " + ", ".join(_UNCHUNKED),
    ),
    Use(("tolerance",), lambda args: args.bab or not args.certify, "constants, which may be exact"),
    Use(("features",), lambda args: args.mono, "--mono"),
    Use(("std",), lambda args: args.input is not None, "--input; a data set knows its own std"),
    Use(
        ("input_clipping", "start", "num_examples"),
        lambda args: args.box is None,
        "points, not --box: it is one box, as it stands",
    ),
)
# --mono has a search of its own, for signs.
_NOT_OF_SIGNS = (
    *("bab", "margins", "certify", "norm", "outputs", "inputs", "fixed", "method", "engine"),
    *("batch_size", "memory_budget", "tolerance", "output", "picture", "box"),
)
# What --curvature has not, and why. Its bounds are of one kind, and its search cuts boxes.
_NOT_OF_CURVATURE = (
    (("mono", "certify", "features"), "ask for one of them at a time"),
    (("method",), "it is a method of its own; --bab refines its bounds"),
    (
        ("heuristic", "branch", "refresh", "beta_steps", "sdp"),
        "its --bab cuts the box, nothing else",
    ),
    (("ob_iteration", "ob_lr"), "it chooses the steps of its slopes itself"),
    (("picture",), "that shows entries of the Jacobian"),
)


def check_options(args: Namespace, given: set[str]) -> None:
    """Refuse what cannot be asked for, and what would have no effect.

    Args:
        args: The command line; its ``norm`` is brought into the one form used from here on.
        given: Names of the options that stand on it.

    Raises:
        InputError: With what to do instead.
    """
    args.norm = norm_name(args.norm)
    _check_numbers(args)
    if args.method == "curvature":  # as rows call it
        raise InputError("--method curvature: leave out --method and give --curvature")
    if args.curvature:
        _check_curvature(args, given)
    elif args.mono:
        useless = [flag(option) for option in _NOT_OF_SIGNS if option in given]
        if useless:
            raise InputError(f"--mono goes without {', '.join(useless)}: it certifies signs")
    elif args.bab:
        check_searched(asked_of(args), branching_of(args), engine_of(args))
    else:
        check_measure(args.method, engine_of(args), asked_of(args))
    if args.certify and given & {"eps", "box", "margins", "outputs", "fixed", "trace", "picture"}:
        raise InputError(
            "--certify finds eps itself, for the margins of the label: leave out --eps, --box, "
            "--margins, --outputs, --fixed, --trace and --picture"
        )
    if args.certify and (args.method == "sampling" or args.inputs == "free"):
        raise InputError(
            "--certify needs upper bounds over all inputs: no sampling, no free inputs"
        )
    if args.box is not None and given & {"eps", "input", "clean"}:
        raise InputError("--box is the region itself: leave out --eps, --input and --clean")
    for use in USES:
        for option in use.options:
            if option in given and not use.has_effect(args):
                raise InputError(f"{flag(option)} has no effect here: it goes with {use.where}")


def _check_curvature(args: Namespace, given: set[str]) -> None:
    for options, why in _NOT_OF_CURVATURE:
        useless = [flag(option) for option in options if option in given]
        if useless:
            raise InputError(f"--curvature goes without {', '.join(useless)}: {why}")
    if args.engine not in (None, "native"):
        raise InputError(
            f"--curvature goes without --engine {args.engine}: it runs on native only; leave it out"
        )
    if args.outputs == "all":
        raise InputError(
            "--curvature goes without --outputs all: it takes outputs, or with --margins their "
            "differences, one by one"
        )
    if args.inputs == "free":
        raise InputError(
            "--curvature goes without --inputs free: all inputs count; leave it out, the bound "
            "holds for the free ones too"
        )


def _check_numbers(args: Namespace) -> None:
    for option, smallest in (("num_examples", 1), ("start", 0), ("ob_iteration", 1)):
        if getattr(args, option) < smallest:
            raise InputError(
                f"{flag(option)} {getattr(args, option)}: expected at least {smallest}"
            )
    for option in ("batch_size", "memory_budget", "max_domains"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise InputError(f"{flag(option)} {getattr(args, option)}: expected at least 1")
    for option in ("ob_lr", "tolerance", "timeout"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{flag(option)} {value}: expected a positive number")


def branching_of(args: Namespace) -> BranchOptions:
    """The search that ``--bab`` and its options ask for.

    Raises:
        InputError: An option with no such value.
    """
    if args.method not in ("crown", "alpha"):
        raise InputError(f"--bab refines crown or alpha, not --method {args.method}; leave it out")
    options = BranchOptions(
        timeout=seconds_of(args),
        tolerance=args.tolerance,
        batch_size=args.batch_size,
        max_domains=args.max_domains,
        heuristic=args.heuristic,
        branch=args.branch,
        refresh=args.refresh,
        beta_steps=args.beta_steps,
        sdp=args.sdp,
    )
    check_branching(options, args.engine or "native")
    return options


def outputs_of(args: Namespace) -> str:
    """Whether outputs or margins are taken one by one, ``each``, or ``all`` together."""
    if args.curvature:
        return "each"
    return args.outputs or default_outputs(args.norm, margins=args.margins is not None)


def seconds_of(args: Namespace) -> float:
    """Seconds for each example of what searches."""
    return 60.0 if args.timeout is None else args.timeout


def classes_of(args: Namespace) -> list[int] | None:
    """The outputs named by ``--classes``."""
    return None if args.classes is None else numbers("--classes", args.classes, int)
