"""Certified bounds of the local Lipschitz constant of a network around given points.

Example: python main.py --data digits --model simple_cnn_3layer --width 4 \\
             --load models_pretrained/digits_simple_cnn_3layer_width4.pth --eps 0.05
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from commands.introduction import called, introduction
from commands.lists import print_lists
from commands.options import check_options
from lipschitz.bounds.methods import METHODS
from lipschitz.words import ERROR, HEURISTICS, INPUTS, INTERRUPTED, OUTPUTS
from utils import Parser, importing, run_cli

if TYPE_CHECKING:
    from commands.run import Run
    from lipschitz import LipschitzResult, LocalProblem


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    # A box such as -1,1 begins like an option.
    parser._negative_number_matcher = re.compile(r"^-(\d|\.\d)")
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
    what.add_argument(
        "--input",
        metavar="FILE",
        help="points: .npz with x [n, *input shape] and y [n], .npy, or .csv, a line for each",
    )
    what.add_argument("--std", help="per channel, divides eps (with --input; comma-separated)")
    what.add_argument("--data-root", metavar="FOLDER", help="where the data files are")
    what.add_argument("--start", type=int, default=0, help="first example (default 0)")
    what.add_argument("--num-examples", type=int, default=1, help="how many (default 1)")
    box = parser.add_argument_group("what to bound")
    box.add_argument(
        "--eps",
        metavar="R",
        help="radius in pixels, of --input in its units, such as 0.05 or 2/255; 0.1,0,0.2 per "
        "channel or input; or a file .npy, .csv",
    )
    box.add_argument(
        "--box",
        metavar="LO,HI",
        help="the region itself, instead of points and eps, in the network's units: one interval, "
        "'LO,HI;LO,HI;...' per input, or a file .npz, .npy, .csv",
    )
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
    box.add_argument(
        "--curvature",
        action="store_true",
        help="bound the Lipschitz constant of each output's gradient instead, of smooth networks; "
        "with --bab by cutting the box, up to 64 inputs",
    )
    how = parser.add_argument_group("how to bound it")
    how.add_argument("--method", default="crown", help=_method_help())
    how.add_argument("--engine", help="auto_lirpa or native (default: the method's first)")
    how.add_argument(
        "--no-optimize", action="store_true", help="leave slopes and planes as they are"
    )
    how.add_argument("--ob-iteration", type=int, default=20, help="slope steps (default 20)")
    how.add_argument("--ob-lr", type=float, default=0.5, help="their length (default 0.5)")
    how.add_argument(
        "--batch-size",
        type=int,
        help="outputs, with --bab subdomains, per batch (default: by the network's size)",
    )
    how.add_argument("--memory-budget", type=int, metavar="MIB", help="for one chunk of rows")
    how.add_argument(
        "--timeout",
        type=float,
        help="seconds per example (default 60 where something is searched; crown, alpha, joint, "
        "sampling and --curvature keep it too if it is given)",
    )
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
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="ROWS.jsonl", help="append a row per example; resumes")
    out.add_argument(
        "--csv",
        metavar="FILE.csv",
        help="append a line per example, with --mono per example, feature and output",
    )
    out.add_argument(
        "--picture",
        metavar="FILE.png",
        help="of images: the example, the certified bound of every pixel's |J|, a true gradient",
    )
    out.add_argument("--clean", action="store_true", help="print the clean accuracy and exit")
    out.add_argument("--list-models", action="store_true", help="list the networks and exit")
    out.add_argument("--list-data", action="store_true", help="list the data sets and exit")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _method_help() -> str:
    return "; ".join(f"{name} ({m.kind()}): {m.help}" for name, m in METHODS.items())


def bound_examples(run: Run) -> int:
    """Bounds example after example, with a row and a line each, and prints the means.

    Returns:
        The exit code: 1 if some examples have no bounds, 2 if none has.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the row of the example under way.
    """
    from commands.advice import advice
    from commands.certify import certify_line, certify_summary
    from commands.curvature import curvature_summary
    from commands.examples import row_of_example
    from commands.output_files import open_outputs
    from commands.picture import draw, path_of
    from commands.rows import error_line, line_of, summary_of

    args, rows, hinted = run.args, [], False
    found: list[tuple[LocalProblem, LipschitzResult]] = []
    line, summary = (certify_line, certify_summary) if args.certify else (line_of, summary_of)
    summary = curvature_summary if args.curvature else summary
    with open_outputs(args.output, args.csv) as outputs:
        examples = range(args.start, args.start + len(run.points.x))
        done = outputs.done(run.settings, examples)
        for index, example in enumerate(tqdm(examples, "examples", disable=args.quiet or None)):
            if example in done:
                rows.append(done[example])
                continue
            found.clear()
            row = row_of_example(run, index, lambda *both: found.append(both))
            rows.append(row)
            failed = row["status"] == ERROR
            tqdm.write(
                error_line(row) if failed else line(row), file=sys.stderr if failed else sys.stdout
            )
            sys.stdout.flush()
            outputs.append(row)  # after the line: a disk that is full costs nobody the bound
            hint = (
                None
                if args.quiet
                else advice(args, run.argv, row, called(), can_search=run.can_search)
            )
            if hint is not None and not hinted:
                tqdm.write(f"hint: {hint}", file=sys.stderr)
                hinted = True
            if args.picture and found:
                path = path_of(args.picture, example, several=len(examples) > 1)
                draw(path, *found[0], example=example, label=row["label"])
            if row["status"] == INTERRUPTED:
                break
    good = [row for row in rows if row["status"] != ERROR]
    if good:
        print(summary(good))
    if rows[-1]["status"] == INTERRUPTED:
        raise KeyboardInterrupt(f"interrupted; the bounds of {len(good)} examples are certified")
    return 0 if len(good) == len(rows) else 1 if good else 2


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, bounds.

    Returns:
        The exit code: 0, 1 if some of the examples failed, 2 if all did.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(introduction())
        return 0
    parser = build_parser()
    args = parser.parse_args(argv)
    if print_lists(args):
        return 0
    check_options(args, parser.given(argv))
    with importing():  # torch and what needs it
        from commands.monotonicity import certify_signs
        from commands.run import clean_accuracy, load, prepare
    loaded = load(args)
    if args.clean:
        clean_accuracy(args, loaded)
    elif args.mono:
        certify_signs(args, loaded)
    else:
        return bound_examples(prepare(args, argv, loaded))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
