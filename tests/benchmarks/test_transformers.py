"""The table of transformers, on a tiny one and on a file."""

import pytest
import torch
from torch import nn

from benchmarks import tables, transformers
from lipschitz.errors import InputError


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def cells(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_crown_is_between_the_truth_and_intervals(results, capsys):
    arguments = ["--sizes", "8x2x1x3", "--eps", "0.01", "--methods", "ibp,crown"]
    assert transformers.main(arguments) == 0
    ibp, crown = cells(results / "transformers.md")
    assert [row[2] for row in (ibp, crown)] == ["ibp", "crown"]
    assert 1 <= float(crown[4]) < 1.1 < float(ibp[4])
    assert float(crown[6]) > 10  # MiB
    assert crown[7] == "bound"
    capsys.readouterr()


def test_a_network_from_a_file(tmp_path, results, capsys):
    pytest.importorskip("onnx")
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid(), nn.Linear(4, 2)).eval()
    path, images = tmp_path / "net.onnx", tmp_path / "images.csv"
    torch.onnx.export(model, torch.zeros(1, 3, 2, 2), path, dynamo=False)
    images.write_text("\n".join(",".join(map(str, [1, *range(i, i + 12)])) for i in range(2)))
    arguments = ["--onnx", str(path), "--images", str(images), "--image", "1"]
    assert transformers.main([*arguments, "--eps", "1/255", "--methods", "crown"]) == 0
    ((name, eps, method, _, ratio, *_),) = cells(results / "transformers_net.md")
    assert (name, eps, method) == ("net", "1/255", "crown")
    assert 1 <= float(ratio) < 1.01
    capsys.readouterr()


@pytest.mark.parametrize("size", ["8x2x1", "axbxcxd", "9x2x1x3"])
def test_sizes_that_make_no_sense(size):
    with pytest.raises(InputError, match="expected d_model x heads x layers x tokens"):
        transformers.seeded(size)


def test_images_go_with_a_file():
    with pytest.raises(InputError, match="give --onnx and --images together"):
        transformers.main(["--images", "images.csv"])
