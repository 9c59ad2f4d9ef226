"""The benchmark of curved activations, on a small network and small images."""

import pytest
import torch

from benchmarks import smooth, tables
from utils import run_cli


def arguments(mlp_files, **changes) -> list[str]:
    given = {"network": mlp_files / "mlp.pth", "images": mlp_files / "images.npy", **changes}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_every_bound_is_at_least_the_truth(mlp_files, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", mlp_files)
    threads = torch.get_num_threads()
    assert run_cli(smooth.main, arguments(mlp_files, eps="0.5,0.01", count=2)) == 0
    torch.set_num_threads(threads)
    rows = (mlp_files / "smooth_mlp.md").read_text().splitlines()[2:-2]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in cells] == 2 * list(smooth.METHODS)
    ratios = {(row[0], row[1]): float(row[2]) for row in cells}
    assert all(ratio >= 1 for ratio in ratios.values())
    assert all(float(row[3]) >= float(row[2]) for row in cells)
    for eps in {row[0] for row in cells}:
        bounds = [ratios[eps, name] for name in ("alpha", "joint", "joint, no steps", "crown")]
        assert bounds == sorted(bounds)
        assert ratios[eps, "bab"] < 1.001


def test_the_folded_network_is_the_network_on_the_line(mlp_files):
    layers = smooth.stored_layers(mlp_files / "mlp.pth")
    image = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    t = torch.tensor([[0.3]], dtype=torch.float64)
    (first, bias), (second, last) = layers
    x = image + 0.3 * (1 - image)
    expected = second @ torch.sigmoid(first @ x + bias) + last
    assert torch.allclose(smooth.on_line(layers, image)(t)[0], expected)


@pytest.mark.parametrize("missing", ["network", "images"])
def test_a_missing_file_ends_in_one_line(mlp_files, missing, capsys):
    argv = arguments(mlp_files, **{missing: mlp_files / "none"})
    assert run_cli(smooth.main, argv) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
