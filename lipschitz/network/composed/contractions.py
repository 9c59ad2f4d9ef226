"""Contractions of several values that depend on the input, as one product of expanded operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lipschitz.network.affine import Branch, Call
from lipschitz.network.composed.writer import Writer

# Largest number of products of one contraction, for each example. A choice: some hundreds of
# megabytes for the rows of a bound.
_LARGEST = 2**24


def einsum(write: Writer, call: Call, equation: Any, operands: tuple[Any, ...]) -> Branch:
    """``torch.einsum`` with at least two operands that depend on the input.

    The first letter of every such operand, and of the result, is the batch.

    Raises:
        NotImplementedError: An ellipsis, a letter twice in one operand, or another batch.
    """
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise NotImplementedError("only equations with '->' and without '...' are covered")
    left, result = equation.replace(" ", "").split("->")
    inputs = left.split(",")
    batch = result[:1]
    for letters, operand in zip(inputs, operands, strict=True):
        if len(set(letters)) != len(letters):
            raise NotImplementedError("a letter occurs twice in one operand")
        if isinstance(operand, Branch) and letters[:1] != batch:
            raise NotImplementedError("it does not keep the batch dimension first")
        if not isinstance(operand, Branch) and batch in letters:
            raise NotImplementedError("its constant has a batch dimension")
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs, operands, strict=True):
        own = letters[1:] if isinstance(operand, Branch) else letters
        for letter, size in zip(own, operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    kept = result[1:]
    order = kept + "".join(letter for letter in sizes if letter not in kept)
    shape = torch.Size([sizes[letter] for letter in order])
    if shape.numel() > _LARGEST:
        raise NotImplementedError(f"it has {shape.numel()} products, of at most {_LARGEST}")
    total, factor = None, None
    for letters, operand in zip(inputs, operands, strict=True):
        if isinstance(operand, Branch):
            spread = _spread(write, operand, letters[1:], order, shape)
            total = spread if total is None else write.product(total, spread)
        else:
            constant = _spread_constant(operand, letters, order)
            factor = constant if factor is None else factor * constant
    if factor is not None:
        total = write.scale(total, factor)
    summed = list(range(len(kept), len(order)))
    return write.sum(total, summed, keep=False) if summed else total


def _spread(write: Writer, x: Branch, letters: str, order: str, shape: torch.Size) -> Branch:
    present = [letter for letter in order if letter in letters]
    x = write.permute(x, [letters.index(letter) for letter in present])
    sizes = dict(zip(present, x.shape, strict=True))
    return write.expand(write.reshape(x, [sizes.get(letter, 1) for letter in order]), shape)


def _spread_constant(constant: Tensor, letters: str, order: str) -> Tensor:
    present = [letter for letter in order if letter in letters]
    constant = constant.permute([letters.index(letter) for letter in present])
    sizes = dict(zip(present, constant.shape, strict=True))
    return constant.reshape([sizes.get(letter, 1) for letter in order])
