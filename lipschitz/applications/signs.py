"""Certified signs of single Jacobian entries over a box.

Root bounds with optimised slopes, on curved activations by planes too, one row for each end of an
entry; then true gradients at points of the box, then branch and bound
(:mod:`lipschitz.applications.sign_search`) on the questions that both leave open.

Proved: ``increasing``, ``decreasing`` and ``constant`` for every product of the layers' Clarke
derivatives on the box, so for the function itself; ``neither`` by two points with true gradients of
opposite sign. All up to the margin of :mod:`lipschitz.rounding`. ``undecided`` proves nothing.

Shapes: D entries, D' entries of a problem restricted to a few inputs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipschitz.applications.jacobian_intervals import (
    certified_entries,
    checked,
    narrowed,
    root_bounds,
)
from lipschitz.applications.sign_search import SignAnswer, SignLimits, is_ever_positive
from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.plan import unit_rows
from lipschitz.bounds.native.plane_rows import ProblemPlanes
from lipschitz.bounds.native.root import RootBounds
from lipschitz.checks import whole_number
from lipschitz.errors import InputError
from lipschitz.network.affine import Linear, Reshape
from lipschitz.network.graph import Graph, Node
from lipschitz.problem import LocalProblem
from lipschitz.search.boxes_first import can_cut_first
from lipschitz.search.engines.functionals import (
    FunctionalBisection,
    Functionals,
    FunctionalSearch,
    path_sums,
)

INCREASING, DECREASING, CONSTANT = "increasing", "decreasing", "constant"
NEITHER, UNDECIDED = "neither", "undecided"
VERDICTS = (INCREASING, DECREASING, CONSTANT, NEITHER, UNDECIDED)

# With up to this many free inputs the box itself is cut, with more neurons are split, unless boxes
# are bounded by affine forms carried forward: then it is cut with more inputs too. Measured on a
# sigmoid controller and on tanh, GELU and sigmoid networks of 6 to 16 inputs, two seconds for each
# question: of 34 entries that a search by neurons left undecided boxes left 10, in less time. The
# limit itself is a choice: only speed, and what is left undecided, depend on it.
_FEW_INPUTS = 3
# With more than this nobody asks about affine forms, which nobody carries that far.
_MOST_CURVED_INPUTS = 64
# Points of each kind (random ones, corners, the diagonal) at which gradients are looked at. A
# choice: with fewer, more entries are left to the search.
_SAMPLES = 65
# Most of the time of all questions that the root bounds, and the sampled gradients after them, may
# take. Choices: they matter only where that is too short for both.
_SHARE_OF_ROOT = 0.5
_SHARE_OF_SAMPLES = 0.3
# Index of the node, in a network restricted to a few inputs, that is the whole network's input.
_LAST_OF_EMBEDDING = 2

_Query = tuple[int, int, int]  # row, flat index of the entry, sign


@dataclass(frozen=True)
class EntrySign:
    """What is certified about one entry of the Jacobian on one box.

    Attributes:
        feature: Flat index of the input coordinate.
        row: Name of the output direction.
        verdict: ``increasing``, ``decreasing``, ``constant``, ``neither`` or ``undecided``.
        lower, upper: Certified bounds of the entry on the box.
        positive, negative: Points whose true gradient there is above, below 0; None if none was
            found (or none was looked for).
        domains: Subdomains bounded by branch and bound; 0 if that was not needed.
        seconds: Wall-clock time, the box's shared work divided among its entries.
        example: Number of the example.
    """

    feature: int
    row: str
    verdict: str
    lower: float
    upper: float
    positive: Tensor | None
    negative: Tensor | None
    domains: int
    seconds: float
    example: int = 0


def check_features(graph: Graph, features: Sequence[int]) -> None:
    """Refuse features that do not exist.

    Raises:
        InputError: With the numbers that do.
    """
    size = graph.input_shape.numel()
    for feature in features:
        if not 0 <= whole_number("feature", feature) < size:
            raise InputError(f"feature {feature} does not exist: there are 0 to {size - 1}")
    if not features:
        raise InputError("no feature is asked about: name at least one")


def entry_signs(
    problem: LocalProblem,
    features: Sequence[int],
    *,
    limits: SignLimits | None = None,
    optimize: bool = True,
) -> list[EntrySign]:
    """Certified signs of some entries of the Jacobian over the box of one problem.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import build_graph
        >>> from lipschitz.applications.signs import entry_signs
        >>> from lipschitz.applications.jacobian import box_problem
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> with torch.no_grad():  # relu(x) + |y|
        ...     weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        ...     _ = model[0].weight.copy_(weight), model[0].bias.zero_()
        ...     _ = model[2].weight.fill_(1.0)
        >>> problem = box_problem(build_graph(model, (2,)), torch.zeros(2), eps=1.0)
        >>> [sign.verdict for sign in entry_signs(problem, [0, 1])]
        ['increasing', 'neither']

    Args:
        problem: The box and the output directions.
        features: Flat indices of the entries.
        limits: Of each branch and bound; a timeout of 0 leaves it out. Everything together takes no
            longer than that time for every entry, row and sign; 0 sets no limit to what is left.
        optimize: Optimise the slopes of pre-activation bounds, and the planes.

    Returns:
        One result per feature and row, the rows of a feature together.

    Raises:
        InputError: A feature that does not exist, or a network that overflows on the box.
    """
    check_features(problem.graph, features)
    begin = time.perf_counter()
    limits = limits or SignLimits()
    free = (problem.upper > problem.lower).flatten().nonzero()[:, 0].tolist()
    active = sorted({*free, *features})
    few = len(active) <= _FEW_INPUTS or _are_carried_forward(problem, active)
    inner = restricted(problem, active) if few else problem
    place = {f: active.index(f) if few else f for f in features}
    asked = [(f, row) for f in features for row in range(len(problem.rows))]
    clock = Clock.of(2 * len(asked) * limits.timeout) if limits.timeout > 0 else UNLIMITED
    of_root = clock.part(_SHARE_OF_ROOT)
    root = root_bounds(inner, "native", optimize=optimize, clock=of_root.part(_SHARE_OF_ROOT))
    planes = _entries_by_planes(inner, root, sorted(set(place.values())), optimize, of_root)
    lower, upper = (
        end.flatten(1) for end in checked(narrowed(certified_entries(inner, root), planes))
    )
    root = replace(root, norm=replace(root.norm, entries=narrowed(root.norm.entries, planes)))
    by_boxes = few or bool(inner.graph.product_nodes)
    answers: dict[_Query, SignAnswer] = {}
    for f, row in asked:
        answers[row, place[f], 1] = SignAnswer(float(upper[row, place[f]]), None, 0)
        answers[row, place[f], -1] = SignAnswer(-float(lower[row, place[f]]), None, 0)
    _sample(inner, answers, clock.part(_SHARE_OF_SAMPLES))
    seconds: Counter[tuple[int, int]] = Counter()
    shared = time.perf_counter() - begin
    if limits.timeout > 0:
        shared += _search(inner, root, answers, limits, clock, by_boxes, seconds)

    def point(answer: SignAnswer) -> Tensor | None:
        """The witness among the inputs of the network."""
        if answer.witness is None or not few:
            return answer.witness
        return inner.graph.values(answer.witness[None])[_LAST_OF_EMBEDDING][0]

    results = []
    for f, row in asked:
        above, below = answers[row, place[f], 1], answers[row, place[f], -1]
        results.append(
            EntrySign(
                feature=f,
                row=problem.row_names[row],
                verdict=_verdict(above, below),
                lower=-below.upper_bound + 0.0,  # no -0.
                upper=above.upper_bound,
                positive=point(above),
                negative=point(below),
                domains=above.domains + below.domains,
                seconds=shared / len(asked) + seconds[row, place[f]],
            )
        )
    return results


def _entries_by_planes(
    problem: LocalProblem, root: RootBounds, entries: list[int], optimize: bool, clock: Clock
) -> Interval:
    """Intervals of some entries by planes, infinite where these say nothing: [R, *input_shape]."""
    like = problem.centre
    shape = (len(problem.rows), like.numel())
    lower, upper = (like.new_full(shape, end) for end in (-torch.inf, torch.inf))
    planes = ProblemPlanes.of(problem, root, optimize=optimize, clock=clock)
    if planes is not None:
        rows = unit_rows(torch.tensor(entries, device=like.device), like.shape, like)
        found = planes.upper_bounds(rows.expand(shape[0], -1, *like.shape))
        above, below = found.chunk(2, dim=1)
        lower[:, entries], upper[:, entries] = -below, above
    return Interval(*(end.reshape(shape[0], *like.shape) for end in (lower, upper)))


def _verdict(above: SignAnswer, below: SignAnswer) -> str:
    """What upper bounds of the entry and of its negative, and their witnesses, say."""
    never_above, never_below = above.upper_bound <= 0, below.upper_bound <= 0
    if never_above and never_below:
        return CONSTANT
    if never_below:
        return INCREASING
    if never_above:
        return DECREASING
    both_seen = above.witness is not None and below.witness is not None
    return NEITHER if both_seen else UNDECIDED


def _are_carried_forward(problem: LocalProblem, active: Sequence[int]) -> bool:
    """Whether boxes of these inputs are bounded by affine forms."""
    few = len(active) <= _MOST_CURVED_INPUTS
    return few and can_cut_first(restricted(problem, active).graph)


def restricted(problem: LocalProblem, active: Sequence[int]) -> LocalProblem:
    """The problem as one of some inputs only, the others being fixed at the centre.

    Args:
        problem: The problem; its other inputs should have no width.
        active: Flat indices of the inputs to keep, D' of them.

    Returns:
        A problem of the network after the affine map from [D'] to the inputs; its Jacobian is the
        kept columns of the network's.
    """
    graph, like = problem.graph, problem.centre
    weight = like.new_zeros(like.numel(), len(active))
    weight[list(active), range(len(active))] = 1.0
    fixed = like.flatten().clone()
    fixed[list(active)] = 0.0
    few = torch.Size([len(active)])
    nodes = [
        Node("active", (), few),
        Node("embedding", (0,), torch.Size([like.numel()]), Linear(weight, fixed, few)),
        Node("input", (1,), like.shape, Reshape(torch.Size([like.numel()]), like.shape)),
    ]
    for node in graph.nodes[1:]:
        nodes.append(node.renumbered(lambda index: index + _LAST_OF_EMBEDDING))
    centre, lower, upper = (
        end.flatten()[list(active)] for end in (like, problem.lower, problem.upper)
    )
    return LocalProblem(
        Graph(nodes, graph.device, graph.dtype),
        centre,
        lower,
        upper,
        problem.rows,
        problem.row_names,
    )


@torch.no_grad()
def _sample(problem: LocalProblem, answers: dict[_Query, SignAnswer], clock: Clock) -> None:
    """Look for positive values of the open queries at points of the box."""
    shape = problem.centre.shape
    generator = torch.Generator().manual_seed(0)
    fractions = torch.rand(_SAMPLES, *shape, generator=generator, dtype=torch.float64)
    along = torch.linspace(0, 1, _SAMPLES, dtype=torch.float64)
    along = along.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    fractions = torch.cat([fractions, fractions.round(), along]).to(problem.centre)
    points = problem.lower + fractions * (problem.upper - problem.lower)
    points = torch.minimum(torch.maximum(points, problem.lower), problem.upper)
    sums = path_sums(problem.graph.double)
    open_ = [query for query, answer in answers.items() if answer.upper_bound > 0]
    for query in clock.in_time(open_):
        functional = Functionals.of_entries(problem, [query])
        rows = torch.zeros(len(points), dtype=torch.long, device=points.device)
        values = functional.values(sums, points, rows)
        best = int(values.argmax())
        if float(values[best]) > 0:
            answers[query] = replace(answers[query], witness=points[best])


def _search(
    problem: LocalProblem,
    root: RootBounds,
    answers: dict[_Query, SignAnswer],
    limits: SignLimits,
    clock: Clock,
    by_boxes: bool,
    seconds: Counter[tuple[int, int]],
) -> float:
    """Branch and bound on what is open; returns the seconds that all questions share."""
    queries = [q for q, a in answers.items() if a.upper_bound > 0 and a.witness is None]
    if not queries or clock.is_over:
        return 0.0
    begin = time.perf_counter()
    functionals = Functionals.of_entries(problem, queries)
    rows = torch.tensor([row for row, _, _ in queries], device=problem.rows.device)
    with torch.no_grad():
        search = (
            FunctionalBisection(functionals, clock=clock)
            if by_boxes
            else FunctionalSearch(functionals, functionals.spread(root, rows), clock=clock)
        )
    shared = time.perf_counter() - begin
    for index, query in enumerate(queries):
        begin = time.perf_counter()
        left = replace(limits, timeout=min(limits.timeout, clock.left))
        found = is_ever_positive(search, index, left)
        bound = min(found.upper_bound, answers[query].upper_bound)
        answers[query] = replace(found, upper_bound=bound)
        seconds[query[:2]] += time.perf_counter() - begin
    return shared
