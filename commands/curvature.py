"""``main.py --curvature``: the Lipschitz constant of the gradient, instead of the network's own."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from commands.options import seconds_of
from lipschitz import LipschitzResult, LocalProblem, build_graph
from lipschitz.bounds.methods import BRANCHING_KIND, LOCAL, UPPER
from lipschitz.bounds.native.curvature import check_curvature
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.search.curvature import MOST_INPUTS, CurvatureOptions, bound_curvature
from lipschitz.search.interface import Progress
from utils import duration, importing, significant


@dataclass(frozen=True)
class PreparedCurvature:
    """A network whose curvature is to be bounded on many boxes, as ``Prepared`` is for constants.

    Attributes:
        graph: The network.
        options: How to bound it.
        engine: What computes the bounds.
    """

    graph: Graph
    options: CurvatureOptions
    engine: str = "native"

    @property
    def can_search(self) -> bool:
        """Whether the network has few enough inputs for a search."""
        return math.prod(self.graph.input_shape) <= MOST_INPUTS

    def bound(
        self,
        problem: LocalProblem,
        *,
        tolerance: float,
        sampling: Sampling,
        watch: Callable[[Progress], Any],
    ) -> LipschitzResult:
        """Certified bounds of one problem, of its rows one by one.

        Args:
            problem: What to bound.
            tolerance: Relative gap up to which the result is called exact.
            sampling: How hard to look for the lower bound.
            watch: Called with the state of the search, once per round.

        Raises:
            InputError: Values that overflow.
        """
        options = self.options.having(tolerance=tolerance)
        return bound_curvature(problem, options, sampling=sampling, watch=watch)


def prepare_curvature(
    args: Namespace, model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype
) -> PreparedCurvature:
    """The network ready to have its curvature bounded.

    Args:
        args: The command line.
        model: The network, on its device.
        input_shape: Shape of one input.
        dtype: Precision to compute in.

    Raises:
        InputError: A network that has no curvature, by the activation's name, or too many inputs
            for a search that was asked for.
        NotImplementedError: A layer that is not supported.
    """
    graph = build_graph(model, input_shape)
    graph = graph.to(graph.device, dtype)
    check_curvature(graph)
    prepared = PreparedCurvature(
        graph,
        CurvatureOptions(
            timeout=seconds_of(args) if args.bab or args.timeout else math.inf,
            search=args.bab,
            optimize=not args.no_optimize,
            batch_size=args.batch_size,
            max_domains=args.max_domains,
            memory_budget=args.memory_budget and args.memory_budget * 2**20,
        ),
    )
    if args.bab and not prepared.can_search:
        raise InputError(
            f"--curvature --bab cuts the box of networks with up to {MOST_INPUTS} inputs, this one "
            f"has {math.prod(graph.input_shape)}: leave out --bab"
        )
    with importing():  # the first optimiser loads modules, for a second of nobody's time limit
        torch.optim.Adam([torch.zeros(1)])
    return prepared


def curvature_search(args: Namespace) -> dict[str, Any]:
    """What a row says of the search: how the box is cut, or the time limit if one is given."""
    if args.bab:
        names = ("batch_size", "max_domains")
        more = {name: getattr(args, name) for name in names}
        return {"timeout": seconds_of(args), "branch": "input", **more}
    return {} if args.timeout is None else {"timeout": args.timeout}


def curvature_kind(search: dict[str, Any]) -> str:
    """What the number of a row is, in the words that other methods have for theirs."""
    return BRANCHING_KIND if "branch" in search else f"{LOCAL}, {UPPER}"


def curvature_summary(rows: list[dict[str, Any]]) -> str:
    """The last line of ``--curvature``: mean bound and mean seconds."""
    mean, seconds = (sum(row[k] for row in rows) / len(rows) for k in ("upper_bound", "seconds"))
    return f"avg_curvature {significant(mean)} avg_time {duration(seconds)}"
