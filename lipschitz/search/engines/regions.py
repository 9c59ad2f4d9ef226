"""Branch and bound that cuts the box and splits neurons, for ReLU networks with few inputs.

A subdomain is a box in which the signs of some neurons are fixed. Cutting an edge of the box
narrows everything at once, but around a point where kinks of several neurons meet it never ends;
fixing the sign of a neuron ends with one gradient, but there are many neurons as long as the box is
wide. Both kinds of splits share one pool here, and the better split of each kind is known from
the bound, and which kind gains more is measured while the search runs.

Every subdomain is bounded from scratch by zonotopes
(:mod:`lipschitz.search.subdomain_bounds.zonotopes`). Fixed signs are linear constraints on the
inputs: they tighten later neurons, show that nothing is left of a subdomain, and make its box
smaller (:mod:`lipschitz.search.subdomain_bounds.halfspaces`). A subdomain whose bound no open slope
moves is a leaf: wherever its signs hold, the gradient's norm is the bound.

Small regions are bounded in float64, whatever the network's precision, since the margins of float32
could hold a gap of 1e-4 open; wide ones of networks in float32 in float32, which is faster.

Shapes: B subdomains, D inputs, N neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.feasibility.batched import search_feasible
from lipschitz.bounds.feasibility.by_program import check_leaf
from lipschitz.bounds.lower.attack import Attack
from lipschitz.bounds.native.interval import Interval
from lipschitz.bounds.native.memory.budget import default_memory_budget
from lipschitz.bounds.native.plan import Plan
from lipschitz.bounds.witness import witness_norms
from lipschitz.network.activations import PiecewiseLinear
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from lipschitz.rounding import rounded_up
from lipschitz.search.engines.exact_rows import HOLLOW, SOLID, ExactRows
from lipschitz.search.engines.linked_signs import LinkedSigns
from lipschitz.search.engines.region_boxes import (
    UNDECIDED,
    Regions,
    halves,
    largest_edge,
    widest_edge,
)
from lipschitz.search.engines.split_gains import SplitGains
from lipschitz.search.interface import Report
from lipschitz.search.subdomain_bounds.halfspaces import smaller_boxes
from lipschitz.search.subdomain_bounds.zonotope_norms import norms_of_zonotopes
from lipschitz.search.subdomain_bounds.zonotopes import Gradients, Neurons, ZonotopePass
from lipschitz.search.subdomains import NeuronLayout, concatenate

# Numbers of one chunk of regions: a choice, measured on one core (see docs/theory/input-splits.md).
_CHUNK = 500_000
# Tensors as large as the columns of the widest node that are alive at once.
_COPIES = 12
# Points of every round that are tried as witnesses, those of the largest norms. A choice.
_WITNESSES = 8
# Share of the bound that the open slopes of a leaf may move: below any tolerance that is asked for.
_LEAF = 1e-7
# What a leaf's true gradient may be below its bound for this to count as attained. A choice.
_ATTAINED = 1e-5
# Steps of the batched test whether a leaf is empty. A choice.
_FEASIBILITY_STEPS = 120
# Neurons may be split in subdomains where at most so many slopes matter; those count whose part of
# the bound's excess is at least this share of the largest one's. Measured on ACAS Xu (eps 0.1, 8
# seconds of one core): 12, 14 and 18 times the truth with 16 or 20, 24 and 32.
_MOST_NEURONS, _MATTERS = 20, 0.01
# A cut that lowers the bound by less than this share has gained next to nothing. A choice.
_IDLE = 1e-3
# Boxes with at least so many open neurons whose longest edge is at least this share of the whole
# box's are bounded in single precision, if that is the network's. Measured with the numbers above:
# a third more regions in the same time. Margins of small boxes are too large for it: where values
# coincide up to rounding, as in lattices of few planes, they would leave slopes open for ever.
_OPEN_IN_SINGLE, _EDGE_IN_SINGLE = 12, 0.01


def can_search_regions(graph: Graph) -> bool:
    """Whether the network is made of affine maps, ReLU and LeakyReLU only."""
    return all(
        node.affine is not None or isinstance(node.activation, PiecewiseLinear)
        for node in graph.nodes[1:]
    )


class RegionSearch:
    """What branch and bound asks of an engine.

    Args:
        problem: The problem, with rows that are measured one by one.
        known: Upper bounds of the whole box that are known, [R]; none if None.
        preacts: Pre-activation intervals that hold in it, by activation node, [1, *shape]; none if
            None.
        memory_budget: Bytes for one chunk; a part of what is free if None.
        clock: When to stop; what is not reached is as loose as its parent.

    Attributes:
        asked: The problem as it was given; points are of its precision.
        problem: The problem in float64.
        attack: What looks for large gradients beside the search; None if nothing does.
    """

    # Every gap closes: by cuts of the box, and where kinks meet by splits of neurons.
    is_smooth = True

    def __init__(
        self,
        problem: LocalProblem,
        known: Tensor | None = None,
        preacts: dict[int, Interval] | None = None,
        *,
        memory_budget: int | None = None,
        clock: Clock = UNLIMITED,
    ) -> None:
        self.asked, self.clock = problem, clock.without_notes()
        self.attack: Attack | None = None
        self.problem = problem if _is_double(problem) else problem.to(torch.float64)
        graph = self.problem.graph
        plan = Plan(graph)
        self.layout = NeuronLayout(graph, plan.activations)
        self._pass = ZonotopePass(plan, self.layout)
        self._links = LinkedSigns(graph, self.layout)
        self._exact: ExactRows | None = None
        self._single: ZonotopePass | None = None
        if problem.graph.dtype == torch.float32:
            self._single = ZonotopePass(Plan(problem.graph), self.layout)
        self._numbers = (memory_budget or default_memory_budget(graph.device)) // (8 * _COPIES)
        self._widest = max(node.shape.numel() for node in graph.nodes)
        self._seconds = 0.0  # of one column of one region
        self._gains, self._threshold = SplitGains(_MOST_NEURONS + 1, graph.device), 0.0
        self._known: Interval | None = None
        if self.layout.total:
            self._known = self._intervals(preacts)
        first = self._whole_box(known)
        self._inputs = first.lower.shape[1]
        self.first = self._bounded(first)

    def _intervals(self, preacts: dict[int, Interval] | None) -> Interval:
        """What is known of the pre-activations of the whole box, [1, N]."""
        upper = self.problem.rows.new_full((1, self.layout.total), torch.inf)
        known = Interval(-upper, upper)
        if preacts is not None:
            ends = ({i: preacts[i][side].double() for i in self.layout.slices} for side in (0, 1))
            known = Interval(*(self.layout.join(end, 1, self.problem.rows) for end in ends))
        return Interval(*(end.masked_fill(self._links.is_zero, 0.0) for end in known))

    def _whole_box(self, known: Tensor | None) -> Regions:
        problem = self.problem
        count = len(problem.rows)
        row = torch.arange(count, device=problem.rows.device)
        bounds = torch.full_like(problem.rows[:, 0], torch.inf) if known is None else known
        lower, upper = (
            end.flatten().expand(count, -1).clone() for end in (problem.lower, problem.upper)
        )
        # A neuron that is 0 everywhere has no gradient, whatever its slope.
        sign = -self._links.is_zero.to(torch.int8).repeat(count, 1)
        nothing = torch.full_like(row, -1)
        return Regions(
            row,
            bounds.to(problem.rows),
            nothing,
            lower,
            upper,
            sign,
            nothing,
            nothing,
            row * 0,
            torch.full_like(row, self.layout.total),
            row * 0,
        )

    def root(self) -> Regions:
        """One subdomain per row of the problem: the whole box."""
        return self.first

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.problem.graph.input_shape)

    def _bounded(self, regions: Regions) -> Regions:
        """The same with bounds, smaller boxes and choices; what is shown to be empty has none."""
        # Regions of a chunk have about as many open neurons, so that few columns stay empty, and
        # are bounded in one precision.
        wide = self._is_wide(regions)
        order = (regions.open_neurons + wide * (1 + self.layout.total)).argsort()
        in_double = int((~wide).sum())
        waiting, parts, done = regions.take(order), [], 0
        while done < len(regions):
            columns = self._columns(int(waiting.open_neurons[done]))
            count = self._at_once(int(waiting.open_neurons[done]))
            end = done + count if done >= in_double else min(done + count, in_double)
            part = waiting.take(slice(done, end))
            if not self.clock.allows(self._seconds * columns * len(part)):
                each = max(self._seconds * columns, 1e-9)
                part = part.take(slice(0, int(self.clock.left / each)))
                if not len(part):
                    break
            begin = self.clock.now()
            engine = self._pass if done < in_double else self._single
            parts.append(self._bounded_at_once(part, engine))
            self._seconds = (self.clock.now() - begin) / (columns * len(part))
            done += len(part)
        rest = waiting.take(slice(done, None))
        parts.append(rest.having(choice=widest_edge(rest)))
        return concatenate(parts).take(order.argsort())

    def _columns(self, open_neurons: int) -> int:
        """About how many columns a region has."""
        return 2 * self._inputs + 1 + open_neurons

    def _at_once(self, open_neurons: int) -> int:
        """How many regions make a chunk."""
        return max(1, min(self._numbers, _CHUNK) // (self._columns(open_neurons) * self._widest))

    def _is_wide(self, regions: Regions) -> Tensor:
        """Which regions are bounded in single precision, [B]."""
        if self._single is None:
            return torch.zeros_like(regions.row, dtype=torch.bool)
        whole = (self.problem.upper - self.problem.lower).flatten()
        long = (regions.upper - regions.lower >= _EDGE_IN_SINGLE * whole.clamp(min=1e-300)).any(1)
        return long & (regions.open_neurons >= _OPEN_IN_SINGLE)

    def _bounded_at_once(self, regions: Regions, engine: ZonotopePass) -> Regions:
        neurons, gradients = self._both_passes(regions, engine)
        precision = engine.plan.graph.dtype
        box, empty = smaller_boxes(regions.lower, regions.upper, neurons.spaces, precision)
        norms = norms_of_zonotopes(gradients, self.problem.measure.each)
        bound = norms.upper_bound.double()
        bound = torch.where(bound.isnan(), regions.upper_bound, bound)
        bound = torch.minimum(bound, regions.upper_bound).masked_fill(
            empty | neurons.empty, -torch.inf
        )
        pull = bound.new_zeros(regions.sign.shape)
        pull = pull.scatter_add(1, gradients.neuron, norms.pull.double())
        is_open = (neurons.lower < 0) & (neurons.upper > 0)
        return self._chosen(
            regions.having(
                lower=box.lower,
                upper=box.upper,
                upper_bound=bound,
                open_neurons=is_open.sum(1),
            ),
            neurons,
            pull,
        )

    def _both_passes(self, regions: Regions, engine: ZonotopePass) -> tuple[Neurons, Gradients]:
        """Pre-activations and gradients; boxes are rounded outwards to the precision of a pass."""
        rows, sign = self.problem.rows[regions.row], regions.sign
        dtype = engine.plan.graph.dtype
        lower = self._shaped(-rounded_up(-regions.lower, dtype))
        upper = self._shaped(rounded_up(regions.upper, dtype))
        known = self._known
        if known is not None:
            known = Interval(-rounded_up(-known.lower, dtype), rounded_up(known.upper, dtype))
        neurons = engine.neurons(lower, upper, sign, known)
        return neurons.double(), engine.gradients(rows.to(dtype), neurons, sign)

    def _chosen(self, regions: Regions, neurons: Neurons, pull: Tensor) -> Regions:
        """What removes most of the bound's excess, an edge of the box and a neuron.

        Args:
            regions: The regions.
            neurons: Their pre-activations.
            pull: How much of the bound's excess is due to the slope of each neuron, [B, N].
        """
        columns = neurons.columns.abs()
        radius = (neurons.upper - neurons.lower).clamp(min=torch.finfo(pull.dtype).tiny) / 2
        # An edge counts with its share in the widths of the neurons that matter.
        share = columns / torch.maximum(columns.sum(1), radius).unsqueeze(1)
        edge = largest_edge(regions, torch.bmm(share, pull.unsqueeze(2)).squeeze(2))
        if not pull.shape[1]:
            return regions.having(edge=edge)
        largest, neuron = pull.masked_fill(regions.sign != 0, 0).max(1)
        neuron = (self._inputs + neuron).masked_fill(largest <= 0, -1)
        is_leaf = largest <= _LEAF * regions.upper_bound
        return regions.having(
            edge=edge,
            neuron=neuron,
            matter=(pull > _MATTERS * largest.unsqueeze(1)).sum(1),
            choice=torch.full_like(edge, UNDECIDED).masked_fill(is_leaf, -1),
        )

    def children(self, parents: Regions) -> Regions:
        """Both closed halves of every subdomain, bounded."""
        waits = parents.choice == UNDECIDED
        few = parents.matter <= _MOST_NEURONS
        on_neuron = few & self._gains.prefers_second(parents.matter)
        # Where kinks meet, no cut of an edge helps, whatever it does elsewhere.
        on_neuron = on_neuron | (parents.idle >= 2 * self._inputs)
        on_neuron = (parents.edge < 0) | (on_neuron & (parents.neuron >= 0))
        choice = torch.where(on_neuron, parents.neuron, parents.edge)
        choice = torch.where(waits, choice, parents.choice)
        both = self._bounded(halves(parents.having(choice=choice), self._links))
        # A child needs not be below the threshold.
        floor = max(self._threshold, torch.finfo(both.upper_bound.dtype).tiny)
        left = both.upper_bound.clamp(min=floor).reshape(2, -1)
        gain = (parents.upper_bound.clamp(min=floor) / left).log()
        idle = torch.where((choice < self._inputs) & (gain < _IDLE), parents.idle + 1, 0)
        both, gain = both.having(idle=idle.flatten()), gain.mean(0)
        known = waits & few & gain.isfinite()
        self._gains.note((choice >= self._inputs)[known], parents.matter[known], gain[known])
        return both

    def refine(self, subdomains: Regions, threshold: float = 0.0) -> Report:
        """Centres of the boxes as candidates for witnesses; bounds are as tight as they get."""
        self._threshold = threshold
        centres = self._points(subdomains, torch.zeros_like(subdomains.lower))
        rows = self.asked.rows[subdomains.row]
        gradients = self.asked.graph.gradients(centres, rows).flatten(1)
        norms = self.asked.measure.each.of_rows(gradients).nan_to_num(0.0)
        best = norms.topk(min(_WITNESSES, len(norms))).indices
        return Report(subdomains, centres[best], subdomains.row[best])

    def settle(self, leaves: Regions) -> Report:
        """Whether a leaf is empty, or a point of it has the leaf's bound; else it is split on.

        Leaves are bounded anew in double precision; those that turn out to be none stay open.
        """
        # As many as make a chunk; the others come again.
        count = self._at_once(int(leaves.open_neurons.max()))
        later = leaves.take(slice(count, None))
        leaves = self._bounded_at_once(leaves.take(slice(0, count)), self._pass)
        others = leaves.take((leaves.choice >= 0) & ~leaves.upper_bound.isneginf())
        others = concatenate([others, later])
        leaves = leaves.take(leaves.choice < 0)
        if not len(leaves):
            return Report(others, self._points(leaves, leaves.lower), leaves.row)
        report = self._settled(leaves)
        return report.having(subdomains=concatenate([report.subdomains, others]))

    def _settled(self, leaves: Regions) -> Report:
        """:meth:`settle` of what are leaves in double precision."""
        lower, upper = self._shaped(leaves.lower), self._shaped(leaves.upper)
        neurons = self._pass.neurons(lower, upper, leaves.sign, self._known)
        empty, points, programs = neurons.empty, torch.zeros_like(leaves.lower), 0
        attained = self._attains(leaves, points)
        choice = self._next_of_leaves(leaves, neurons)
        self._exactly(leaves, neurons, empty | attained, empty, choice)
        if len(neurons.spaces) and not bool((attained | empty).all()):
            spaces = neurons.spaces.scaled()
            test = search_feasible(spaces.matrix, spaces.constant, _FEASIBILITY_STEPS)
            empty |= test.empty & ~attained
            points = torch.where(attained.unsqueeze(1), points, test.point)
            attained = attained | self._attains(leaves, points)
            undecided = (~(empty | attained)).nonzero()[:, 0].tolist()
            for index in self.clock.in_time(undecided):
                matrix, constant = spaces.matrix[index], spaces.constant[index]
                verdict = check_leaf(matrix, constant, self.clock.left)
                empty[index], programs = verdict.empty, programs + 1
                if verdict.point is not None:
                    points[index] = verdict.point.to(points)
                    one = slice(index, index + 1)
                    if not bool(self._attains(leaves.take(one), points[one])):
                        empty[index] = self._is_hollow(leaves, neurons, points, index)
            if undecided:
                attained = attained | self._attains(leaves, points)
        closed = attained | (choice < 0)
        left = leaves.having(choice=choice).take(~(empty | closed))
        points = self._points(leaves, points)
        return Report(left, points, leaves.row, programs, leaves.take(closed & ~empty))

    def _next_of_leaves(self, leaves: Regions, neurons: Neurons) -> Tensor:
        """What to split of a leaf whose region is relaxed, because neurons are open; else -1.

        The one whose two lines are farthest apart is taken, if by more than rounding explains.
        """
        if not self.layout.total:
            return leaves.choice
        lower, upper = neurons.lower.clamp(max=0), neurons.upper.clamp(min=0)
        gap = -lower * upper / (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
        gap = gap.masked_fill(leaves.sign != 0, 0)
        largest, neuron = gap.max(1)
        scale = torch.maximum(neurons.lower.abs(), neurons.upper.abs()).amax(1)
        return torch.where(largest > 1e-9 * scale, self._inputs + neuron, -1)

    def _exactly(
        self, leaves: Regions, neurons: Neurons, done: Tensor, empty: Tensor, choice: Tensor
    ) -> None:
        """Note leaves without inner points as empty, and what has to be split to know, in place."""
        whole = self.problem.upper > self.problem.lower
        if not bool(whole.all()):  # a box within a hyperplane has none at all
            return
        if self._exact is None:
            self._exact = ExactRows(self.problem.graph, self.layout)
        if not self._exact.is_usable:
            return
        for index in self.clock.in_time((~done).nonzero()[:, 0].tolist()):
            ends = neurons.lower[index], neurons.upper[index]
            found = self._exact.look(leaves.sign[index], *ends)
            if found == HOLLOW:
                empty[index] = True
            elif found != SOLID and int(choice[index]) < 0:
                choice[index] = self._inputs + found

    def _is_hollow(self, leaves: Regions, neurons: Neurons, points: Tensor, index: int) -> bool:
        """Whether a leaf has no inner points near a point of its box."""
        if self._exact is None or not self._exact.is_usable:
            return False
        lower, upper = leaves.lower[index], leaves.upper[index]
        point = (lower + upper) / 2 + (upper - lower) / 2 * points[index]
        ends = neurons.lower[index], neurons.upper[index]
        return self._exact.is_hollow_at(leaves.sign[index], *ends, point)

    def _attains(self, leaves: Regions, points: Tensor) -> Tensor:
        """Whether the true gradient at a point of the box has the leaf's bound, [B]."""
        norms = self.witness_norms(self._points(leaves, points), leaves.row)
        return norms >= leaves.upper_bound * (1 - _ATTAINED)

    def _points(self, regions: Regions, shares: Tensor) -> Tensor:
        """Points [-1, 1]^D of boxes as inputs of the network's own precision."""
        centre, radius = (regions.lower + regions.upper) / 2, (regions.upper - regions.lower) / 2
        points = self._shaped(centre + radius * shares).to(self.asked.centre)
        return torch.minimum(torch.maximum(points, self.asked.lower), self.asked.upper)

    def witness_norms(self, points: Tensor, rows: Tensor) -> Tensor:
        """True gradient norms, see :func:`lipschitz.bounds.witness.witness_norms`."""
        return witness_norms(self.asked, points, rows)


def _is_double(problem: LocalProblem) -> bool:
    return problem.graph.dtype == torch.float64
