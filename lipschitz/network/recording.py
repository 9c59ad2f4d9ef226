"""The nodes of a graph as they are added, each with its value on a sample of inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lipschitz.network import affine
from lipschitz.network.activations import Activation, PiecewiseLinear
from lipschitz.network.affine import Applied, Branch, Value
from lipschitz.network.affine.layout import Centre
from lipschitz.network.composed.norms import mark_normalised
from lipschitz.network.composed.softmax import softmax
from lipschitz.network.composed.writer import Writer
from lipschitz.network.graph import Node
from lipschitz.network.pooled import Level, Pooled, largest_of, ordered
from lipschitz.network.pooling import LARGEST_WINDOW, comparisons
from lipschitz.network.ranges import Rising
from lipschitz.network.scalar_forms import Fold, Forms
from lipschitz.network.written_out import norm_of, softmax_of


class Recording:
    """Nodes in topological order.

    Args:
        sample: A batch of inputs, [B, *input_shape].

    Attributes:
        sample_input: The same.
        nodes: So far.
        samples: The value of each on the sample.
    """

    def __init__(self, sample: Tensor) -> None:
        self.sample_input = sample
        self.nodes: list[Node] = []
        self.samples: list[Tensor] = []
        self.forms = Forms(self.nodes, sample.dtype)

    def sample(self, branch: Branch) -> Tensor:
        """The value of a branch on the sample, [batch, *shape]."""
        return self.samples[branch.index]

    def live_nodes(self) -> list[Node]:
        """The nodes that the output depends on, and the input, under new indices."""
        live = {0, len(self.nodes) - 1}
        for index in range(len(self.nodes) - 1, 0, -1):
            if index in live:
                live.update(self.nodes[index].parents)
        place = {old: new for new, old in enumerate(sorted(live))}
        return [self.nodes[old].renumbered(place.__getitem__) for old in place]

    def mark(self, branch: Branch, **known: object) -> None:
        """Note what is known besides of a node that has just been recorded."""
        self.nodes[branch.index] = replace(self.nodes[branch.index], **known)

    def add(
        self, name: str, parents: tuple[int, ...], value: Tensor, **operation: object
    ) -> Branch:
        if value.dim() < 1 or value.shape[0] != self.sample_input.shape[0]:
            raise NotImplementedError(
                f"{name!r} does not keep the batch dimension first (it gives shape "
                f"{tuple(value.shape)} for a batch of {self.sample_input.shape[0]})"
            )
        if value.dtype != self.sample_input.dtype:
            raise NotImplementedError(f"{name!r} changes the precision to {value.dtype}")
        self.nodes.append(Node(name, parents, value.shape[1:], **operation))
        self.samples.append(value)
        return Branch(len(self.nodes) - 1, value.shape[1:])

    def add_value(self, name: str, value: Value, result: Tensor | None = None) -> Branch:
        """Record the maps of a rule's answer; ``result`` is the sample's value, where known."""
        value = self._centred(value)
        if isinstance(value, Branch):
            if result is not None:  # the same numbers, but perhaps contiguous now
                self.samples[value.index] = result
            return value
        parents = [self.add_value(f"{name}_{i}", v) for i, v in enumerate(value.inputs)]
        operation = _detached(value.map).to(self.sample_input.device, self.sample_input.dtype)
        if result is None:
            with torch.no_grad():
                result = operation.forward(*[self.samples[p.index] for p in parents])
        return self.add(name, tuple(p.index for p in parents), result, affine=operation)

    def add_function(
        self, name: str, parent: Branch, function: Activation, result: Tensor | None = None
    ) -> Branch:
        """Record a unary function; ``result`` is the sample's value, where known."""
        fold = self.forms.function(parent.index, function)
        if fold is not None:
            return self._folded(name, fold, result)
        return self._add_function(name, parent, function, result)

    def _add_function(
        self, name: str, parent: Branch, function: Activation, result: Tensor | None = None
    ) -> Branch:
        function = function.to(self.sample_input.device, self.sample_input.dtype)
        if not parent.shape:  # one number per example: everything else reads neurons as a vector
            vector = affine.reshaped(parent, torch.Size([1]))
            parent = self.add_value(f"{name}.vector", vector)
            result = None if result is None else result.unsqueeze(1)
            number = self._add_function(name, parent, function, result)
            return self.add_value(f"{name}.number", affine.reshaped(number, torch.Size()))
        if result is None:
            with torch.no_grad():
                result = function.forward(self.sample(parent))
        return self.add(name, (parent.index,), result, activation=function)

    def add_product(self, name: str, first: Branch, second: Branch) -> Branch:
        """Record the product of two values of one shape, or the one function that it is."""
        fold = self.forms.product(first.index, second.index)
        if fold is not None:
            return self._folded(name, fold)
        logits = softmax_of(self.nodes, first.index, second.index)
        if logits is not None:
            branch = Branch(logits[0], self.nodes[logits[0]].shape)
            return softmax(Writer(self, name), branch, logits[1])
        value = self.sample(first) * self.sample(second)
        product = self.add(name, (first.index, second.index), value, is_product=True)
        norm = norm_of(self.nodes, first.index, second.index)
        if norm is not None:
            mark_normalised(self, product, *norm)
        return product

    def _folded(self, name: str, fold: Fold, result: Tensor | None = None) -> Branch:
        """Record a function of a multiple of a value, times a number, plus a number."""
        branch = Branch(fold.root, self.nodes[fold.root].shape)
        inner = self._line(f"{name}.of", branch, fold.factor, fold.shift)
        plain = fold.scale == 1 and fold.offset == 0
        value = self._add_function(name, inner, fold.function, result if plain else None)
        return self._line(f"{name}.scaled", value, fold.scale, fold.offset)

    def _line(self, name: str, x: Branch, factor: float, shift: float) -> Branch:
        if factor == 1 and shift == 0:
            return x
        numbers = [torch.tensor(number, dtype=torch.float64) for number in (factor, shift)]
        scale = affine.Scale(numbers[0], numbers[1] if shift else None, x.shape)
        return self.add_value(name, Applied(scale, (x,)))

    def _centred(self, value: Value) -> Value:
        """A value minus its own mean as one map, whose coefficients are smaller."""
        if isinstance(value, Branch) or not isinstance(value.map, affine.Combination):
            return value
        if value.map.signs != (1, -1) or not isinstance(value.inputs[0], Branch):
            return value
        x, mean = value.inputs
        if isinstance(mean, Applied) and isinstance(mean.inputs[0], Branch):
            mean = mean.inputs[0] if len(mean.inputs) == 1 else mean
        if not isinstance(mean, Branch) or len(mean.shape) != len(x.shape):
            return value
        node = self.nodes[mean.index]
        dims = None if node.affine is None else node.affine.averaged
        if dims is None or node.parents != (x.index,):
            return value
        return Applied(Centre(dims, x.shape), (x,))

    def maximum(self, name: str, parent: Branch, windows: Tensor, shape: torch.Size) -> Branch:
        """The largest entry of every window, see :mod:`lipschitz.network.pooling`.

        Args:
            name: For messages.
            parent: The value.
            windows: Flat positions in it, [windows, entries]; -1 for padding.
            shape: Of the result, without the batch dimension.
        """
        before = self.nodes[parent.index]
        reshaped = isinstance(before.affine, affine.Reshape)
        if reshaped:  # a rising function may stand before it
            before = self.nodes[before.parents[0]]
        if not _rises(before.activation):
            return self._maximum(name, parent, windows, shape)
        # A rising function of the largest entry is the largest of all its values.
        inner = Branch(before.parents[0], self.nodes[before.parents[0]].shape)
        if reshaped:
            inner = self.add_value(f"{name}.entries", affine.reshaped(inner, parent.shape))
        maximum = self._maximum(f"{name}.of", inner, windows, shape)
        return self.add_function(name, maximum, before.activation)

    def _maximum(self, name: str, parent: Branch, windows: Tensor, shape: torch.Size) -> Branch:
        windows = ordered(windows)
        if windows.shape[1] > LARGEST_WINDOW:
            blocks = -(-windows.shape[1] // LARGEST_WINDOW)
            rest = blocks * LARGEST_WINDOW - windows.shape[1]
            parts = F.pad(windows, (0, rest), value=-1).unflatten(1, (blocks, LARGEST_WINDOW))
            present = parts[..., 0] >= 0
            count = torch.Size([int(present.sum())])
            parent = self._maximum(f"{name}.part", parent, parts[present], count)
            position = torch.cumsum(present.flatten(), 0).reshape(present.shape) - 1
            return self._maximum(name, parent, torch.where(present, position, -1), shape)
        current, relu = parent, PiecewiseLinear()
        device, dtype = self.sample_input.device, self.sample_input.dtype
        tree: list[Level] = []
        for level in comparisons(windows, parent.shape, shape):
            x = self.samples[current.index]
            chosen = level.chosen.to(device, dtype)
            kept = chosen.linear(x)
            base = self.add(f"{name}.keep", (current.index,), kept, affine=chosen)
            if not level.difference.output_shape.numel():  # windows of one entry
                return self.add_value(name, affine.reshaped(base, shape))
            difference, placed = (p.to(device, dtype) for p in (level.difference, level.placed))
            excess = difference.linear(x)
            compared = self.add(f"{name}.compare", (current.index,), excess, affine=difference)
            excess = relu.forward(excess)
            positive = self.add(f"{name}.relu", (compared.index,), excess, activation=relu)
            excess = placed.linear(excess)
            gain = self.add(f"{name}.place", (positive.index,), excess, affine=placed)
            both = affine.Combination((1, 1), kept.shape[1:])
            known = Rising((parent.index,), largest_of(level.entries.to(device), kept.shape[1:]))
            total = kept + excess
            current = self.add(name, (base.index, gain.index), total, affine=both, range=known)
            tree.append(Level(positive.index, level.pairs.to(device)))
        self.mark(current, pooled=Pooled(parent.index, windows.to(device), tuple(tree)))
        return current


def _rises(activation: Activation | None) -> bool:
    """Whether an activation is one function of all entries, defined everywhere, and never falls."""
    if activation is None or activation.needs or activation.slope_range[0] < 0:
        return False
    return all(isinstance(value, (bool, int, float, str)) for value in vars(activation).values())


def _detached(operation: affine.AffineMap) -> affine.AffineMap:
    """Weights as plain tensors: no bound needs gradients with respect to them."""
    for name, value in vars(operation).items():
        if isinstance(value, Tensor):
            setattr(operation, name, value.detach().clone())
    return operation
