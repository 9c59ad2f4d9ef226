"""Every code block of README.md and docs/ is run, or at least checked, page by page.

How a page's blocks are read (this is what writers of pages need to know):

- ```` ```python ```` blocks of a page run in order in one namespace, in a temporary folder.
- ```` ```bash ```` blocks are commands; ```` ```console ```` blocks are sessions, in which commands
  stand behind `$ ` and the rest is output. `python main.py`, `python train_model.py`, `lipschitz`,
  `lipschitz-train` and `python experiments/report.py` run in the process, in the same folder, and
  must return 0. Of scripts (`./run.sh`, `experiments/mnist.sh --jobs 4`), `python -m benchmarks.x`
  and `pip install` the files, modules, options and extras that are named must exist; they are not
  run. `mkdir`, `cd`, `ls`, `cat`, `head`, `tail` and `git` are taken for granted. A pipe or a
  redirection ends what is looked at.
- ```` ```json ````, ```` ```toml ```` and ```` ```yaml ```` blocks must be of that format (json:
  one value, or a value a line).
- Blocks without a language, or `text`, are output or files; they must not hold commands. So is
  `bibtex`.
  Any other language is an error, so that nothing escapes.

An HTML comment on the line before a block changes this; several may follow each other:

- `<!-- parse only: it trains on MNIST -->` a command's options are read by its real parser, Python
  is compiled; nothing runs.
- `<!-- exit 2: a mistake in one line -->` each command of the block must return this code.
- `<!-- needs: onnx, pandas -->` left out where one of these packages is missing.
- `<!-- file: pendulum.py -->` the block is written to this file of the folder, not run.

What lies in a page's folder when it begins: `mynet.py` with `make(hidden=6)`, four inputs and three
classes, its weights `weights.pth`, the same network as `net.onnx` (where onnx is installed),
`points.npz` with `x` [5, 4] and `y` [5], and checkpoints of the tests' stored networks,
`models_pretrained/simple_simple_mlp_3layer_width16.pth`, `..._width32.pth` and
`models_pretrained/digits_simple_cnn_3layer_width4.pth`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import train_model
from models.checkpoint import Checkpoint, save_checkpoint
from utils import run_cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# The stored networks: model, width, data, input shape.
STORED = [
    ("simple_mlp_3layer", 16, "simple", (16,)),
    ("simple_mlp_3layer", 32, "simple", (16,)),
    ("simple_cnn_3layer", 4, "digits", (1, 8, 8)),
]
SHOWN = {"", "text", "bibtex"}
TAKEN_FOR_GRANTED = {"mkdir", "cd", "ls", "cat", "head", "tail", "git"}
_COMMAND = re.compile(
    r"^(?:\$ )?(?:python |pip |lipschitz(?:-train)? |(?:\./|experiments/)\w+\.sh\b).*", re.MULTILINE
)
_MARKER = re.compile(r"\s*<!--\s*(parse only|exit \d+|needs|file):\s*(.+?)\s*-->\s*")


@dataclass(frozen=True)
class Block:
    """A fenced block: its line in the page, language, text and the markers before it."""

    line: int
    language: str
    text: str
    markers: dict[str, str]


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, those inside lists and admonitions too."""
    lines, at = page.splitlines(), 0
    while at < len(lines):
        opening = re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", lines[at])
        if not opening:
            at += 1
            continue
        first, markers, before = at, {}, at - 1
        while before >= 0 and (found := _MARKER.fullmatch(lines[before])):
            markers[found[1]] = found[2]
            before -= 1
        at += 1
        while at < len(lines) and lines[at].strip() != opening[1]:
            at += 1
        assert at < len(lines), f"line {first + 1}: the block has no end"
        text = textwrap.dedent("\n".join(lines[first + 1 : at])) + "\n"
        yield Block(first + 1, opening[2], text, markers)
        at += 1


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every command of a block, up to a pipe or a redirection."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):  # settings of the environment
            words = words[1:]
        ends = [i for i, word in enumerate(words) if word[:1] in "|<>&;" or word in ("2>", "2>&1")]
        words = words[: ends[0]] if ends else words
        if words:
            yield words


def prepare(folder: Path) -> None:
    """The files that pages may rely on."""
    (folder / "mynet.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make(hidden=6):\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()\n"
    )
    spec = importlib.util.spec_from_file_location("mynet_of_the_docs", folder / "mynet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = module.make().state_dict()
    torch.save(state, folder / "weights.pth")
    x = np.random.default_rng(0).uniform(size=(5, 4)).astype(np.float32)
    np.savez(folder / "points.npz", x=x, y=np.array([0, 1, 2, 0, 1]))
    for model, width, data, shape in STORED:
        weights = torch.load(ROOT / f"tests/reference/{model}_{width}.pth", weights_only=True)
        known = {"data": data, "input_shape": shape, "classes": 10, "mean": (0.0,), "std": (1.0,)}
        checkpoint = Checkpoint(weights, model, {"width": width}, seed=0, **known)
        name = f"{data}_{model}_width{width}.pth"
        save_checkpoint(folder / "models_pretrained" / name, checkpoint)
    if importlib.util.find_spec("onnx"):
        from onnx import TensorProto, helper, numpy_helper, save

        nodes = [
            helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["z"], transB=1),
            helper.make_node("Relu", ["z"], ["a"]),
            helper.make_node("Gemm", ["a", "2.weight", "2.bias"], ["y"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [numpy_helper.from_array(value.numpy(), name) for name, value in state.items()],
        )
        opset = [helper.make_opsetid("", 17)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "net.onnx"))


# -- commands ------------------------------------------------------------------------------------


def _entry(words: list[str]) -> tuple[str, list[str]] | None:
    """A command of ours and its arguments; None for anything else."""
    if Path(words[0]).name in ("python", "python3") and len(words) > 1:
        if words[1] in ("main.py", "train_model.py", "experiments/report.py"):
            return words[1], words[2:]
        if words[1:3] == ["-m", "lipschitz"]:
            return "main.py", words[3:]
    named = {"lipschitz": "main.py", "lipschitz-train": "train_model.py"}
    return (named[words[0]], words[1:]) if words[0] in named else None


def run_command(words: list[str], code: int, *, parse_only: bool) -> None:
    """Runs or checks one command.

    Raises:
        AssertionError: It fails, or names what does not exist.
    """
    entry = _entry(words)
    if entry is None:
        check_named(words)
        return
    script, arguments = entry
    if parse_only:
        if script != "experiments/report.py":
            parser = (main if script == "main.py" else train_model).build_parser()
            parser.parse_args(arguments)
        return
    if script == "experiments/report.py":
        entry_point = importlib.import_module("experiments.report").main
    else:
        entry_point = (main if script == "main.py" else train_model).main
    try:
        found = run_cli(entry_point, arguments)
    except SystemExit as stop:  # argparse: --help is 0, a wrong argument 2
        found = stop.code or 0
    assert found == code, f"{shlex.join(words)}: exit code {found}, expected {code}"


def check_named(words: list[str]) -> None:
    """What is not run: the files, options, modules and extras that it names must exist."""
    name = words[0]
    if name in TAKEN_FOR_GRANTED:
        return
    if name == "source":
        assert words[1].endswith("bin/activate"), words
        return
    if name in ("pip", "uv") or words[1:3] == ["-m", "pip"]:
        return check_pip(words)
    if words[1:3] == ["-m", "venv"]:
        return None
    if name == "mkdocs" or words[1:3] == ["-m", "mkdocs"]:
        assert (ROOT / "mkdocs.yml").exists()
        return None
    if name in ("python", "python3") and words[1:2] == ["-m"] and words[2] != "pytest":
        module = ROOT / (words[2].replace(".", "/") + ".py")
        assert module.exists(), f"{words[2]}: no such module"
        return check_options(words[3:], module.read_text() + (ROOT / "main.py").read_text())
    if name in ("python", "python3") and words[1:2] == ["-m"]:
        return None
    script = words[1] if name in ("python", "python3", "bash") else name
    path = ROOT / script
    assert path.is_file(), f"{shlex.join(words)}: not a command that this test knows"
    assert script == words[1] if path.suffix == ".py" else os.access(path, os.X_OK), script
    text = path.read_text()
    if path.parent.name == "experiments" and path.suffix == ".sh":
        text += (ROOT / "experiments/common.sh").read_text()
    return check_options(words[1:], text)


def check_options(words: list[str], source: str) -> None:
    """Every option must occur in what reads it, in full or as a key of the scripts' settings."""
    for word in words:
        if word.startswith("--"):
            name = word[2:].split("=")[0]
            known = re.search(rf"(--{re.escape(name)}\b|\[{re.escape(name)}\]=)", source)
            assert known, f"--{name}: no such option"


def check_pip(words: list[str]) -> None:
    """Requirement files and extras that are installed must exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "-r":
            assert (ROOT / following).is_file(), f"{following}: no such file"
        extras = re.fullmatch(r"(?:\.|[\w/.-]*lipschitz[\w.-]*)\[([\w,-]+)\]", word)
        for extra in extras[1].split(",") if extras else ():
            assert extra in project["optional-dependencies"], f"{extra}: no such extra"


# -- pages ---------------------------------------------------------------------------------------


def check_data(block: Block) -> None:
    """A block of data must be of its format."""
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml":
        assert ":" in block.text
    else:
        try:
            json.loads(block.text)
        except ValueError:
            for line in block.text.splitlines():
                json.loads(line)


def run_page(page: str, name: str) -> list[str]:
    """Runs a page's blocks in the current folder; returns the packages that were missing.

    Raises:
        AssertionError: A block fails; the message says where.
    """
    namespace: dict[str, object] = {"__name__": "__page__"}
    missing: list[str] = []
    for block in blocks(page):
        where = f"{name}, line {block.line}"
        parse_only = "parse only" in block.markers
        needed = [p.strip() for p in block.markers.get("needs", "").split(",") if p.strip()]
        absent = [p for p in needed if importlib.util.find_spec(p) is None]
        if absent:
            missing += absent
            continue
        codes = [int(m.split()[1]) for m in block.markers if m.startswith("exit ")]
        try:
            if block.language == "python":
                code = compile("\n" * block.line + block.text, name, "exec")
                if "file" in block.markers:
                    Path(block.markers["file"]).write_text(block.text)
                elif not parse_only:
                    exec(code, namespace)
            elif block.language in ("bash", "console"):
                for words in commands(block):
                    run_command(words, codes[0] if codes else 0, parse_only=parse_only)
            elif block.language in ("json", "toml", "yaml"):
                check_data(block)
            else:
                assert block.language in SHOWN, f"unknown language {block.language!r}"
                commands_in_it = _COMMAND.findall(block.text)
                assert not commands_in_it, f"commands want ```bash: {commands_in_it[0]!r}"
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    return missing


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A temporary folder with the prepared files, to stand in."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = torch.get_default_dtype()
    yield tmp_path
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_page(name, folder, capfd):
    with torch.random.fork_rng():
        missing = run_page((ROOT / name).read_text(), name)
    if missing:
        pytest.skip(f"blocks that need {', '.join(sorted(set(missing)))}; the others passed")


_SOURCE = re.compile(r"`((?:lipschitz|commands|experiments|benchmarks|tests|docs)/[\w./-]+)`")


def missing_files(page: str) -> list[str]:
    """Files of the project that a page names and that are not there."""
    return [name for name in _SOURCE.findall(page) if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name):
    assert missing_files((ROOT / name).read_text()) == []


# -- the test itself -----------------------------------------------------------------------------

FENCE = "```"


@pytest.mark.parametrize(
    ("language", "text", "says"),
    [
        ("python", "assert 1 + 1 == 3", "AssertionError"),
        ("python", "import lipschitz\nlipschitz.no_such_name", "AttributeError"),
        ("bash", "python main.py --no-such-option", "exit code 2"),
        ("bash", "python main.py --model mynet.py:make --load nothing.pth --eps 1", "exit code 2"),
        ("bash", "experiments/mnist.sh --no-such-option 4", "no-such-option"),
        ("bash", "experiments/no_such_script.sh", "not a command"),
        ("bash", "pip install .[no-such-extra]", "no such extra"),
        ("bash", "rm -r /tmp/x", "not a command"),
        ("console", "$ python train_model.py --no-such-option\nerror", "exit code 2"),
        ("json", "{1: 2}", "JSONDecodeError"),
        ("rust", "fn main() {}", "unknown language"),
        ("", "example 0\npython main.py --eps 1", "commands want"),
    ],
)
def test_failing_block_is_found(language, text, says, folder, capfd):
    page = f"# Title\n\n{FENCE}{language}\n{text}\n{FENCE}\n"
    with pytest.raises(AssertionError, match=says) as found:
        run_page(page, "page.md")
    assert str(found.value).startswith("page.md, line 3")


def test_wrong_option_is_found_where_nothing_runs(folder, capfd):
    page = f"<!-- parse only: long -->\n{FENCE}bash\npython main.py --no-such-option\n{FENCE}\n"
    with pytest.raises(AssertionError, match="SystemExit"):
        run_page(page, "page.md")


def test_blocks_share_a_namespace_and_a_folder(folder, capfd):
    page = (
        f"{FENCE}python\nx = 1\n{FENCE}\n- item\n\n    {FENCE}python\n    x += 1\n    {FENCE}\n"
        f"{FENCE}python\nassert x == 2\nopen('x.txt', 'w').write('3')\n{FENCE}\n"
        f"{FENCE}\nnot looked at\n{FENCE}\n"
    )
    assert run_page(page, "page.md") == []
    assert (folder / "x.txt").read_text() == "3"


def test_block_of_a_file_is_written_and_not_run(folder, capfd):
    page = (
        f"<!-- file: written.py -->\n{FENCE}python\nnumber = 7\n"
        f"assert __name__ == 'written'\n{FENCE}\n"
        f"{FENCE}python\nfrom written import number\nassert number == 7\n{FENCE}\n"
    )
    assert run_page(page, "page.md") == []
    assert "number = 7" in (folder / "written.py").read_text()


def test_commands_run_with_continued_lines_and_output(folder, capfd):
    page = (
        f"{FENCE}console\n$ python main.py --model mynet.py:make --load weights.pth \\\n"
        "    --input points.npz --eps 0.01 --engine native --num-examples 1 --quiet > out  # why\n"
        f"example 0\n{FENCE}\n<!-- exit 2: no eps -->\n{FENCE}bash\n"
        f"python main.py --eps -1 --load weights.pth\n{FENCE}\n"
    )
    assert run_page(page, "page.md") == []
    assert "avg_lip" in capfd.readouterr().out


def test_missing_file_is_found():
    page = "In `lipschitz/relaxation.py` and `lipschitz/no_such_file.py`."
    assert missing_files(page) == ["lipschitz/no_such_file.py"]


def test_missing_packages_are_named(folder):
    page = f"<!-- needs: no_such_package -->\n{FENCE}python\nraise ValueError\n{FENCE}\n"
    assert run_page(page, "page.md") == ["no_such_package"]


# -- the site ------------------------------------------------------------------------------------


def test_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs (requirements-docs.txt)")
    pytest.importorskip("material", reason="needs mkdocs-material (requirements-docs.txt)")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    assert list(tmp_path.glob("theory/*.html"))


def _hook():
    pytest.importorskip("latex2mathml", reason="needs latex2mathml (requirements-docs.txt)")
    path = ROOT / "docs/hooks/self_contained.py"
    spec = importlib.util.spec_from_file_location("self_contained", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Page:
    class file:
        src_path = "page.md"


def test_formulas_become_mathml_and_unknown_ones_are_a_warning(caplog):
    hook = _hook()
    good = r'<p><span class="arithmatex">\(a &lt; \alpha_1\)</span></p>'
    assert "<math" in hook.on_page_content(good, page=_Page)
    assert not caplog.records
    hook.on_page_content(r'<span class="arithmatex">\(\no{x}\)</span>', page=_Page)
    assert "page.md" in caplog.text


def test_page_that_loads_from_elsewhere_is_a_warning(caplog):
    hook = _hook()
    hook.on_post_page('<a href="https://example.org">x</a><img src="a.png">', page=_Page)
    assert not caplog.records
    for loaded in (
        '<script async src="https://example.org/x.js">',
        "<img src=//example.org/x.png>",
        '<link href="https://example.org/x.css" rel="stylesheet">',
    ):
        caplog.clear()
        hook.on_post_page(loaded, page=_Page)
        assert "example.org" in caplog.text, loaded
