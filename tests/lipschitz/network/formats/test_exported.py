"""Programs of torch.export, and the files that are refused with what to do."""

import logging
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, ROOT
from layers import LAYERS
from oracles import jacobians, points_in_box
from torch import nn

from lipschitz import Prepared, load_model, local_lipschitz, make_problem
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph
from models.checkpoint import load_checkpoint


@pytest.mark.parametrize("open_batch", [True, False], ids=["open batch", "one example"])
def test_exported_programs_come_back(tmp_path, open_batch):
    for case in [*CASES, *LAYERS][:: 7 if open_batch else 5]:
        model = case.model()
        x = case.point()[None]
        dynamic = ({0: torch.export.Dim("batch")},) if open_batch else None
        x = x.expand(2, *case.input_shape) if open_batch else x
        program = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=False)
        torch.export.save(program, tmp_path / "net.pt2")
        network, shape = read_network(tmp_path / "net.pt2")
        assert shape == case.input_shape
        points = torch.rand(3, *shape).double()
        torch.testing.assert_close(network(points), model(points), msg=case.name)
        graph = build_graph(network, shape)
        assert graph.dtype == torch.float64


class Sliced(nn.Module):
    """Slopes per channel, and a function that is exported as several."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 2)
        self.slopes = nn.PReLU(3)
        with torch.no_grad():
            self.slopes.weight.copy_(torch.tensor([-0.5, 0.2, 1.5]))

    def forward(self, x):
        y = self.slopes(self.conv(x))
        return F.prelu(F.softsign(y) + F.logsigmoid(y), weight=self.slopes.weight).flatten(1)


def test_activations_that_are_exported_in_another_form(tmp_path):
    torch.manual_seed(0)
    model, x = Sliced().double().eval(), torch.rand(1, 5, dtype=torch.float64)
    torch.export.save(torch.export.export(model, (x[None],)), tmp_path / "net.pt2")
    kinds = []
    for network in (model, load_model(tmp_path / "net.pt2")):
        graph = build_graph(network, (1, 5))
        kinds.append({str(graph.nodes[i].activation) for i in graph.activation_nodes})
        problem = make_problem(graph, x, 0.3)
        points = points_in_box(problem.lower, problem.upper, 200)
        sampled = jacobians(model, points).flatten(2).abs().sum(2).amax(0)
        bounds = Prepared(graph, method="crown", engine="native").upper_bounds(problem)
        assert (bounds >= sampled * (1 - 1e-9)).all()
        assert (bounds <= 3 * sampled).all()
    assert kinds[0] == kinds[1]


def test_bounds_are_those_of_the_module(tmp_path):
    case = next(case for case in CASES if case.name == "residual_convolution")
    model, x = case.model(), case.point()
    torch.export.save(torch.export.export(model, (x[None],)), tmp_path / "net.pt2")
    ours = local_lipschitz(load_model(tmp_path / "net.pt2"), x, 0.1, engine="native")
    expected = local_lipschitz(model, x, 0.1, engine="native")
    assert ours.upper_bound == pytest.approx(expected.upper_bound, rel=1e-9)


def test_unsupported_operators_are_named(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Threshold(0.1, 20.0)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(1, 3),)), tmp_path / "net.pt2")
    network, shape = read_network(tmp_path / "net.pt2")
    with pytest.raises(NotImplementedError, match=r"threshold"):
        build_graph(network, shape)


def saved_program(path):
    program = torch.export.export(nn.Linear(3, 2), (torch.rand(1, 3),))
    torch.export.save(program, path)
    return path.read_bytes()


def cut(path):
    content = saved_program(path)
    path.write_bytes(content[: len(content) // 2])


def overwritten(path):
    content = bytearray(saved_program(path))
    content[200:2000:7] = bytes(len(content[200:2000:7]))
    path.write_bytes(bytes(content))


def zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "hello")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cut, r"not a program of torch\.export\.save, or it is damaged"),
        (overwritten, r"not a program of torch\.export\.save, or it is damaged"),
        (zip_of_text, r"not a program of torch\.export\.save, or it is damaged"),
        (lambda path: torch.save({"w": torch.ones(1)}, path), "torch.save wrote it; weights alone"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.mkdir(), "is a folder"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, write, words):
    write(tmp_path / "net.pt2")
    with pytest.raises(InputError, match=words) as error:
        read_network(tmp_path / "net.pt2")
    assert "\n" not in str(error.value)


def test_torch_prints_nothing_of_a_damaged_file(tmp_path):
    """In a process of its own: torch's log keeps the stderr that it found when it was imported."""
    overwritten(tmp_path / "net.pt2")
    process = (
        "import sys; from lipschitz.network.formats import read_network\n"
        "try: read_network(sys.argv[1])\nexcept ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", process, str(tmp_path / "net.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "it is damaged" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_torch_may_log_again_afterwards(tmp_path):
    (tmp_path / "net.pt2").write_text("hello")
    with pytest.raises(InputError):
        read_network(tmp_path / "net.pt2")
    assert logging.root.manager.disable == logging.NOTSET


def test_other_files_say_what_to_do(tmp_path):
    (tmp_path / "net.pt2").write_text("hello")
    with pytest.raises(InputError, match=r"not a program of torch\.export\.save"):
        read_network(tmp_path / "net.pt2")
    with pytest.raises(InputError, match=r"\.keras files are not read; save it with model\.save"):
        read_network(tmp_path / "net.keras")
    with pytest.raises(InputError, match="there is no file"):
        read_network(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="weights alone go with a model"):
        read_network(tmp_path / "weights.pth")
    with pytest.raises(InputError, match="has no argument 'width'"):
        read_network(tmp_path / "net.pt2", width=3)
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.rand(1, 3)), tmp_path / "script.pt")
    with pytest.raises(InputError, match=r"TorchScript.*torch\.export"):
        load_checkpoint(tmp_path / "script.pt")
