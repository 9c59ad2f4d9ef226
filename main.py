"""Bounds the local Lipschitz constant of a network around each example of a data set.

Example: python main.py --data digits --model simple_cnn_3layer --width 4 \\
             --load models_pretrained/digits_simple_cnn_3layer_width4.pth --eps 0.05
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from commands.certify import certify_line, certify_row, certify_summary
from commands.examples import classes_of, label_of
from commands.monotonicity import certify_signs
from commands.progress import ProgressBar, trace_to
from commands.rows import line_of, row_of, settings_of, summary_of
from data import DataSpec, data_spec, list_data, load_data
from data.points import Choice, Points, coordinates, points_of_data, points_of_file
from lipschitz import (
    METHODS,
    BranchOptions,
    LipschitzResult,
    MethodOptions,
    Prepared,
    make_problem,
)
from lipschitz.bounds.methods import check_measure, choose_engine
from lipschitz.bounds.options import SlopeOptimization
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.errors import InputError
from lipschitz.network.formats import is_network_file, load_model, read_network
from lipschitz.network.tracing import placement
from lipschitz.precision import disable_tf32
from lipschitz.search.options import check_branching, check_searched
from lipschitz.words import HEURISTICS, INPUTS, INTERRUPTED, OUTPUTS, Asked, norm_name
from models import ModelSpec, list_models, model_spec
from models.checkpoint import Checkpoint, load_checkpoint, load_weights
from models.conversion import cnn_to_mlp
from train_model import measure_accuracy
from utils import (
    Parser,
    append_row,
    choose_device,
    choose_dtype,
    parse_params,
    read_rows,
    run_cli,
    set_seed,
    use_threads_that_pay,
)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    what = parser.add_argument_group("network and points")
    what.add_argument("--data", help="data set, see --list-data")
    what.add_argument(
        "--model", help="name, see --list-models, path/to/file.py:factory or torchvision:name"
    )
    what.add_argument("--width", type=int, help="width of the network, where it takes one")
    what.add_argument("--depth", type=int, help="depth of the network, where it takes one")
    what.add_argument("--model-params", metavar="NAME=VALUE,...", help="its other arguments")
    what.add_argument(
        "--load",
        metavar="PATH",
        help="checkpoint, any state dict; or a whole network: .onnx, .h5, .pt2",
    )
    what.add_argument("--cnn-to-mlp", action="store_true", help="bound the equal MLP instead")
    what.add_argument("--input", metavar="FILE.npz", help="points: x [n, *input shape], y [n]")
    what.add_argument("--std", help="per channel, divides eps (with --input; comma-separated)")
    what.add_argument("--data-root", metavar="FOLDER", help="where the data files are")
    what.add_argument("--start", type=int, default=0, help="first example (default 0)")
    what.add_argument("--num-examples", type=int, default=1, help="how many (default 1)")
    box = parser.add_argument_group("what to bound")
    box.add_argument("--eps", help="radius in pixels, such as 0.05 or 2/255")
    box.add_argument("--fixed", metavar="I,J-K", help="inputs, numbered flat, that do not change")
    box.add_argument("--input-clipping", action="store_true", help="cut the box to the data range")
    box.add_argument("--norm", default="inf", help="of input and output: inf (default), 1 or 2")
    box.add_argument(
        "--outputs",
        choices=OUTPUTS,
        help="each output or margin by itself, or all together: the operator norm of the Jacobian "
        "(default all, of margins each; the same for inf)",
    )
    box.add_argument(
        "--inputs", choices=INPUTS, default="all", help="which count in the norm (default all)"
    )
    box.add_argument("--classes", metavar="C,...", help="outputs to bound (default all)")
    box.add_argument(
        "--margins",
        nargs="?",
        const="label",
        choices=("label", "all"),
        help="bound f_label - f_c instead of f_c; 'all': f_i - f_j of all pairs",
    )
    box.add_argument(
        "--certify",
        action="store_true",
        help="certify robust radii, by margins over their constants, in the --norm",
    )
    how = parser.add_argument_group("how to bound it")
    how.add_argument("--method", default="crown", help=_method_help())
    how.add_argument("--engine", help="auto_lirpa or native (default: the method's first)")
    how.add_argument(
        "--no-optimize", action="store_true", help="crown: leave the slopes as they are"
    )
    how.add_argument("--ob-iteration", type=int, default=20, help="slope steps (default 20)")
    how.add_argument("--ob-lr", type=float, default=0.5, help="their length (default 0.5)")
    how.add_argument(
        "--batch-size",
        type=int,
        help="outputs, with --bab subdomains, per batch (default: by the network's size)",
    )
    how.add_argument("--memory-budget", type=int, metavar="MIB", help="for one chunk of rows")
    how.add_argument("--timeout", type=float, default=60, help="seconds per example (default 60)")
    how.add_argument("--tolerance", type=float, default=1e-4, help="relative gap called exact")
    how.add_argument("--dtype", default="auto", help="float32, float64 or auto (the model's)")
    how.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    how.add_argument("--seed", type=int, default=0, help="of the sampled points (default 0)")
    bab = parser.add_argument_group("branch and bound")
    bab.add_argument("--bab", action="store_true", help="refine the bounds by branch and bound")
    bab.add_argument("--heuristic", help=f"{', '.join(HEURISTICS)} (default: the engine's)")
    bab.add_argument("--branch", default="auto", help="relu, input or auto (default auto)")
    bab.add_argument("--refresh", default="auto", help="recompute intervals: on, off or auto")
    bab.add_argument("--beta-steps", type=int, help="for multipliers of splits (default 8)")
    bab.add_argument("--sdp", default="auto", help="semidefinite bounds: auto, always or never")
    bab.add_argument("--max-domains", type=int, help="open subdomains kept (default: by memory)")
    bab.add_argument("--trace", metavar="FILE.jsonl", help="append the bounds over time")
    mono = parser.add_argument_group("monotonicity")
    mono.add_argument(
        "--mono",
        action="store_true",
        help="certify the signs of features' effects: one feature at a time over its whole range, "
        "or, with --eps, all within eps; --timeout is then per feature, output and sign",
    )
    mono.add_argument("--features", metavar="I,...", help="features (default: the table's numbers)")
    mono.add_argument("--csv", metavar="FILE.csv", help="a line per example, feature and output")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="ROWS.jsonl", help="append a row per example; resumes")
    out.add_argument("--clean", action="store_true", help="print the clean accuracy and exit")
    out.add_argument("--list-models", action="store_true", help="list the networks and exit")
    out.add_argument("--list-data", action="store_true", help="list the data sets and exit")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _method_help() -> str:
    return "; ".join(f"{name} ({m.kind()}): {m.help}" for name, m in METHODS.items())


@dataclass(frozen=True)
class Network:
    """The network to bound and what is known about it."""

    model: nn.Module
    spec: ModelSpec
    input_shape: tuple[int, ...]
    checkpoint: Checkpoint | None


def parse_eps(text: str | None) -> float:
    """A radius, as a decimal or a fraction such as 2/255.

    Raises:
        InputError: Not such a number, negative, NaN or infinite.
    """
    if text is None:
        raise InputError("--eps is missing: give the radius of the box in pixels, such as 0.05")
    try:
        eps = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--eps {text}: expected a number such as 0.05 or 2/255") from None
    if not 0 <= eps < float("inf"):
        raise InputError(f"--eps {text}: expected a finite number, 0 or larger")
    return eps


def check_options(args: Namespace) -> None:
    """Refuse what cannot be asked for, before anything is loaded.

    Raises:
        InputError: With what to do instead.
    """
    args.norm = norm_name(args.norm)
    asked = Asked(args.norm, only_free=args.inputs == "free")
    if args.bab:
        check_searched(asked, branching_of(args), args.engine or "native")
    else:
        engine = choose_engine(args.method, args.engine, asked)
        check_measure(args.method, engine, asked)
        if args.trace is not None:
            raise InputError("--trace goes with --bab; a single bound has no course over time")
    for option, smallest in (("num_examples", 1), ("start", 0), ("ob_iteration", 1)):
        if getattr(args, option) < smallest:
            shown = option.replace("_", "-")
            raise InputError(f"--{shown} {getattr(args, option)}: expected at least {smallest}")
    for option in ("batch_size", "memory_budget", "max_domains"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            shown = option.replace("_", "-")
            raise InputError(f"--{shown} {getattr(args, option)}: expected at least 1")
    for option in ("ob_lr", "tolerance", "timeout"):
        if not 0 < getattr(args, option) < float("inf"):
            shown = option.replace("_", "-")
            raise InputError(f"--{shown} {getattr(args, option)}: expected a positive number")
    if args.mono and (args.bab or args.margins or args.output or args.certify):
        raise InputError("--mono goes without --bab, --margins, --certify and --output; see --csv")
    if args.mono and (args.norm != "inf" or args.fixed is not None):
        raise InputError("--mono goes without --norm and --fixed: it certifies signs")
    if args.certify and (args.eps or args.margins or args.outputs or args.fixed or args.trace):
        raise InputError(
            "--certify finds eps itself, for the margins of the label: leave out --eps, --margins, "
            "--outputs, --fixed and --trace"
        )
    if args.certify and (args.method == "sampling" or args.inputs == "free"):
        raise InputError(
            "--certify needs upper bounds over all inputs: no sampling, no free inputs"
        )
    if not args.mono and (args.features is not None or args.csv is not None):
        raise InputError("--features and --csv go with --mono")
    if args.std is not None and args.input is None:
        raise InputError("--std goes with --input; a data set knows its own std")


def branching_of(args: Namespace) -> BranchOptions:
    """The search that ``--bab`` and its options ask for.

    Raises:
        InputError: An option with no such value.
    """
    if args.method not in ("crown", "alpha"):
        raise InputError(f"--bab refines crown or alpha, not --method {args.method}; leave it out")
    options = BranchOptions(
        timeout=args.timeout,
        tolerance=args.tolerance,
        batch_size=args.batch_size,
        max_domains=args.max_domains,
        heuristic=args.heuristic,
        branch=args.branch,
        refresh=args.refresh,
        beta_steps=args.beta_steps,
        sdp=args.sdp,
    )
    check_branching(options, args.engine or "native")
    return options


def load_network(args: Namespace, facts: DataSpec | None, input_shape: Any) -> Network:
    """The network with its weights, in the mode and precision its maker gave it.

    The model's name and arguments may come from the checkpoint.

    Raises:
        InputError: No model named, unknown names, weights that do not fit.
    """
    params = parse_params(args.model_params, width=args.width, depth=args.depth)
    name = args.model
    if args.load and is_network_file(args.load):
        if name is not None:
            raise InputError(f"--model {name}: leave it out, {args.load} is a whole network")
        model, shape = read_network(args.load, **params)
        if input_shape is not None and tuple(input_shape) != shape:
            raise InputError(
                f"{args.load} takes inputs of shape {shape}, the points of {args.input} have "
                f"{tuple(input_shape)}"
            )
        spec = ModelSpec(Path(args.load).name, params, shape, load_model)
        return _converted(args, Network(model, spec, shape, None))
    if name is None:
        known = load_checkpoint(args.load) if args.load else None
        if known is None or known.model is None:
            raise InputError("--model is missing: give a name of --list-models or file.py:factory")
        name, params = known.model, {**(known.params or {}), **params}
    data_shape = None if facts is None or facts.takes_any_shape else facts.input_shape
    spec = model_spec(name, params, data_shape)
    model = spec.build()
    checkpoint = load_weights(model, args.load, asked_for=name) if args.load else None
    if checkpoint is None and not _is_own(name):
        raise InputError(
            f"--load is missing: {name} has no weights of its own; train_model.py makes them"
        )
    shape = input_shape if input_shape is not None else spec.input_shape
    if shape is None:
        raise InputError(f"the input shape of {name} is unknown: name its --data or give --input")
    return _converted(args, Network(model, spec, tuple(shape), checkpoint))


def _converted(args: Namespace, network: Network) -> Network:
    """The network, or with ``--cnn-to-mlp`` the equal MLP."""
    if not args.cnn_to_mlp:
        return network
    mlp = cnn_to_mlp(network.model, network.input_shape)
    return replace(network, model=mlp, input_shape=(int(np.prod(network.input_shape)),))


def _is_own(name: str) -> bool:
    return ":" in name and not name.startswith("torchvision:")


def print_clean_accuracy(args: Namespace, network: Network, points: Points | None) -> None:
    """Share of examples classified correctly, over the test set or the points of a file."""
    if points is None:
        test_data = load_data(
            args.data, train=False, model_input_shape=network.input_shape, root=args.data_root
        )
        accuracy = measure_accuracy(network.model, test_data, 256)
        print(f"clean_acc {accuracy:.4f} ({len(test_data)} examples)")
        return
    if points.labels is None:
        raise InputError(f"--clean: {args.input} has no labels; add an array 'y'")
    with torch.no_grad():
        predicted = network.model(points.x.to(*placement(network.model))).argmax(1).cpu()
    accuracy = float((predicted == points.labels).double().mean())
    print(f"clean_acc {accuracy:.4f} ({len(points.x)} examples)")


def bound_example(
    args: Namespace, prepared: Prepared, points: Points, index: int
) -> LipschitzResult:
    """Certified bounds around one of the points."""
    margin_of = label_of(prepared, points, index) if args.margins == "label" else None
    problem = make_problem(
        prepared.graph,
        points.x[index],
        **points.box(index),
        clip=points.clip,
        classes=classes_of(args),
        margin_of=margin_of,
        pairs=args.margins == "all",
        norm=args.norm,
        outputs=args.outputs,
        inputs=args.inputs,
    )
    watch = None if args.trace is None else trace_to(args.trace, args.start + index)
    hidden = not args.bab or args.quiet or None
    with closing(ProgressBar(args.timeout, disable=hidden)) as show:
        return prepared.bound(
            problem,
            tolerance=args.tolerance,
            sampling=Sampling(seed=args.seed),
            watch=lambda state: [seen(state) for seen in (show, watch) if seen is not None],
        )


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, bounds example after example, writes a row each.

    Returns:
        The exit code, 0.
    """
    args = build_parser().parse_args(argv)
    if args.list_models or args.list_data:
        entries = [*(list_models() if args.list_models else ())]
        entries += list_data() if args.list_data else ()
        print("\n".join(map(str, entries)))
        return 0
    check_options(args)
    no_eps = args.eps is None and (args.clean or args.mono or args.certify)
    eps = None if args.eps is None else parse_eps(args.eps)
    if args.input is None and not no_eps:
        eps = parse_eps(args.eps)
    set_seed(args.seed)
    disable_tf32()
    device = choose_device(args.device)

    if args.data is None and args.load and args.input is None and not is_network_file(args.load):
        args.data = load_checkpoint(args.load).data
    if args.data is None and args.input is None:
        raise InputError("--data is missing: name a data set of --list-data, or give --input")
    facts = None if args.data is None else data_spec(args.data)
    choice = Choice(args.start, args.num_examples, args.input_clipping, needs_box=not no_eps)
    points = None
    if args.input:
        points = points_of_file(Path(args.input), eps, choice, std=args.std, facts=facts)
    file_shape = None if points is None else tuple(points.x.shape[1:])
    network = load_network(args, facts, file_shape)
    if points is not None and args.cnn_to_mlp:
        raise InputError("--cnn-to-mlp with --input: convert with train_model.py --cnn-to-mlp")
    if args.clean:
        network.model.eval().to(device)
        print_clean_accuracy(args, network, points)
        return 0
    if points is None:
        points = points_of_data(facts, network.input_shape, eps or 0.0, choice, args.data_root)
    size = int(np.prod(network.input_shape))
    points = replace(points, fixed=coordinates("--fixed", args.fixed, size))
    if args.mono:
        certify_signs(args, network.model, network.input_shape, points, device)
        return 0

    prepared = Prepared(
        network.model.to(device),
        network.input_shape,
        method=args.method,
        engine=args.engine,
        options=MethodOptions(
            optimize=not args.no_optimize,
            slopes=SlopeOptimization(args.ob_iteration, args.ob_lr),
            rows_at_once=args.batch_size,
            memory_budget=args.memory_budget and args.memory_budget * 2**20,
            timeout=args.timeout,
            seed=args.seed,
        ),
        branching=branching_of(args) if args.bab else None,
        dtype=choose_dtype(args.dtype, network.model),
        norm=args.norm,
        inputs=args.inputs,
    )
    widest = max(node.shape.numel() for node in prepared.graph.nodes)
    use_threads_that_pay(widest * widest)  # coefficients of one layer's bounds in another
    settings = settings_of(
        args, network.model, network.spec, prepared, eps=eps, source=points.source
    )
    done = {
        row.get("example"): row
        for row in (read_rows(args.output) if args.output else [])
        if row.get("status") != INTERRUPTED
        and all(row.get(key) == value for key, value in settings.items())
    }
    rows = []
    for index in tqdm(range(len(points.x)), "examples", disable=args.quiet or None):
        example = args.start + index
        label = None if points.labels is None else int(points.labels[index])
        if example in done:
            rows.append(done[example])
            continue
        begin = time.perf_counter()
        if args.certify:
            row = certify_row(args, prepared, points, index, settings)
            line = certify_line(row)
        else:
            row = row_of(bound_example(args, prepared, points, index), settings, example, label)
            line = line_of(row, time.perf_counter() - begin)
        if args.output:
            append_row(args.output, row)
        rows.append(row)
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        if row["status"] == INTERRUPTED:
            break
    print(certify_summary(rows) if args.certify else summary_of(rows))
    if rows[-1]["status"] == INTERRUPTED:
        raise KeyboardInterrupt(f"interrupted; the bounds of {len(rows)} examples are certified")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
