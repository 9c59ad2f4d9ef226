"""The benchmark of wide boxes runs, and its table brackets what is known to be exact."""

import matplotlib.image
import pytest
import torch
from cases import REFERENCES

from benchmarks import tables, wide
from benchmarks.networks import trained_mlp
from utils import run_cli


def test_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    threads = torch.get_num_threads()
    assert run_cli(wide.main, ["--timeout", "3", "--networks", "16", "--eps", "0.05,0.2"]) == 0
    torch.set_num_threads(threads)
    lines = (tmp_path / "results" / "wide.md").read_text().splitlines()
    assert lines[0] == "| " + " | ".join(wide.COLUMNS) + " |"
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[2:12]]
    assert [c[2] for c in cells] == 2 * list(wide.METHODS)
    exact = {0.05: REFERENCES[1].exact, 0.2: REFERENCES[2].exact}
    for _, eps, method, upper, lower, status, _ in cells:
        true = exact[float(eps)]
        assert float(lower) <= true + 1e-3
        assert float(upper) >= true - 1e-3
        assert status == "exact" or "bab" not in method
    bounds = {(c[1], c[2]): float(c[3]) for c in cells}
    assert bounds["0.2", "bab --sdp auto"] < bounds["0.2", "sdp"] < bounds["0.2", "crown"]
    assert matplotlib.image.imread(tmp_path / "results" / "wide.png").shape[2] == 4


@pytest.mark.parametrize("argv", [["--networks", "17"], ["--eps", "a"]], ids=str)
def test_a_mistake_is_one_line(argv, capsys):
    assert run_cli(wide.main, argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_networks_that_differ_have_files_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks = [trained_mlp(4, 0, 1), trained_mlp(4, 0, 2), trained_mlp(4, 1, 1)]
    weights = [network.load()[0].state_dict() for network in networks]
    assert len(list((tmp_path / "models_pretrained").glob("*.pth"))) == 3
    assert len({network.name for network in networks}) == 3
    again = networks[0].load()[0].state_dict()
    assert all(torch.equal(again[key], value) for key, value in weights[0].items())
    assert any(not torch.equal(weights[1][key], value) for key, value in weights[0].items())
