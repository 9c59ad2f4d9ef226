import pytest
import torch
from torch import nn

from lipschitz.bounds.native.backward.cotangent_pass import cotangent_upper_bound
from lipschitz.bounds.native.forward.preactivations import preactivation_bounds
from lipschitz.bounds.native.forward.value_pass import value_upper_bound
from lipschitz.bounds.native.interval import forward_intervals, slope_intervals
from lipschitz.bounds.native.lines import activation_lines, product_lines
from lipschitz.bounds.native.memory import effort as efforts
from lipschitz.bounds.native.memory import tiles as tiling
from lipschitz.bounds.native.memory.effort import Extent, cotangent_effort, value_effort
from lipschitz.bounds.native.memory.tiles import Tiles
from lipschitz.bounds.native.memory.windows import Window, crop, unit_window
from lipschitz.bounds.native.plan import Plan, unit_rows
from lipschitz.network.tracing import build_graph


class Residual(nn.Module):
    """Two convolutions with a shortcut around the second, and a layer that reads all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 3, 3, stride=2)
        self.last = nn.Linear(3 * 5 * 5, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.last(torch.relu(self.third(x)).flatten(1))


@pytest.fixture(scope="module")
def plan():
    return Plan(build_graph(Residual().double().eval(), (2, 12, 12)))


@pytest.fixture(scope="module")
def box():
    torch.manual_seed(1)
    centre = torch.rand(1, 2, 12, 12, dtype=torch.float64)
    return centre - 0.05, centre + 0.05


def test_unit_windows_are_unit_rows():
    shape = torch.Size((3, 6, 5))
    like = torch.zeros((), dtype=torch.float64)
    indices = torch.tensor([30 + 2 * 5 + 1, 4 * 5 + 3, 60 + 2 * 5 + 2])
    rows = unit_rows(indices, shape, like)
    window = unit_window(indices, ((2, 1), (3, 3)), shape, like)
    assert torch.equal(window.full(), rows)
    assert window.sizes == (3, 3)
    flat = unit_window(torch.tensor([4, 0]), ((), ()), torch.Size((5,)), like)
    assert torch.equal(flat.full(), unit_rows(torch.tensor([4, 0]), torch.Size((5,)), like))
    number = unit_window(torch.tensor([0]), ((), ()), torch.Size(()), like)
    assert torch.equal(number.full(), unit_rows(torch.tensor([0]), torch.Size(()), like))


def test_a_sum_of_windows_is_no_larger_than_both():
    shape = torch.Size((2, 9, 9))
    first, second = torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape)
    first[..., 2:4, 5:6] = 1.0
    second[..., 3:6, 4:5] = 2.0
    both = crop(first) + crop(second)
    assert torch.equal(both.full(), first + second)
    assert (both.starts, both.sizes) == ((2, 4), (4, 2))


def test_extents_are_the_windows_that_a_pass_meets(plan, box):
    """Both passes: the largest tensor foretold is the largest there is."""
    intervals = forward_intervals(plan.graph, *box)
    preacts = {a: intervals.bounds[plan.preact_node(a)] for a in plan.activations}
    lines = {a: activation_lines(plan.graph.nodes[a].activation, preacts[a]) for a in preacts}
    last = plan.activations[-1]
    node = plan.preact_node(last)
    shape = plan.graph.nodes[node].shape
    place = ((2, 2), (1, 2))
    indices = torch.tensor([2 * 5 + 2, 25 + 2 * 5 + 3])
    record = {}
    rows = unit_window(indices, place, shape, box[0])
    centre, radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    value_upper_bound(plan, node, rows, lines, centre, radius, record)
    largest = max(window.values[0, 0].numel() for window in record.values())
    effort = value_effort(plan, node, Extent.at(shape, place))
    assert effort.peak == largest
    assert record[0].sizes == (7, 9)  # 3 by 5 by the strides, and 2 for each convolution before

    slopes = slope_intervals(plan.graph, preacts)
    wide = {a: type(s)(-torch.ones_like(s[0]), torch.ones_like(s[0])) for a, s in slopes.items()}
    chords = {a: product_lines(wide[a], slopes[a]) for a in slopes}
    seen = []
    relax = Window.having

    def having(window, values):
        seen.append(values[0, 0].numel())
        return relax(window, values)

    first = plan.activations[0]
    start = Extent.at(plan.graph.nodes[first].shape, ((6, 6), (1, 1)))
    effort = cotangent_effort(plan, first, start)
    rows = unit_window(torch.tensor([6 * 12 + 6]), start.place, start.shape, box[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Window, "having", having)
        cotangent_upper_bound(plan, first, rows, chords, torch.eye(3).double()[:1])
    assert effort.peak == max(seen)


@pytest.mark.parametrize("call", [0.0, 1e12])
@pytest.mark.parametrize("numbers", [1, 500, 1e9])
def test_chunks_hold_every_row_of_every_box_once(plan, monkeypatch, call, numbers):
    monkeypatch.setitem(efforts._CALL, "cpu", call)
    node = plan.preact_node(plan.activations[1])
    indices = torch.arange(4 * 144)[::3].flip(0)
    tiles = Tiles.of(plan, node, indices, 3, numbers, value_effort)
    hits = torch.zeros(3, len(indices))
    found = torch.zeros(2, 3, len(indices), dtype=torch.int64)
    for chunk in tiles.chunks():
        hits[chunk.boxes, chunk.rows] += 1
        found[:, chunk.boxes, chunk.rows] = chunk.indices
        rows = tiles.unit_rows(chunk, torch.zeros(()))
        assert torch.equal(rows.full(), unit_rows(chunk.indices, tiles.shape, torch.zeros(())))
    assert bool((hits == 1).all())
    assert torch.equal(tiles.restored(found), indices.expand(2, 3, -1))
    if numbers == 1e9:  # calls that take no time, or nothing but time
        assert len(tiles.ends) == (1 if call else 48)


@pytest.mark.parametrize("call", [0.0, 1e12])
def test_bounds_do_not_depend_on_how_rows_are_cut(plan, box, monkeypatch, call):
    intervals = forward_intervals(plan.graph, *box)
    usual = preactivation_bounds(plan, *box, intervals, budget=2**24)
    monkeypatch.setitem(efforts._CALL, "cpu", call)
    for budget in (1, 2**12, 2**30):
        again = preactivation_bounds(plan, *box, intervals, budget=budget)
        for activation, bounds in usual.items():
            torch.testing.assert_close(tuple(again[activation]), tuple(bounds))


def test_rows_in_the_wrong_place_are_caught(plan, box, monkeypatch):
    """Negative control: the comparison above must notice bounds that are not put back in order."""
    intervals = forward_intervals(plan.graph, *box)
    usual = preactivation_bounds(plan, *box, intervals, budget=2**24)
    monkeypatch.setitem(efforts._CALL, "cpu", 0.0)
    monkeypatch.setattr(tiling.Tiles, "restored", lambda self, bounds: bounds)
    again = preactivation_bounds(plan, *box, intervals, budget=2**24)
    last = plan.activations[-1]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(tuple(again[last]), tuple(usual[last]))
