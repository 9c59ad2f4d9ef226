"""Trains a network of the registry, or a user's own, and saves a checkpoint that knows itself.

Example: python train_model.py --data digits --model simple_cnn_3layer --width 4
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data import LabelledData, data_spec, list_data, load_data
from lipschitz.errors import InputError
from lipschitz.precision import disable_tf32
from models import ModelSpec, list_models, model_spec
from models.checkpoint import Checkpoint, load_weights, save_checkpoint
from models.conversion import cnn_to_mlp
from utils import (
    Parser,
    choose_device,
    parse_params,
    run_cli,
    set_seed,
    use_threads_that_pay,
    versions,
)

_MAX_WORKERS = 4


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        num_epochs: Passes over the training examples; 0 only evaluates.
        lr: Learning rate of Adam.
        batch_size: Examples per step.
        seed: Of the initial weights and the order of the examples.
        quiet: No progress bar.
    """

    num_epochs: int
    lr: float
    batch_size: int
    seed: int
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be trained with."""
        if self.num_epochs < 0:
            raise InputError(f"--num-epochs {self.num_epochs}: expected 0 or more")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr}: expected a positive number")
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: expected at least 1")


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


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: LabelledData,
    options: TrainingOptions,
    epoch: int,
) -> tuple[float, float]:
    """One pass of cross-entropy training.

    Args:
        model: The network; left in training mode.
        optimizer: Of its parameters.
        data: Training examples.
        options: Batch size and seed.
        epoch: Number of the pass, which decides on the order of the examples.

    Returns:
        Mean loss and accuracy over the pass, each batch measured before its step.

    Raises:
        InputError: The loss is no longer finite.
    """
    first = next(model.parameters())
    model.train()
    loss_sum, correct = 0.0, 0
    order_seed = options.seed * 1_000_003 + epoch  # another order in every epoch of every seed
    batches = data.batches(options.batch_size, shuffle_seed=order_seed, workers=_workers())
    steps = -(-len(data) // options.batch_size)
    for x, y in tqdm(batches, f"epoch {epoch}", steps, leave=False, disable=options.quiet):
        x, y = x.to(first), y.to(first.device)
        output = model(x)
        loss = nn.functional.cross_entropy(output, y)
        if not torch.isfinite(loss):
            raise InputError(f"the loss is {loss.item()} in epoch {epoch}; lower --lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(y)
        correct += int((output.argmax(1) == y).sum())
    return loss_sum / len(data), correct / len(data)


@torch.no_grad()
def measure_accuracy(model: nn.Module, data: LabelledData, batch_size: int) -> float:
    """Share of examples classified correctly, in [0, 1]; leaves the model in eval mode."""
    first = next(model.parameters())
    model.eval()
    correct = 0
    for x, y in data.batches(batch_size, workers=_workers()):
        correct += int((model(x.to(first)).argmax(1) == y.to(first.device)).sum())
    return correct / len(data)


def train(
    spec: ModelSpec,
    model: nn.Module,
    train_data: LabelledData,
    test_data: LabelledData,
    options: TrainingOptions,
    path: Path,
) -> Checkpoint:
    """Trains, printing one line and saving a checkpoint after every epoch.

    Ctrl-C therefore loses no more than the epoch under way.

    Args:
        spec: What the model is, for the checkpoint.
        model: The network, on its device.
        train_data: Training examples.
        test_data: Examples for the reported accuracy.
        options: How to train.
        path: The checkpoint's file.

    Returns:
        The checkpoint after the last epoch.

    Raises:
        KeyboardInterrupt: Ctrl-C, with a message that says what is kept.
    """

    def save(epoch: int, accuracy: float) -> Checkpoint:
        checkpoint = Checkpoint(
            state_dict=model.state_dict(),
            model=spec.name,
            params=spec.params,
            data=test_data.spec.name,
            input_shape=spec.input_shape,
            classes=test_data.spec.classes,
            mean=test_data.spec.mean,
            std=test_data.spec.std,
            seed=options.seed,
            accuracy=accuracy,
            epochs=epoch,
            versions=versions(),
        )
        save_checkpoint(path, checkpoint)
        return checkpoint

    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    epoch = 0
    try:
        accuracy = measure_accuracy(model, test_data, options.batch_size)
        if options.num_epochs == 0:
            print(f"test_acc {accuracy:.4f}")
            return save(0, accuracy)
        for epoch in range(1, options.num_epochs + 1):
            loss, train_accuracy = train_epoch(model, optimizer, train_data, options, epoch)
            accuracy = measure_accuracy(model, test_data, options.batch_size)
            print(
                f"epoch {epoch}/{options.num_epochs} loss {loss:.4f} "
                f"train_acc {train_accuracy:.4f} test_acc {accuracy:.4f}",
                flush=True,
            )
            checkpoint = save(epoch, accuracy)
    except KeyboardInterrupt:
        kept = f"epoch {epoch - 1} is kept in {path}" if epoch > 1 else "nothing is saved"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    return checkpoint


def save_as_mlp(model: nn.Module, checkpoint: Checkpoint, path: Path) -> Path:
    """Saves the MLP equal to a trained CNN beside it, as ..._mlp.pth.

    Returns:
        The path of the MLP's checkpoint.
    """
    mlp = cnn_to_mlp(model, checkpoint.input_shape)
    linears = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    others = {type(layer) for layer in mlp if not isinstance(layer, nn.Linear)}
    known = {**vars(checkpoint), "state_dict": mlp.state_dict(), "model": None, "params": None}
    known["input_shape"] = (linears[0].in_features,)
    if others <= {nn.ReLU}:  # the registry's `mlp` has no other activation
        sizes = [linears[0].in_features, *(layer.out_features for layer in linears)]
        known |= {"model": "mlp", "params": {"sizes": "-".join(map(str, sizes))}}
    path = path.with_name(f"{path.stem}_mlp{path.suffix}")
    save_checkpoint(path, Checkpoint(**known))
    return path


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, trains, saves.

    Returns:
        The exit code, 0.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_models or args.list_data:
        entries = [*(list_models() if args.list_models else ())]
        entries += list_data() if args.list_data else ()
        print("\n".join(map(str, entries)))
        return 0
    for option in ("data", "model"):
        if getattr(args, option) is None:
            parser.error(f"--{option} is missing; see --help")
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


def _workers() -> int:
    return min(_MAX_WORKERS, os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(run_cli(main))
