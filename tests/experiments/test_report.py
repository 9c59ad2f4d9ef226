import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import figures, report, tables
from experiments import rows as rows_module
from experiments.jobs import make_job
from experiments.parallel import line_of
from experiments.rows import named
from utils import run_cli


def row(**changes) -> dict:
    base = {
        "data": "digits",
        "model": "net",
        "model_params": {"width": 4},
        "weights": "abc",
        "method": "crown",
        "engine": "auto_lirpa",
        "optimize": True,
        "eps": 0.1,
        "example": 0,
        "upper_bound": 3.0,
        "lower_bound": 2.0,
        "status": "bound",
        "seconds": 1.0,
    }
    return {**base, **changes}


def collected(run: str, network: str, **changes) -> dict:
    """A row as experiments/parallel.py leaves it."""
    job = f"{run}{network}{changes}"
    return row(run=run, network=network, job=job, method=run, machine="a machine", **changes)


def note(run: str, network: str, reason: str, **changes) -> dict:
    base = {"job": f"note {run}{network}{changes}", "run": run, "network": network, "eps": "0.1"}
    return {**base, "example": 0, "kind": "refused", "reason": reason, **changes}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def means(folder: Path, rows: list[dict], notes: list[dict] | None = None):
    write(folder / "notes.jsonl", notes or [])
    return rows_module.read_results([write(folder / "rows.jsonl", rows)]).means


def test_table_holds_the_means(tmp_path):
    rows = [
        row(),
        row(example=1, upper_bound=5.0, lower_bound=5.0, status="exact", seconds=3.0),
        row(eps=0.2, upper_bound=7.0, status="timeout"),
    ]
    table = means(tmp_path, rows)
    assert list(table["examples"]) == [2, 1]
    first = table.iloc[0]
    assert (first["upper_bound"], first["lower_bound"], first["seconds"]) == (4.0, 3.5, 2.0)
    assert (first["exact"], first["timeouts"], table["timeouts"][1]) == (1, 0, 1)
    assert first["ratio"] == pytest.approx(4.0 / 3.5)
    assert first["network"] == "net(width=4)"


def test_a_method_without_upper_bound_gets_a_dash(tmp_path):
    rows = [row(), row(method="sampling", upper_bound=None, status="lower_bound_only")]
    table = means(tmp_path, rows)
    assert "| sampling | 0.1 | 1 | - | 2 | - | 0 | 0 | 1 |" in tables.to_markdown(table)
    assert ">= 2 (1 s)" in tables.overview(table)


def test_a_mean_over_what_is_not_certified_everywhere_is_none(tmp_path):
    table = means(tmp_path, [row(), row(example=1, upper_bound=None)])
    assert tables.cells_of(table.iloc[0])[5] == "-"


def test_a_method_that_did_not_run_gets_dashes_and_its_reason(tmp_path):
    rows = [collected("crown", "MLP, width 4")]
    notes = [note("lipsdp", "MLP, width 4", "too | large", eps="1/10", example=i) for i in range(2)]
    table = means(tmp_path, rows, notes)
    assert list(table["method"]) == ["lipsdp (global L2 x sqrt(D))", "crown"]
    results = rows_module.read_results([str(tmp_path / "rows.jsonl")])
    document = tables.document(results)
    line = "| digits | MLP, width 4 | lipsdp (global L2 x sqrt(D)) | 0.1 |" + " - |" * 7
    assert line in document
    assert "- lipsdp (global L2 x sqrt(D)) on MLP, width 4, eps 0.1: too | large" in document
    assert "Computed on a machine." in document


def test_examples_without_a_row_are_told_although_the_others_have_one(tmp_path):
    rows = [collected("crown", "net", example=i) for i in range(2)]
    table = means(tmp_path, rows, [note("crown", "net", "stopped after 9 s", example=2)])
    assert list(table["examples"]) == [2]
    results = rows_module.read_results([str(tmp_path / "rows.jsonl")])
    assert "crown on net, eps 0.1: stopped after 9 s" in tables.document(results)


def test_a_note_is_forgotten_when_there_is_a_row(tmp_path):
    late = collected("crown", "net")
    results_notes = [note("crown", "net", "died", job=late["job"])]
    means(tmp_path, [late], results_notes)
    assert rows_module.read_results([str(tmp_path / "rows.jsonl")]).reasons == []


def test_a_row_written_twice_counts_once(tmp_path):
    table = means(tmp_path, [row(upper_bound=9.0), row()])
    assert (table["examples"][0], table["upper_bound"][0]) == (1, 3.0)


def test_engines_are_not_mixed(tmp_path):
    table = means(tmp_path, [row(), row(engine="native", upper_bound=9.0)])
    assert list(table["method"]) == ["crown on auto_lirpa", "crown on native"]
    assert list(table["upper_bound"]) == [3.0, 9.0]


def test_the_order_does_not_depend_on_that_of_the_rows(tmp_path):
    rows = [
        collected(run, f"MLP, width {width}")
        for width in (128, 16, 32)
        for run in ("bab", "new", "crown", "global")
    ]
    table = means(tmp_path, rows)
    assert list(dict.fromkeys(table["network"])) == [f"MLP, width {w}" for w in (16, 32, 128)]
    assert list(table["method"][:4]) == ["global", "crown", "bab", "new"]


def test_latex_is_balanced_and_escaped(tmp_path):
    rows = [
        collected("crown", "a_b & 50% of {x} #1 $y$ ~^\\"),
        collected("lipsdp", "MLP, width 4"),
    ]
    notes = [note("bab_paper", "MLP, width 4", "two\nlines, 100% of them & more")]
    write(tmp_path / "notes.jsonl", notes)
    results = rows_module.read_results([write(tmp_path / "rows.jsonl", rows)])
    text = tables.to_latex(results)
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert "two lines, 100% of them" in text
    assert "two lines" not in code
    assert re.findall(r"\\(begin|end){tabular}", code) == ["begin", "end"]
    assert r"a\_b \& 50\% of \{x\} \#1 \$y\$ \textasciitilde{}\textasciicircum{}" in code
    assert r"lipsdp (global $L_2 \times \sqrt{D}$)" in code
    bare = re.sub(r"\\[\\&%$#_{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    columns = len(re.search(r"tabular}{([lr]+)}", code)[1])
    for line in code.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert "nan" not in code


def test_signs_are_counted_by_feature(tmp_path):
    def sign(name: str, verdict: str) -> dict:
        return {"feature": 0, "name": name, "verdict": verdict, "seconds": 2.0}

    rows = [
        {"job": str(i), "run": run, "network": "adult", "example": i, "signs": signs}
        for i, (run, signs) in enumerate(
            [
                ("crown", [sign("age", "undecided"), sign("hours", "increasing")]),
                ("bab", [sign("age", "decreasing"), sign("hours", "increasing")]),
                ("bab", [sign("age", "neither"), sign("hours", "increasing")]),
            ]
        )
    ]
    text = tables.document(rows_module.read_results([write(tmp_path / "rows.jsonl", rows)]))
    assert "| adult | bab | hours | 2 | 0 | 0 | 0 | 0 | 2 |" in text
    assert "| adult | bab | **all** | 2 | 1 | 0 | 1 | 0 | 2 |" in text
    assert "| adult | crown | **all** | 1 | 0 | 0 | 0 | 1 | 2 |" in text


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("MLP, width 32", ("MLP, width", "width", 32)),
        (
            "simple_mlp_width32(depth=4, in_dim=16)",
            ("simple_mlp_width32(depth, in_dim=16)", "depth", 4),
        ),
        ("digits MLP(32)", None),
    ],
)
def test_sizes_are_read_off_names(network, named):
    assert rows_module.size_of(network) == named


def test_pictures_of_widths_exist_as_png_and_pdf(tmp_path):
    rows = [
        collected(run, f"MLP, width {width}", eps=eps, upper_bound=bound * width)
        for run, bound in (("crown", 3.0), ("bab", 2.5), ("sampling", None))
        if bound is not None
        for width in (16, 32)
        for eps in (0.1, 0.2)
    ]
    table = means(tmp_path, rows, [note("lipmip", "MLP, width 16", "no")])
    drawn = figures.draw_sizes(table, tmp_path)
    assert [path.name for path in drawn] == ["bounds_by_width", "seconds_by_width"]
    for path in drawn:
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert figures.draw_sizes(means(tmp_path, [row()]), tmp_path) == []


def test_every_method_looks_different():
    methods = [*rows_module.METHOD_ORDER, "a", "b", "c"]
    looks = [
        (style["color"], style["marker"], style["linestyle"])
        for style in figures.styles(methods).values()
    ]
    assert len(set(looks)) == len(methods)
    known = figures.styles(rows_module.METHOD_ORDER)
    assert len({style["marker"] for style in known.values()}) == len(known)
    assert figures.styles(["bab"])["bab"] == known["bab"]


@pytest.mark.parametrize("bound", [0.0, 5.0])
def test_one_radius_is_drawn_as_bars(tmp_path, bound):
    """A bound of zero has no place on a logarithmic axis."""
    figures.draw_radii(means(tmp_path, [row(upper_bound=bound)]), tmp_path / "bounds")
    assert (tmp_path / "bounds.png").stat().st_size > 5000


FILE = {"data": "points.npz:0123456789ab", "std": None}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row()], "bounds per unit of normalised input, (pixel - mean) / std; eps: in pixels"),
        ([row(**FILE)], "bounds per unit of the file's values; eps: in the same units"),
        (
            [row(**{**FILE, "std": "0.5"})],
            "bounds per unit of the file's values; eps: in pixels, divided by --std",
        ),
        (
            [row(**FILE, eps=None)],
            "bounds per unit of the file's values; eps: none, the boxes are given in the file",
        ),
        (
            [row(data="box -1,1", eps=None)],
            "bounds per unit of the network's input; eps: none, the box is given by its ends",
        ),
        (
            [row(), row(data="MNIST"), row(**FILE)],
            "digits, MNIST: bounds per unit of normalised input, (pixel - mean) / std; "
            "eps: in pixels. points: bounds per unit of the file's values; eps: in the same units",
        ),
    ],
    ids=["data set", "file", "file with std", "boxes of a file", "box", "several"],
)
def test_the_units_are_those_of_the_rows(tmp_path, rows, said):
    path = write(tmp_path / "rows.jsonl", rows)
    assert run_cli(report.main, [path, "--output", str(tmp_path)]) == 0
    document = (tmp_path / "table.md").read_text()
    assert f"Units: {said}." in document
    assert f"Units: {said}." in (tmp_path / "table.tex").read_text()
    if len(rows) == 1 and rows[0]["data"] != "digits":
        assert "normalised" not in document
    assert (tmp_path / "bounds.png").stat().st_size > 5000


def test_boxes_and_radii_per_input_have_lines_of_their_own(tmp_path):
    rows = [row(), row(example=1), row(data="box -1,1", eps=None), row(eps="0.1,0.2")]
    rows += [row(method="ibp", eps=None, example=i, upper_bound=7.0) for i in range(2)]
    table = means(tmp_path, rows)
    assert sorted(table["examples"]) == [1, 1, 2, 2]
    text = tables.document(rows_module.read_results([str(tmp_path / "rows.jsonl")]))
    assert "| box -1,1 | net(width=4) | crown | - | 1 | 3 |" in text
    assert "| digits | net(width=4), eps 0.1,0.2 | crown | - | 1 | 3 |" in text
    assert "| digits | net(width=4) | ibp | - | 2 | 7 |" in text
    assert "nan" not in text


def test_an_example_that_failed_is_a_reason_and_no_bound(tmp_path):
    failed = {k: v for k, v in row(example=1).items() if not k.endswith("_bound")}
    failed |= {"status": "error", "error": "out of memory"}
    path = write(tmp_path / "rows.jsonl", [row(), failed])
    results = rows_module.read_results([path])
    assert list(results.means["examples"]) == [1]
    assert list(results.means["upper_bound"]) == [3.0]
    said = "- crown on net(width=4), eps 0.1: example 1: out of memory"
    assert said in tables.document(results)
    write(tmp_path / "rows.jsonl", [failed])
    assert run_cli(report.main, [path, "--output", str(tmp_path)]) == 0
    assert said in (tmp_path / "table.md").read_text()
    write(tmp_path / "rows.jsonl", [failed, row(example=1)])  # done again
    assert rows_module.read_results([path]).reasons == []


def test_an_interrupted_row_and_its_later_one_count_once(tmp_path):
    rows = [row(status="interrupted", upper_bound=9.0), row(), row(status="interrupted")]
    table = means(tmp_path, rows)
    assert (table["examples"][0], table["upper_bound"][0], table["timeouts"][0]) == (1, 3.0, 0)


@pytest.mark.parametrize(("bound", "shown"), [(2.26644e-5, "2.26644e-05"), (1.5e12, "1.5e+12")])
def test_small_and_large_bounds_have_their_digits(tmp_path, bound, shown):
    text = tables.to_markdown(means(tmp_path, [row(upper_bound=bound)]))
    assert f"| {shown} |" in text
    line = line_of({**collected("crown", "net", upper_bound=bound), "eps": "1/10"})
    assert line.startswith(f"crown, net, example 0, eps 0.1: upper {shown} lower 2 ")


def test_script_writes_table_and_picture(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(), row(eps=0.2), row(model="other", method="ibp")])
    script = Path(report.__file__)
    command = [sys.executable, str(script), path, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = "| digits | net(width=4) | crown | 0.1 | 1 | 3 | 2 | 1.5 | 0 | 0 | 1 |"
    assert expected in done.stdout
    assert (tmp_path / "out/table.md").read_text() in done.stdout
    assert (tmp_path / "out/bounds.png").read_bytes().startswith(b"\x89PNG")
    assert r"\end{tabular}" in (tmp_path / "out/table.tex").read_text()
    with open(tmp_path / "out/table.csv") as file:
        assert [line["upper_bound"] for line in csv.DictReader(file)] == ["3.0"] * 3


def test_only_the_rows_of_the_jobs_named(tmp_path, capsys):
    job = make_job("crown", "net", ("--eps", "0.1"))
    (tmp_path / "jobs.txt").write_text("crown\tnet\t--eps 0.1\n")
    chosen = {**collected("crown", "net"), "job": job.id}
    path = write(tmp_path / "rows.jsonl", [chosen, collected("earlier", "net", upper_bound=99.0)])
    argv = [path, "--only", str(tmp_path / "jobs.txt"), "--output", str(tmp_path)]
    assert run_cli(report.main, argv) == 0
    assert "earlier" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, ""])
def test_no_rows_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    assert run_cli(report.main, [str(path), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["trace.jsonl", "MLP_width_4@bab_paper.jsonl"])
def test_traces_become_a_picture(tmp_path, capsys, name):
    states = [
        {"example": 0, "seconds": s, "upper_bound": 9.0 - s, "lower_bound": 2.0} for s in range(3)
    ]
    path = write(tmp_path / name, states)
    assert run_cli(report.main, ["--trace", path, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    missing = str(tmp_path / "none.jsonl")
    assert run_cli(report.main, ["--trace", missing, "--output", str(tmp_path)]) == 2
    assert "there is no such trace" in capsys.readouterr().err


def test_other_norms_are_other_quantities():
    base = {
        "data": "digits",
        "network": "net",
        "run": None,
        "model": "net",
        "model_params": {},
        "method": "crown",
        "engine": "native",
        "weights": "w",
        "optimize": False,
        "eps": 0.1,
        "example": 0,
        "upper_bound": 1.0,
    }
    rows = [base, {**base, "norm": "2", "outputs": "each", "inputs": "free"}]
    assert list(named(rows)["method"]) == ["crown", "crown, L2 of each, free inputs"]
