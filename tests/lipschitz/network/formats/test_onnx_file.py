"""Networks of .onnx files compute what torch computes; what is not covered is named."""

import pytest
import torch
from cases import CASES
from layers import LAYERS
from torch import nn

from lipschitz import load_model, local_lipschitz
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph
from models import build_model

onnx = pytest.importorskip("onnx")

# What the exporter itself cannot write, or writes with operators of its own bookkeeping.
LEFT_OUT = {"channel_shuffle", "unfold", "fold", "unflatten", "roll", "grow", "instance_norm"}
LEFT_OUT |= {"adaptive_avg_pool", "avg_pool_2d_divisor", "conv2d_circular", "constants_in"}
NETWORKS = [case for case in (*CASES, *LAYERS) if case.name not in LEFT_OUT]


def export(model, shape, path, batch=1, dtype=torch.float32, **options):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    open_batch = {} if batch == 1 else {"dynamic_axes": {"x": {0: "batch"}}}
    x = torch.rand(batch, *shape, dtype=dtype)
    torch.onnx.export(
        model, (x,), str(path), dynamo=False, input_names=["x"], **open_batch, **options
    )
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 2], ids=["one example", "open batch"])
def test_networks_that_torch_exports_come_back(tmp_path, batch):
    for case in NETWORKS:
        model = case.model(torch.float32)
        path = export(model, case.input_shape, tmp_path / f"{case.name}.onnx", batch)
        network, shape = read_network(path)
        assert shape == case.input_shape, case.name
        x = torch.rand(3, *shape)
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5, msg=case.name)
        build_graph(network, shape)


@pytest.mark.filterwarnings("ignore")
def test_precision_and_bounds_are_the_networks_own(tmp_path):
    torch.manual_seed(0)
    model = build_model("resnet2b", in_ch=1, in_dim=8, width=2, linear_size=5).double()
    path = export(model, (1, 8, 8), tmp_path / "net.onnx", dtype=torch.float64)
    network = load_model(path)
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    x = torch.rand(1, 8, 8).double()
    ours = local_lipschitz(network, x, 0.01, engine="native")
    expected = local_lipschitz(model, x, 0.01, engine="native")
    assert ours.upper_bound == pytest.approx(expected.upper_bound, rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_the_exporter_by_torch_export(tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = build_model("resnet2b", in_ch=1, in_dim=8, width=2, linear_size=5)
    torch.onnx.export(model, (torch.rand(1, 1, 8, 8),), str(tmp_path / "net.onnx"), dynamo=True)
    network, shape = read_network(tmp_path / "net.onnx")
    x = torch.rand(3, *shape)
    torch.testing.assert_close(network(x), model(x))
    build_graph(network, shape)


def write(path, nodes, constants=(), shape=(1, 4), outputs=("y",)):
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [make("x", onnx.TensorProto.FLOAT, shape)],
        [make(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants],
    )
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


def node(operator, *inputs, output="y", **attributes):
    return onnx.helper.make_node(operator, list(inputs), [output], **attributes)


def test_uneven_padding_by_hand(tmp_path):
    weight = torch.randn(2, 1, 2, 2)
    nodes = [
        node("Sub", "x", "mean", output="a"),
        node("Div", "a", "std", output="b"),
        node("Conv", "b", "w", output="c", auto_pad="SAME_UPPER"),
        node("Relu", "c", output="d"),
        node("Pad", "d", "pads", output="e"),
        node("AveragePool", "e", output="f", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "f"),
    ]
    constants = {
        "mean": torch.tensor([0.5]),
        "std": torch.tensor([0.25]),
        "w": weight,
        "pads": torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]),
    }
    named = [(name, value.numpy()) for name, value in constants.items()]
    network, shape = read_network(write(tmp_path / "net.onnx", nodes, named, (1, 1, 3, 3)))
    x = torch.rand(2, 1, 3, 3)
    scaled = nn.functional.pad((x - 0.5) / 0.25, (0, 1, 0, 1))
    hidden = nn.functional.pad(torch.relu(nn.functional.conv2d(scaled, weight)), (1, 0))
    expected = nn.functional.avg_pool2d(hidden, 2, 2).flatten(1)
    torch.testing.assert_close(network(x), expected)
    build_graph(network, shape)


def test_what_is_not_covered_is_named(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(NotImplementedError, match=r"net\.onnx: the operator Hardmax"):
        read_network(write(path, [node("Hardmax", "x")]))
    network, shape = read_network(write(path, [node("Softmax", "x", axis=0)], shape=("n", 4)))
    with pytest.raises(NotImplementedError, match=r"softmax.*mixes the examples"):
        build_graph(network, shape)
    two = write(path, [node("Relu", "x"), node("Neg", "x", output="z")], outputs=("y", "z"))
    with pytest.raises(InputError, match="2 outputs"):
        read_network(two)
    with pytest.raises(InputError, match="left open"):
        read_network(write(path, [node("Relu", "x")], shape=(1, "n")))
    for content, words in ((b"no network", "is not an ONNX file"), (b"", "is empty")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_network(path)


def test_weights_in_another_file_that_is_missing(tmp_path):
    weight = ("w", torch.ones(4, 4).numpy())
    path = write(tmp_path / "net.onnx", [node("MatMul", "x", "w")], [weight])
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(onnx.load(str(path)), str(path), **outside)
    network, _ = read_network(path)
    assert network(torch.ones(1, 4)).tolist() == [[4.0] * 4]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"net\.onnx keeps its weights in the file weights\.bin"):
        read_network(path)


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "net.onnx", [node("Relu", "x")])
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(InputError, match="pip install onnx"):
        read_network(path)
