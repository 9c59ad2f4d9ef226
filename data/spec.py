"""What is known about a data set without reading it, and the examples once read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lipschitz.errors import InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DataSpec:
    """A data set's facts.

    Networks take normalised inputs, (pixel - mean) / std.

    Attributes:
        name: Name on the command line.
        input_shape: Shape of one example as the network takes it.
        classes: Number of labels.
        mean: Per channel, in pixels (one number serves all).
        std: Per channel, in pixels.
        pixel_range: Smallest and largest value a pixel can have.
        help: One line on what it is.
        source: Where it comes from, and its licence.
        channels_shape: Shape in which the first axis is the channels that mean and std refer to.
        takes_any_shape: The data is generated in any shape that the model wants.
        evaluated_at_centre: Bounds are computed at the centre of the unit cube, as in the paper.
    """

    name: str
    input_shape: Shape
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: tuple[float, float]
    help: str
    source: str
    channels_shape: Shape
    takes_any_shape: bool = False
    evaluated_at_centre: bool = False

    def with_shape(self, model_input_shape: Shape | None) -> DataSpec:
        """The same data, its examples in the shape that a model takes.

        Raises:
            InputError: The model wants another number of values per example.
        """
        if model_input_shape is None or tuple(model_input_shape) == self.input_shape:
            return self
        shape = tuple(model_input_shape)
        if self.takes_any_shape:
            return replace(self, input_shape=shape, channels_shape=shape)
        if math.prod(shape) != math.prod(self.input_shape):
            raise InputError(
                f"inputs of shape {_show(shape)} asked for, {self.name} has "
                f"{_show(self.input_shape)}; choose another model or data set"
            )
        return replace(self, input_shape=shape)

    def normalisation(
        self, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std of every input value, each of shape `input_shape`, in pixels."""

        def expand(per_channel: tuple[float, ...]) -> torch.Tensor:
            values = torch.tensor(per_channel, dtype=dtype)
            values = values.reshape(-1, *[1] * (len(self.channels_shape) - 1))
            return values.expand(self.channels_shape).reshape(self.input_shape).clone()

        return expand(self.mean), expand(self.std)

    def __str__(self) -> str:
        """The line that `--list-data` prints."""
        return (
            f"{self.name} ({_show(self.input_shape)}, {self.classes} classes): {self.help}. "
            f"Source: {self.source}"
        )


@dataclass(frozen=True)
class LabelledData:
    """Normalised examples with their labels.

    Attributes:
        spec: The data set, in the shape of its examples here.
        examples: Torch data set of pairs (input, label); a `TensorDataset` if it is in memory.
    """

    spec: DataSpec
    examples: Dataset[Any]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)  # type: ignore[arg-type]

    def take(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Examples start, ..., start + count - 1, or as many of them as there are.

        Returns:
            x: Normalised inputs, shape [B, *input_shape].
            y: Labels, shape [B].

        Raises:
            InputError: There is no example number `start`, or `count` is below 1.
        """
        if count < 1 or not 0 <= start < len(self):
            raise InputError(
                f"examples {start} to {start + count - 1} of {self.spec.name}: "
                f"it has the examples 0 to {len(self) - 1}"
            )
        pairs = [self.examples[i] for i in range(start, min(start + count, len(self)))]
        x = torch.stack([x for x, _ in pairs]).reshape(len(pairs), *self.spec.input_shape)
        return x, torch.tensor([int(y) for _, y in pairs])

    def batches(
        self, batch_size: int, *, shuffle_seed: int | None = None, workers: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Passes over the examples once.

        Args:
            batch_size: B, examples per batch.
            shuffle_seed: Seed of the order; None keeps the stored order.
            workers: Processes that decode images; data in memory needs none.

        Yields:
            Inputs [B, *input_shape] and labels [B].
        """
        generator = None
        if shuffle_seed is not None:
            generator = torch.Generator().manual_seed(shuffle_seed)
        if isinstance(self.examples, TensorDataset):
            pairs = self._batches_in_memory(batch_size, generator)
        else:
            pairs = DataLoader(
                self.examples,
                batch_size,
                shuffle=generator is not None,
                generator=generator,
                num_workers=workers,
            )
        for x, y in pairs:
            yield x.reshape(len(x), *self.spec.input_shape), y

    def _batches_in_memory(
        self, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Indexing whole batches is far faster than collating single examples.
        if generator is None:
            order = torch.arange(len(self))
        else:
            order = torch.randperm(len(self), generator=generator)
        for rows in order.split(batch_size):
            yield self.examples[rows]


def _show(shape: Shape) -> str:
    return "x".join(map(str, shape))
