"""Keras files: kernels, the order behind Flatten and 'same' padding, against plain numpy."""

import json

import numpy as np
import pytest
import torch

from lipschitz import load_model
from lipschitz.errors import InputError
from lipschitz.network.formats import read_network
from lipschitz.network.tracing import build_graph

h5py = pytest.importorskip("h5py")
RANDOM = np.random.default_rng(0)


def dense(name, inputs, outputs, activation="linear", dtype=np.float32):
    kernel, bias = RANDOM.normal(size=(inputs, outputs)), RANDOM.normal(size=outputs)
    config = {"name": name, "units": outputs, "activation": activation, "use_bias": True}
    arrays = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
    return {"class_name": "Dense", "config": config}, arrays


def conv(name, size, channels, width, *, strides=(1, 1), padding="valid", activation="linear"):
    config = {
        "name": name,
        "filters": width,
        "kernel_size": list(size),
        "strides": list(strides),
        "padding": padding,
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "activation": activation,
    }
    kernel = RANDOM.normal(size=(*size, channels, width)).astype(np.float32)
    bias = RANDOM.normal(size=width).astype(np.float32)
    return {"class_name": "Conv2D", "config": config}, {"kernel": kernel, "bias": bias}


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}, {}


def save(path, shape, layers, *, listed=False, kind="Sequential"):
    """The layout of ``model.save``: JSON in an attribute, weights in groups named twice."""
    layers[0][0]["config"]["batch_input_shape"] = [None, *shape]
    described = [description for description, _ in layers]
    config = described if listed else {"name": "sequential_1", "layers": described}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["backend"] = b"tensorflow"
        text = json.dumps({"class_name": kind, "config": config})
        file.attrs["model_config"] = text.encode() if listed else text
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [d["config"]["name"].encode() for d in described]
        for description, arrays in layers:
            name = description["config"]["name"]
            own = group.create_group(name)
            own.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in arrays]
            for key, array in arrays.items():
                own.create_dataset(f"{name}/{key}:0", data=array)
    return path


def numpy_conv(x, kernel, bias, strides, pads):
    """x [B, H, W, C], kernel [h, w, C, F], pads before and after in each dimension."""
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    height, width = kernel.shape[:2]
    rows = range(0, x.shape[1] - height + 1, strides[0])
    columns = range(0, x.shape[2] - width + 1, strides[1])
    patches = [
        [np.tensordot(x[:, i : i + height, j : j + width], kernel, 3) for j in columns]
        for i in rows
    ]
    return np.stack([np.stack(row, 1) for row in patches], 1) + bias


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("listed", [False, True], ids=["keras 2.2", "keras 2.0"])
def test_cnn_in_the_layout_of_recurjac_and_cnn_cert(tmp_path, listed):
    first = conv("conv2d_1", (3, 2), 2, 3, strides=(2, 1), padding="same")
    second = conv("conv2d_2", (2, 2), 3, 4, activation="relu")
    norm = {
        "gamma": RANDOM.normal(size=4).astype(np.float32),
        "beta": RANDOM.normal(size=4).astype(np.float32),
        "moving_mean": RANDOM.normal(size=4).astype(np.float32),
        "moving_variance": RANDOM.random(size=4).astype(np.float32) + 0.5,
    }
    hidden, last = dense("dense_1", 2 * 2 * 4, 5), dense("dense_2", 5, 3)
    layers = [
        first,
        layer("Activation", "activation_1", activation="relu"),
        second,
        (layer("BatchNormalization", "bn", axis=3, epsilon=1e-3)[0], norm),
        layer("AveragePooling2D", "pool", pool_size=[1, 2], strides=None, padding="valid"),
        layer("Flatten", "flatten_1"),
        hidden,
        layer("Dropout", "dropout_1", rate=0.5),
        layer("Lambda", "lambda_1", function="relu", function_type="function"),
        last,
    ]
    path = save(tmp_path / "net.h5", (6, 5, 2), layers, listed=listed)
    network, shape = read_network(path)
    assert shape == (2, 6, 5)
    x = RANDOM.random((3, 6, 5, 2)).astype(np.float32)
    # 'same' with stride 2 over 6 rows: 3 outputs reach 7 rows, the odd one is put at the end.
    y = relu(numpy_conv(x, *first[1].values(), (2, 1), [(0, 1), (0, 1)]))
    y = relu(numpy_conv(y, *second[1].values(), (1, 1), [(0, 0), (0, 0)]))
    y = (y - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3)
    y = y * norm["gamma"] + norm["beta"]
    y = (y[:, :, 0::2] + y[:, :, 1::2]) / 2
    y = relu(y.reshape(3, -1) @ hidden[1]["kernel"] + hidden[1]["bias"])
    y = y @ last[1]["kernel"] + last[1]["bias"]
    ours = network(torch.from_numpy(x).permute(0, 3, 1, 2))
    np.testing.assert_allclose(ours.detach().numpy(), y, rtol=2e-4, atol=1e-4)
    graph = build_graph(network, shape)
    assert graph.num_outputs == 3
    # Negative control: without the reordering behind Flatten the outputs differ.
    wrong = network(torch.from_numpy(x.reshape(3, 2, 6, 5)))
    assert not np.allclose(wrong.detach().numpy(), y, atol=1e-2)


def test_an_mlp_keeps_its_precision(tmp_path):
    layers = [
        layer("Flatten", "flatten_1"),
        dense("dense_1", 12, 4, "relu", np.float64),
        dense("dense_2", 4, 2, "linear", np.float64),
    ]
    network, shape = read_network(save(tmp_path / "net.h5", (3, 4), layers))
    assert shape == (3, 4)
    x = RANDOM.random((2, 3, 4))
    y = relu(x.reshape(2, 12) @ layers[1][1]["kernel"] + layers[1][1]["bias"])
    y = y @ layers[2][1]["kernel"] + layers[2][1]["bias"]
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), y, rtol=1e-12)


def test_lambda_layers_are_not_run(tmp_path):
    code = {"function": ["gASV", None, None], "function_type": "lambda"}
    layers = [dense("dense_1", 3, 2), layer("Lambda", "arctan_1", **code)]
    path = save(tmp_path / "net.h5", (3,), layers)
    with pytest.raises(InputError, match=r"'arctan_1' is Python code.*activation=relu"):
        load_model(path)
    x = torch.rand(2, 3)
    ours, plain = load_model(path, activation="arctan")(x), load_model(path, activation="linear")(x)
    torch.testing.assert_close(ours, torch.atan(plain))


@pytest.mark.parametrize(
    ("layers", "kind", "words"),
    [
        ([layer("LSTM", "lstm_1")], "Sequential", "'lstm_1' of type LSTM"),
        ([dense("d", 3, 2, "tanhh")], "Sequential", "activation 'tanhh'.*'tanh'"),
        ([dense("d", 3, 2)], "Functional", "Functional.*onnx"),
        ([dense("d", 5, 2)], "Sequential", "Dense layer of 5 inputs"),
    ],
    ids=["layer", "activation", "graph", "shape"],
)
def test_what_is_not_covered_is_named(tmp_path, layers, kind, words):
    path = save(tmp_path / "net.h5", (3,), layers, kind=kind)
    with pytest.raises((InputError, NotImplementedError), match=words) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_network(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.create_group("dense_1")
    with pytest.raises(InputError, match="without their layers"):
        load_model(tmp_path / "weights.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        load_model(tmp_path / "text.h5")
    layers = {"class_name": "Sequential", "config": {"layers": [{"name": "dense"}]}}
    for config, words in (
        ("{", "does not describe a Keras network"),
        ("[]", "does not describe a Keras network"),
        (json.dumps({"class_name": "Sequential"}), "does not describe a Keras network"),
        (json.dumps({"class_name": "Sequential", "config": []}), "does not name its layers"),
        (json.dumps(layers), "does not name its layers"),
    ):
        with h5py.File(tmp_path / "net.h5", "w") as file:
            file.attrs["model_config"] = config
            file.create_group("model_weights")
        with pytest.raises(InputError, match=words):
            load_model(tmp_path / "net.h5")
    content = (tmp_path / "net.h5").read_bytes()
    (tmp_path / "net.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is not an HDF5 file, or it is damaged"):
        load_model(tmp_path / "net.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(InputError, match="pip install h5py"):
        load_model(tmp_path / "weights.h5")
