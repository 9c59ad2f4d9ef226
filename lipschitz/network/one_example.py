"""Networks whose code does not keep the batch first, followed on one example at a time.

A layer with ``batch_first=False``, or the steps of ``nn.MultiheadAttention`` as torch.export and
ONNX write them, move the batch inside, and merge it with heads or positions. On a batch of one
example all of that is the example's own shape: every value is a node of the shape that the code
sees, whichever of its dimensions of size 1 was the batch. Calls with a dimension of 1 in front go
by the rules of batches; the others by rules of one example (:attr:`Branch.whole`).

Nothing is believed here: the graph is compared with the network on several examples at once, so a
network that mixes them is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from lipschitz.network import affine
from lipschitz.network.affine import Branch, Reshape
from lipschitz.network.affine.layout import Permute
from lipschitz.network.building import Builder
from lipschitz.network.composed import Extreme, is_recurrent

_PERMUTATIONS = "permute transpose swapaxes swapdims movedim moveaxis mT t adjoint"
_REORDERS = frozenset(_PERMUTATIONS.split())
# Sizes that tell dimensions apart.
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


class OneExampleBuilder(Builder):
    """Walks a trace of a batch of one example.

    Args:
        traced: The network.
        sample: One input, [1, *input_shape].
    """

    def __init__(self, traced: fx.GraphModule, sample: Tensor) -> None:
        super().__init__(traced, sample)
        self._whole: dict[int, Branch] = {}

    def _input(self, first: Branch) -> Branch:
        return self._with_batch(first)

    def _with_batch(self, branch: Branch) -> Branch:
        """A branch whose batch comes first, as the code sees it: [1, *shape]."""
        if branch.index not in self._whole:
            shape = torch.Size([1, *branch.shape])
            name = f"{self.nodes[branch.index].name}.one"
            found = self.add_value(name, affine.reshaped(branch, shape))
            self._whole[branch.index] = replace(found, whole=True)
        return self._whole[branch.index]

    def _without_batch(self, branch: Branch) -> Branch:
        """The reverse, of a branch whose first dimension is 1."""
        node = self.nodes[branch.index]
        shape = torch.Size(branch.shape[1:])
        if isinstance(node.affine, Reshape) and self.nodes[node.parents[0]].shape == shape:
            return Branch(node.parents[0], shape)
        return self.add_value(
            f"{node.name}.batch", affine.reshaped(replace(branch, whole=False), shape)
        )

    def _concrete(self, argument: Any) -> Any:
        if isinstance(argument, Branch) and argument.whole:
            return self.samples[argument.index][0]
        return super()._concrete(argument)

    def _output(self, result: Any) -> Branch:
        if isinstance(result, (tuple, list)) and len(result) == 1:
            result = result[0]
        if isinstance(result, Branch):
            result = replace(result, whole=False)
            value = self.samples[result.index].reshape(1, -1)
            flat = Reshape(result.shape, value.shape[1:])
            return self.add("output", (result.index,), value, affine=flat)
        return super()._output(result)

    def _ruled(
        self, node: fx.Node, names: tuple[str, ...], args: tuple, kwargs: dict, result: Any
    ) -> Any:
        if not self._is_recurrent(node, names) and _leads((args, kwargs), result):
            first, second = (_replaced(part, self._without_batch) for part in (args, kwargs))
            try:
                found = super()._ruled(node, names, first, second, result)
                return _replaced(found, self._with_batch)
            except NotImplementedError:  # the dimension in front may not be the batch
                pass
        order = self._order(node, names, args, kwargs)
        if order is not None:
            found = self.add_value(
                node.name, affine.Applied(Permute(order, args[0].shape), args[:1])
            )
        else:
            found = super()._ruled(node, names, args, kwargs, result)
        return _replaced(found, lambda branch: replace(branch, whole=True))

    def _is_recurrent(self, node: fx.Node, names: tuple[str, ...]) -> bool:
        """Whether it is a recurrent layer, whose states have no batch in front."""
        return is_recurrent(self.modules[node.target] if node.op == "call_module" else names)

    def _order(
        self, node: fx.Node, names: tuple[str, ...], args: tuple, kwargs: dict
    ) -> list[int] | None:
        """The order of dimensions that a call puts them in, if that is all it does."""
        if not (_REORDERS.intersection(names) and isinstance(args[0], Branch)):
            return None
        sizes = _PRIMES[: len(args[0].shape)]
        if len(sizes) < len(args[0].shape):
            return None
        probe = torch.empty(sizes, device="meta")
        return [sizes.index(size) for size in self._run(node, (probe, *args[1:]), kwargs).shape]


def _leads(arguments: Any, result: Any) -> bool:
    """Whether every branch and every result has a dimension of 1 in front."""
    results = result if isinstance(result, (tuple, list)) else [result]
    tensors = [part for part in results if isinstance(part, Tensor)]
    shapes = [b.shape for b in affine.branches_of(arguments)] + [part.shape for part in tensors]
    return bool(tensors) and all(tuple(shape[:1]) == (1,) for shape in shapes)


def _replaced(argument: Any, change: Callable[[Branch], Branch]) -> Any:
    """An argument or answer with every branch changed."""
    if isinstance(argument, Branch):
        return change(argument)
    if isinstance(argument, dict):
        return {key: _replaced(value, change) for key, value in argument.items()}
    if isinstance(argument, Extreme):
        return Extreme(*(_replaced(value, change) for value in argument))
    if isinstance(argument, (tuple, list)) and not isinstance(argument, torch.Size):
        return type(argument)([_replaced(value, change) for value in argument])
    return argument
