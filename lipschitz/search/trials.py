"""Which of two searches is the better one: short trials of both.

Only a choice of speed: whichever is taken, the bounds are certified.
"""

from __future__ import annotations

from collections.abc import Callable

from lipschitz.problem import LocalProblem
from lipschitz.search.interface import Bounding, Limits, SearchResult
from lipschitz.search.loop import branch_and_bound
from lipschitz.search.options import BranchOptions
from lipschitz.words import EXACT, INTERRUPTED, TIMEOUT

# With at most so many inputs a short trial decides between bisecting the box and splitting neurons.
# Measured at 16 inputs only (MLP of width 64, eps 0.2, six seconds): bisecting reached 49.4,
# splitting neurons 25.0. The limit of 8 itself is a choice: a trial too many costs its seconds.
_FEW_INPUTS = 8
# The same limit with curved activations. Their neurons are never stable, so splitting them never
# ends in a region with one gradient, and bisecting is worth a trial for more inputs. A choice.
_FEW_INPUTS_IF_CURVED = 64
# Seconds of each of the two searches in the trial, or a 20th of the time limit if less. A choice: a
# trial too short may pick the slower search.
_TRIAL_SECONDS = 0.5


def choose_branch(
    options: BranchOptions,
    problem: LocalProblem,
    searches: dict[str, Callable[[], Bounding]],
    lower_bound: float,
) -> str:
    """``relu`` or ``input``: with few inputs, the search with the lower bound after a short trial.

    Around a point where several kinks meet, no box is free of unstable neurons, however small, so
    bisecting the box may stop short of the exact value. It is chosen only where its bound is lower.
    """
    if options.branch != "auto" or len(searches) == 1:
        return next(iter(searches)) if options.branch == "auto" else options.branch
    graph = problem.graph
    kinds = [graph.nodes[i].activation for i in graph.activation_nodes]
    curved = any(curvature for kind in kinds for curvature in kind.curvatures)
    few = _FEW_INPUTS_IF_CURVED if curved else _FEW_INPUTS
    if problem.centre.numel() > few or "input" not in searches:
        return "relu"
    seconds = min(_TRIAL_SECONDS, options.timeout / 20)
    neurons, inputs = (
        try_search(searches[name], lower_bound, options, seconds) for name in ("relu", "input")
    )
    closing = inputs.status in (EXACT, TIMEOUT)
    ahead = closing and inputs.upper_bound < neurons.upper_bound
    return "input" if ahead else "relu"


def try_search(
    search: Callable[[], Bounding], lower_bound: float, options: BranchOptions, seconds: float
) -> SearchResult:
    """What a search reaches in a short trial."""
    trial = Limits(seconds, options.tolerance, 64, 10_000)
    result = branch_and_bound(search(), lower_bound, None, trial)
    if result.status == INTERRUPTED:
        raise KeyboardInterrupt  # a trial reports Ctrl-C as a status; the caller expects it
    return result
