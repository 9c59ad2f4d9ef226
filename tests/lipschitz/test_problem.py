import pytest
import torch
from cases import mlp

from lipschitz.errors import InputError
from lipschitz.network.tracing import build_graph
from lipschitz.problem import class_rows, input_box, make_problem


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return build_graph(mlp(4, 5, 3).eval(), (4,))


def test_box_is_cut_to_the_data_range():
    centre = torch.tensor([0.1, 0.5, 1.0])
    lower, upper = input_box(centre, 0.2, (0.0, 1.0))
    torch.testing.assert_close(lower, torch.tensor([0.0, 0.3, 0.8]))
    torch.testing.assert_close(upper, torch.tensor([0.3, 0.7, 1.0]))


def test_radius_may_differ_per_coordinate():
    lower, upper = input_box(torch.zeros(2, 2), torch.tensor([[0.1], [0.2]]))
    assert torch.equal(upper, torch.tensor([[0.1, 0.1], [0.2, 0.2]]))
    assert torch.equal(lower, -upper)


@pytest.mark.parametrize(
    "eps", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -1e-9, 0, 0])]
)
def test_bad_eps_is_refused(graph, eps):
    with pytest.raises(InputError, match="eps"):
        make_problem(graph, torch.zeros(4), eps)


@pytest.mark.parametrize(
    "x", [torch.zeros(5), torch.zeros(2, 4), torch.zeros(1, 1, 4), torch.zeros(())]
)
def test_wrong_shape_is_refused(graph, x):
    with pytest.raises(InputError, match=r"takes \(4,\)"):
        make_problem(graph, x, 0.1)


def test_a_graph_made_for_a_whole_batch_is_noticed():
    batch = build_graph(torch.nn.Linear(4, 2).eval(), (3, 4))
    with pytest.raises(InputError, match=r"takes \(3, 4\).*leave the batch dimension out"):
        make_problem(batch, torch.zeros(4), 0.1)
    with pytest.raises(InputError, match=r"one example at a time$"):
        make_problem(batch, torch.zeros(3), 0.1)


def test_a_batch_of_one_is_accepted(graph):
    problem = make_problem(graph, torch.ones(1, 4), 0.5)
    assert problem.centre.shape == (4,)


def test_points_outside_the_range_or_not_finite_are_refused(graph):
    with pytest.raises(InputError, match="outside the data range"):
        make_problem(graph, torch.full((4,), 2.0), 0.1, clip=(0.0, 1.0))
    with pytest.raises(InputError, match="NaN"):
        make_problem(graph, torch.full((4,), float("nan")), 0.1)


def test_rows():
    rows, names = class_rows(3)
    assert torch.equal(rows, torch.eye(3).double())
    assert names == ("0", "1", "2")
    rows, names = class_rows(3, [2])
    assert rows.tolist() == [[0, 0, 1]]
    rows, names = class_rows(3, margin_of=1)
    assert rows.tolist() == [[-1, 1, 0], [0, 1, -1]]
    assert names == ("1-0", "1-2")


@pytest.mark.parametrize(
    "arguments",
    [{"classes": [3]}, {"classes": [-1]}, {"classes": [0, 0]}, {"classes": []}, {"margin_of": 9}],
)
def test_bad_classes_are_refused(arguments):
    with pytest.raises(InputError, match=r"class|output"):
        class_rows(3, **arguments)
