"""The benchmark of sigmoid CNNs, on a small network and images written here."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import smooth_cnn, tables
from utils import run_cli


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid()
    )
    model.append(nn.Linear(4, 3))
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "cnn.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 2))
    np.save(tmp_path / "images.npy", pixels.transpose(0, 3, 1, 2) / 255)
    lines = [",".join(map(str, [7, *image.ravel()])) for image in pixels]
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, model.eval()


def arguments(folder, **changes) -> list[str]:
    given = {
        "network": folder / "cnn.pth",
        "images": folder / "images.npy",
        "shape": "2,6,5",
        "mean": "0.4,0.5",
        "std": "0.2,0.25",
        **changes,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def parsed(monkeypatch, argv):
    """The options as the benchmark sees them."""
    seen = []
    monkeypatch.setattr(smooth_cnn, "measure", lambda args: seen.append(args) or [])
    monkeypatch.setattr(tables, "publish", lambda *_: None)
    assert run_cli(smooth_cnn.main, argv) == 0
    return seen[0]


@pytest.mark.slow
def test_bounds_are_above_gradients_and_in_order(files, monkeypatch, capsys):
    folder, _ = files
    monkeypatch.setattr(tables, "RESULTS", folder)
    assert run_cli(smooth_cnn.main, arguments(folder, eps="1/255", count=1)) == 0
    rows = (folder / "smooth_cnn.md").read_text().splitlines()[2:6]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in cells] == list(smooth_cnn.METHODS)
    ratios = {row[1]: float(row[2]) for row in cells}
    assert min(ratios.values()) >= 1
    assert ratios["alpha"] <= ratios["alpha, no planes"] <= ratios["crown"]
    assert ratios["joint"] <= ratios["crown"]
    for row in cells:
        peak, before = row[5].rstrip(")").split(" (")
        assert 0 < int(before) <= int(peak)


@pytest.mark.parametrize("ending", ["npy", "csv"])
def test_the_network_and_its_images_are_those_of_the_files(files, monkeypatch, ending):
    folder, model = files
    argv = arguments(folder, images=folder / f"images.{ending}")
    args = parsed(monkeypatch, argv + (["--channels-last"] if ending == "csv" else []))
    graph, images, std = smooth_cnn.load(args)
    pixels = torch.from_numpy(np.load(folder / "images.npy")).float()
    mean = torch.tensor([0.4, 0.5])[:, None, None]
    expected = (pixels - mean) / torch.tensor([0.2, 0.25])[:, None, None]
    assert torch.allclose(images, expected, atol=1e-6)
    assert std.flatten().tolist() == pytest.approx([0.2, 0.25])
    rows = torch.eye(3)
    x = expected.repeat_interleave(3, 0)
    wanted = torch.cat(
        [torch.autograd.functional.jacobian(model, p[None])[0, :, 0] for p in expected]
    )
    assert torch.allclose(graph.gradients(x, rows.repeat(2, 1)), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "none.pth"},
        {"images": "none.npy"},
        {"shape": "2,6,6"},
        {"shape": "60"},
        {"stride": 1},
        {"stride": 0},
        {"mean": "1,2,3"},
        {"std": "0"},
        {"eps": "1/0"},
        {"eps": "small"},
        {"count": 0},
    ],
)
def test_what_makes_no_sense_ends_in_one_line(files, changes, capsys):
    folder, _ = files
    assert run_cli(smooth_cnn.main, arguments(folder, **changes)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
