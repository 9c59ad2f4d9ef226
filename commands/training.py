"""Training of a network, with a checkpoint after every epoch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data import LabelledData
from lipschitz.errors import InputError
from models import ModelSpec
from models.checkpoint import Checkpoint, save_checkpoint
from models.conversion import cnn_to_mlp
from utils import versions

# Most processes that read batches. A choice: only speed depends on it.
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


def _workers() -> int:
    return min(_MAX_WORKERS, os.cpu_count() or 1)
