"""Trains a network of the registry, or a user's own, and saves a checkpoint that knows itself.

Example: python train_model.py --data digits --model simple_cnn_3layer --width 4
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from pathlib import Path

from commands.lists import print_lists
from lipschitz.errors import InputError
from utils import (
    Parser,
    choose_device,
    importing,
    parse_params,
    run_cli,
    set_seed,
    use_threads_that_pay,
)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="data set, see --list-data")
    parser.add_argument("--model", help="name, see --list-models, or path/to/file.py:factory")
    parser.add_argument("--width", type=int, help="width of the network, where it takes one")
    parser.add_argument("--depth", type=int, help="depth of the network, where it takes one")
    parser.add_argument("--model-params", metavar="NAME=VALUE,...", help="its other arguments")
    parser.add_argument("--num-epochs", type=int, default=10, help="0 only evaluates (default 10)")
    parser.add_argument("--lr", type=float, default=0.001, help="learning rate (default 0.001)")
    parser.add_argument("--batch-size", type=int, default=256, help="default 256")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--load", metavar="PATH", help="start from these weights")
    parser.add_argument("--output", metavar="PATH", help="checkpoint (default: a derived name)")
    parser.add_argument("--save-dir", default="models_pretrained", help="folder of derived names")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data files are")
    parser.add_argument(
        "--cnn-to-mlp", action="store_true", help="also save the equal MLP, as ..._mlp.pth"
    )
    parser.add_argument("--list-models", action="store_true", help="list the networks and exit")
    parser.add_argument("--list-data", action="store_true", help="list the data sets and exit")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def checkpoint_path(args: Namespace, data_name: str) -> Path:
    """Where the checkpoint goes: `--output`, or a name made of all that defines the network."""
    if args.output:
        return Path(args.output)
    params = parse_params(args.model_params, width=args.width, depth=args.depth)
    # A user's network: net.py:make is net_make.
    model_name = Path(args.model).name.replace(".py:", "_")
    parts = [data_name, model_name, *(f"{name}{value}" for name, value in sorted(params.items()))]
    return Path(args.save_dir) / (re.sub(r"[^\w.-]", "-", "_".join(parts)) + ".pth")


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, trains, saves.

    Returns:
        The exit code, 0.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if print_lists(args):
        return 0
    for option in ("data", "model"):
        if getattr(args, option) is None:
            parser.error(f"--{option} is missing; see --help")
    with importing():  # torch and what needs it
        from commands.training import TrainingOptions, save_as_mlp, train
        from data import data_spec, load_data
        from lipschitz.precision import disable_tf32
        from models import model_spec
        from models.checkpoint import load_weights
    options = TrainingOptions(args.num_epochs, args.lr, args.batch_size, args.seed, args.quiet)
    device = choose_device(args.device)
    set_seed(args.seed)
    disable_tf32()

    facts = data_spec(args.data)
    params = parse_params(args.model_params, width=args.width, depth=args.depth)
    spec = model_spec(args.model, params, None if facts.takes_any_shape else facts.input_shape)
    model = spec.build()
    if next(model.parameters(), None) is None:
        raise InputError(f"{args.model} has no weights to train")
    classes = spec.count_classes(model)
    if classes != facts.classes:
        raise InputError(
            f"{args.model} has {classes} outputs, {facts.name} {facts.classes} classes"
        )
    if args.load:
        load_weights(model, args.load, asked_for=args.model)
    model.to(device)
    use_threads_that_pay(sum(weights.numel() for weights in model.parameters()))

    # The data's own seed stays 0: with a split per --seed, main.py would meet trained examples.
    where = {"model_input_shape": spec.input_shape, "root": args.data_root}
    train_data = load_data(args.data, train=True, **where)
    test_data = load_data(args.data, train=False, **where)
    path = checkpoint_path(args, facts.name)
    checkpoint = train(spec, model, train_data, test_data, options, path)
    print(f"saved {path}")
    if args.cnn_to_mlp:
        print(f"saved {save_as_mlp(model, checkpoint, path)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
