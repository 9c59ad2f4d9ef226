"""Ctrl-C in a method that searches: certified bounds and no traceback, whenever it comes."""

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from cases import REFERENCE, REFERENCES, ROOT, mlp
from enumeration import exact_constants

from lipschitz import MethodOptions, Prepared, build_graph, make_problem
from lipschitz import prepared as prepared_module
from lipschitz.bounds.baselines import lipbab
from lipschitz.bounds.baselines.interrupts import interruptible

# The command line itself, saying on stderr when a method has entered its search.
HOOKED = """
import importlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit it ignored
sys.path.insert(0, sys.argv.pop(1))
module, name = importlib.import_module(sys.argv.pop(1)), sys.argv.pop(1)
real = getattr(module, name)
def hooked(*args, **kwargs):
    print("searching", file=sys.stderr, flush=True)
    return real(*args, **kwargs)
setattr(module, name, hooked)
import main, utils
sys.exit(utils.run_cli(main.main))
"""
MLP = ["--data", "simple", "--model", "simple_mlp_3layer", "--width", "32", "--eps", "0.2"]
MLP += ["--load", str(REFERENCE / "simple_mlp_3layer_32.pth")]
CNN = ["--data", "digits", "--model", "simple_cnn_3layer", "--width", "4", "--eps", "0.02"]
CNN += ["--load", str(REFERENCE / "simple_cnn_3layer_4.pth")]


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
@pytest.mark.parametrize(
    ("method", "module", "function", "network", "least"),
    [
        ("lipmip", "lipschitz.bounds.baselines.mixed_integer", "milp", MLP, 32.984185),
        ("lipbab", "lipschitz.bounds.baselines.lipbab", "without_empty", MLP, 32.984185),
        ("lipsdp", "lipschitz.bounds.baselines.lipsdp", "_solve", CNN, 50.0),
    ],
)
def test_a_real_signal_leaves_a_certified_row(method, module, function, network, least, tmp_path):
    if method == "lipsdp":
        pytest.importorskip("cvxpy")
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", HOOKED, str(ROOT), module, function, *network, "--quiet"]
    command += ["--method", method, "--timeout", "600", "--output", str(rows)]
    command += ["--num-examples", "2"] if network is CNN else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        assert process.stderr.readline() == "searching\n"
        time.sleep(0.5)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert time.monotonic() - sent < 45  # the solver alone would take longer
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "error: interrupted; the bounds of 1 examples are certified"
    (row,) = (json.loads(line) for line in rows.read_text().splitlines())
    assert row["status"] == "interrupted"
    assert f"status {row['status']}" in out
    assert row["lower_bound"] <= row["upper_bound"]
    assert least <= row["upper_bound"] <= row["root_upper_bound"] < float("inf")


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line that a function executes."""

    def __init__(self, function, line):
        self.code, self.left = inspect.unwrap(function).__code__, line

    def __call__(self, frame, event, argument):
        if frame.f_code is not self.code:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def interrupted_at(function, line, call):
    """A call's result, interrupted at a line of the function, and whether it came that far."""
    interrupter = Interrupter(function, line)
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        return call(), interrupter.left <= 0
    finally:
        sys.settrace(before)


def tiny():
    """A network, its problem's box and its constant."""
    torch.manual_seed(0)
    model = mlp(2, 5, 4, 2).double().eval()
    return model, 1.5, exact_constants(model, [-1.5, -1.5], [1.5, 1.5]).max()


MOMENTS = [*range(1, 12), *range(12, 90, 7)]


@pytest.mark.parametrize("method", ["lipbab", "lipmip"])
def test_no_line_is_a_bad_moment(method):
    """A search that Ctrl-C ends at any of its lines still bounds the constant."""
    model, eps, exact = tiny()
    prepared = Prepared(model, (2,), method=method, options=MethodOptions(timeout=30))
    problem = make_problem(prepared.graph, torch.zeros(2, dtype=torch.float64), eps)
    function = sys.modules[f"lipschitz.bounds.baselines.{method}"].__dict__[f"{method}_bounds"]
    statuses = set()
    for line in [*MOMENTS, 10_000]:
        result, was = interrupted_at(function, line, lambda: prepared.bound(problem))
        assert result.status == ("interrupted" if was else "exact")
        assert result.lower_bound <= exact * (1 + 1e-9)
        assert result.upper_bound >= exact * (1 - 1e-9)
        statuses.add(result.status)
    assert statuses == {"interrupted", "exact"}


def test_forgotten_regions_are_caught():
    """Negative control: the same search without what its last round has taken loses the constant.

    Lines before the search (some ten) raise instead of returning.
    """
    source = inspect.getsource(lipbab.lipbab_bounds)
    assert source.count("*taken, ") == 1
    names = dict(vars(lipbab))
    exec(compile(source.replace("*taken, ", ""), lipbab.__file__, "exec"), names)
    forgetful = names["lipbab_bounds"]
    model, eps, exact = tiny()
    graph = build_graph(model, (2,))
    problem = make_problem(graph, torch.zeros(2, dtype=torch.float64), eps)
    bounds = []
    for line in MOMENTS:
        with contextlib.suppress(KeyboardInterrupt):
            outcome, _ = interrupted_at(forgetful, line, lambda: forgetful(problem))
            bounds.append(float(outcome.class_upper_bounds.max()))
    assert min(bounds) < exact * (1 - 1e-3)


@pytest.mark.parametrize(("method", "stand_in"), [("lipmip", "ibp"), ("lipsdp", "global")])
def test_before_there_is_anything_a_simple_bound_stands_in(method, stand_in, monkeypatch):
    """One that holds where the method's own would: in the box, or everywhere."""
    if method == "lipsdp":
        pytest.importorskip("cvxpy")
    reference = REFERENCES[0]
    prepared = Prepared(reference.model(), (16,), method=method)
    problem = make_problem(prepared.graph, reference.point(), reference.eps)

    def interrupted(problem):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "_bounder", interrupted)
    result = prepared.bound(problem)
    simple = Prepared(prepared.graph, method=stand_in, engine="native").bound(problem)
    assert result.status == "interrupted"
    assert result.upper_bound == pytest.approx(simple.upper_bound)
    assert (result.lower_bound, result.witness) == (0, None)


def test_an_interrupt_while_gradients_are_sampled_keeps_the_bounds(monkeypatch):
    pytest.importorskip("cvxpy")
    model, eps, _ = tiny()
    prepared = Prepared(model, (2,), method="lipsdp")
    problem = make_problem(prepared.graph, torch.zeros(2, dtype=torch.float64), eps)
    whole = prepared.bound(problem)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared_module, "sample_gradients", interrupted)
    result = prepared.bound(problem)
    assert result.status == "interrupted"
    assert result.upper_bound == pytest.approx(whole.upper_bound, rel=1e-6)


def test_methods_that_do_not_search_are_ended(monkeypatch):
    prepared = Prepared(REFERENCES[0].model(), (16,), method="ibp")

    def interrupted(problem):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "_bounder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared.bound(make_problem(prepared.graph, REFERENCES[0].point(), 0.02))


def test_a_solver_that_sleeps_is_left_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    awake, ended = threading.Event(), []
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(lambda: (awake.wait(20), ended.append(True)))
        assert not ended
    finally:
        awake.set()
        signal.signal(signal.SIGINT, before)


def test_answers_and_errors_arrive():
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0)
