"""The attack and its evaluators: right values, no made-up gradients, nothing of the library."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.others.attack import Attack
from benchmarks.others.box import centre_of, radius_of
from benchmarks.others.evaluator import Network, load_network
from benchmarks.others.library import library_network
from benchmarks.others.worker import thinned
from lipschitz import local_lipschitz

ROOT = Path(__file__).parent.parent.parent.parent


def entries_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_layers_compute_what_the_library_computes(nets):
    torch.manual_seed(1)
    for entry in entries_of(nets):
        x = torch.randn(5, *entry["input_shape"])
        outputs, _ = load_network(entry, nets).outputs(x.double())
        assert torch.allclose(outputs.float(), library_network(entry, nets)(x), atol=1e-5)


def test_the_attack_reaches_the_exact_constant(nets):
    for entry in entries_of(nets):
        eps = entry["boxes"][0]["eps"]
        centre, radius = centre_of(entry, nets), radius_of(entry, eps)
        found = Attack(load_network(entry, nets), centre, radius).run(0.7)
        model = library_network(entry, nets)
        exact = local_lipschitz(model, torch.tensor(centre), torch.tensor(radius), method="lipmip")
        assert exact.status == "exact"
        assert found.value <= exact.upper_bound * (1 + 1e-6)
        assert found.value >= exact.upper_bound * 0.999
        assert (abs(found.point.numpy() - centre) <= radius).all()
        assert [value for _, value in found.course] == sorted(value for _, value in found.course)


def test_a_kink_makes_no_gradient():
    """relu(x) - relu(-x) is x: at its kink a careless gradient has norm 0 or 2."""

    def line(x, kinks):
        return kinks.relu(x) - kinks.relu(-x)

    attack = Attack(Network(line), np.zeros(1, np.float32), np.ones(1, np.float32))
    assert attack.run(0.3).value == pytest.approx(1, abs=1e-12)


def test_equal_inputs_of_two_relus_that_rounding_tells_apart():
    """Two sums in another order: relu(z) - relu(-z') has the gradient of z everywhere."""
    weights = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def line(x, kinks):
        z = (x[0] * weights[0] + x[1] * weights[1]) + x[2] * weights[2]
        other = x[0] * weights[0] + (x[1] * weights[1] + x[2] * weights[2])
        return (kinks.relu(z) - kinks.relu(-other))[None]

    attack = Attack(Network(line), np.zeros(3, np.float32), np.ones(3, np.float32))
    assert attack.run(0.3).value == pytest.approx(0.6, abs=1e-9)


def test_norm_two_is_the_largest_singular_value():
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    attack = Attack(
        Network(lambda x, kinks: matrix @ x),
        np.zeros(2, np.float32),
        np.ones(2, np.float32),
        norm="2",
    )
    ticks = iter(range(10**6))
    assert attack.run(100, clock=lambda: next(ticks)).value == pytest.approx(4)


def test_the_same_seed_finds_the_same(nets):
    entry = entries_of(nets)[1]
    centre, radius = centre_of(entry, nets), radius_of(entry, 0.1)

    def after(batches):
        ticks = iter(range(10**6))
        network = load_network(entry, nets)
        return Attack(network, centre, radius, seed=3).run(batches, clock=lambda: next(ticks))

    assert after(60).value == after(60).value > 0


def test_operators_of_onnx_compute_what_the_library_computes(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    stored = {
        "kernel": random.normal(size=(2, 1, 3, 3)),
        "bias": random.normal(size=2),
        "weight": random.normal(size=(8, 3)),
        "shift": random.normal(size=3),
        "mean": np.array([0.5]),
    }
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Conv", ["a", "kernel", "bias"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node(
            "MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]
        ),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "weight"], ["f"]),
        helper.make_node("Add", ["f", "shift"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in stored.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    entry = {"file": "net.onnx", "input_shape": [1, 4, 4]}
    torch.manual_seed(0)
    x = torch.randn(6, 1, 4, 4)
    network = load_network(entry, tmp_path)
    outputs, inputs = network.outputs(x.double())
    assert torch.allclose(outputs.float(), library_network(entry, tmp_path)(x), atol=1e-5)
    assert len(inputs) == 2
    # Rounded off maxima are above, and come near when they are sharp.
    soft, _ = network.outputs(x.double(), [torch.tensor(1e-6).double()] * 2)
    assert torch.allclose(soft, outputs, atol=1e-4)
    centre, radius = np.zeros((1, 4, 4), np.float32), np.full((1, 4, 4), 0.5, np.float32)
    found = Attack(network, centre, radius).run(0.5)
    bound = local_lipschitz(
        library_network(entry, tmp_path), torch.zeros(1, 4, 4), 0.5, method="ibp"
    )
    assert 0 < found.value <= bound.upper_bound


def test_an_unknown_operator_is_named(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="no operator Det"):
        load_network({"file": "net.onnx"}, tmp_path)


def test_nothing_of_the_library_is_imported(nets):
    job = {
        "kind": "attack",
        "methods": ["attack"],
        "entry": entries_of(nets)[0],
        "folder": str(nets),
        "eps": "0.5",
        "seconds": 0.1,
        "seed": 0,
    }
    code = (
        "import json, sys\n"
        "import benchmarks.others.onnx_evaluator\n"
        "from benchmarks.others.worker import attacked\n"
        "rows = list(attacked(json.loads(sys.stdin.read())))\n"
        "assert rows[0]['lower'] > 0, rows\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lipschitz', 'models')])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert ran.stdout.strip() == "[]"


def test_a_thinned_course_keeps_its_end():
    course = [(0.1, 1.0), (0.2, 1.0001), (0.3, 2.0), (0.4, 2.0001)]
    assert thinned(course) == [(0.1, 1.0), (0.3, 2.0), (0.4, 2.0001)]


def test_a_sigmoid_network_is_climbed(nets):
    """Without kinks the norm itself is climbed."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 1).double()
    attack = Attack(
        Network(lambda x, kinks: torch.sigmoid(3 * layer(x) + 4)),
        np.zeros(20, np.float32),
        np.ones(20, np.float32),
    )
    largest = 0.25 * 3 * float(layer.weight.detach().abs().sum())
    assert attack.run(0.5).value == pytest.approx(largest, rel=1e-3)
