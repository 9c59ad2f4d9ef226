"""What exporters write around operators: shape arithmetic, transposes, normalisation, masks."""

import pytest
import torch
import torch.nn.functional as F

from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph

onnx = pytest.importorskip("onnx")


def saved(path, nodes, constants, shape, batch="n"):
    """A file of nodes from x to y."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(v.numpy(), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(path))
    return path


def node(kind, inputs, output, **attributes):
    return onnx.helper.make_node(kind, inputs.split(), [output], **attributes)


def read(path, x, expected):
    network, shape = read_network(path)
    graph = build_graph(network, shape)
    torch.testing.assert_close(graph.values(x)[-1], expected.flatten(1))
    return graph


def test_attention_with_shape_arithmetic(tmp_path):
    """Sizes from Shape, Gather, Unsqueeze and Concat, and a mask from Equal and Where."""
    constants = {
        "zero": torch.tensor(0),
        "axis": torch.tensor([0]),
        "rest": torch.tensor([3, 2, 2]),
        "kept": torch.tensor([1, 1, 3]),
        "one": torch.tensor([1, 1, 1]),
        "low": torch.tensor(-torch.inf),
        "flat": torch.tensor(0.0),
        "seen": torch.tensor([[[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]),
        "limit": torch.tensor(1),
        "back": torch.tensor([3, 4]),
    }
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "b", axis=0),
        node("Unsqueeze", "b axis", "b1"),
        node("Concat", "b1 rest", "to", axis=0),
        node("Reshape", "x to", "h"),
        node("Transpose", "h", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "h", "k", perm=[0, 2, 3, 1]),
        node("MatMul", "q k", "scores"),
        node("Equal", "seen limit", "allowed"),
        node("Where", "allowed flat low", "mask"),
        node("Add", "scores mask", "masked"),
        node("Softmax", "masked", "p", axis=-1),
        node("MatMul", "p q", "mixed"),
        node("Transpose", "mixed", "merged", perm=[0, 2, 1, 3]),
        node("Concat", "b1 back", "end", axis=0),
        node("Reshape", "merged end", "y"),
    ]
    x = torch.rand(2, 3, 4)
    h = x.reshape(2, 3, 2, 2).transpose(1, 2)
    expected = F.scaled_dot_product_attention(h, h, h, is_causal=True, scale=1.0).transpose(1, 2)
    graph = read(saved(tmp_path / "net.onnx", nodes, constants, (3, 4)), x, expected)
    assert graph.product_nodes


def test_a_matrix_from_the_left_of_a_transposed_batch(tmp_path):
    weight = torch.arange(12.0).reshape(4, 3) / 12
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("MatMul", "w t", "m"),
        node("Transpose", "m", "u", perm=[1, 0]),
        node("Mul", "u u", "y"),
    ]
    x = torch.rand(1, 3)
    path = saved(tmp_path / "net.onnx", nodes, {"w": weight}, (3,), batch=1)
    read(path, x, (x @ weight.T) ** 2)


def test_normalisation_and_functions(tmp_path):
    constants = {
        "scale": torch.rand(4),
        "shift": torch.rand(4),
        "three": torch.tensor(3.0),
        "axis": torch.tensor([1]),
    }
    nodes = [
        node("LayerNormalization", "x scale shift", "n", axis=-1, epsilon=1e-3),
        node("Pow", "n three", "c"),
        node("Exp", "c", "e"),
        node("Sqrt", "e", "r"),
        node("Erf", "n", "f"),
        node("Div", "f r", "d"),
        node("ReduceMax", "x", "m", axes=[1]),
        node("Max", "d m", "g"),
        node("HardSigmoid", "g", "h"),
        node("LogSoftmax", "h", "y", axis=-1),
    ]
    x = torch.rand(2, 4)
    n = F.layer_norm(x, (4,), constants["scale"], constants["shift"], 1e-3)
    g = torch.maximum(torch.erf(n) / torch.exp(n**3).sqrt(), x.amax(1, keepdim=True))
    expected = torch.log_softmax((0.2 * g + 0.5).clamp(0, 1), 1)
    read(saved(tmp_path / "net.onnx", nodes, constants, (4,)), x, expected)
