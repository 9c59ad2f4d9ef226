"""Contractions of several values that depend on the input, as one product of expanded operands."""

from __future__ import annotations

import string
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

    Unless it is of one example alone, the first letter of every such operand, and of the result,
    is the batch.

    Raises:
        NotImplementedError: Another batch, or too many products.
    """
    if not isinstance(equation, str):
        raise NotImplementedError("only equations as a text are covered")
    inputs, result = _letters(equation, [_rank(operand) for operand in operands])
    if not call.whole:
        batch, result = result[:1], result[1:]
        inputs = [_without(batch, letters, x) for letters, x in zip(inputs, operands, strict=True)]
    pairs = [_diagonal(write, *pair) for pair in zip(inputs, operands, strict=True)]
    inputs, operands = [pair[0] for pair in pairs], tuple(pair[1] for pair in pairs)
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs, operands, strict=True):
        for letter, size in zip(letters, operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    kept = result
    order = kept + "".join(letter for letter in sizes if letter not in kept)
    shape = torch.Size([sizes[letter] for letter in order])
    if shape.numel() > _LARGEST:
        raise NotImplementedError(f"it has {shape.numel()} products, of at most {_LARGEST}")
    total, factor = None, None
    for letters, operand in zip(inputs, operands, strict=True):
        if isinstance(operand, Branch):
            spread = _spread(write, operand, letters, order, shape)
            total = spread if total is None else write.product(total, spread)
        else:
            constant = _spread_constant(operand, letters, order)
            factor = constant if factor is None else factor * constant
    if factor is not None:
        total = write.scale(total, factor)
    summed = list(range(len(kept), len(order)))
    return write.sum(total, summed, keep=False) if summed else total


def _rank(operand: Any) -> int:
    return operand.rank if isinstance(operand, Branch) else operand.dim()


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with letters for what ``...`` stands for."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    counts = [
        rank - len(letters.replace("...", "")) if "..." in letters else 0
        for letters, rank in zip(inputs, ranks, strict=True)
    ]
    dots = "".join(spare[: max(counts)])
    inputs = [
        letters.replace("...", dots[len(dots) - count :])
        for letters, count in zip(inputs, counts, strict=True)
    ]
    if not arrow:
        every = "".join(inputs)
        single = sorted(c for c in set(every) if every.count(c) == 1 and c not in dots)
        return inputs, dots + "".join(single)
    return inputs, result.replace("...", dots)


def _without(batch: str, letters: str, operand: Any) -> str:
    """The letters of an operand without the batch.

    Raises:
        NotImplementedError: It is not the first, or a constant has it.
    """
    if not isinstance(operand, Branch):
        if batch in letters:
            raise NotImplementedError("its constant has a batch dimension")
        return letters
    if letters[:1] != batch or batch in letters[1:]:
        raise NotImplementedError("it does not keep the batch dimension first")
    return letters[1:]


def _diagonal(write: Writer, letters: str, operand: Any) -> tuple[str, Any]:
    """An operand of which no letter occurs twice: of two such dimensions, the diagonal."""
    while len(set(letters)) != len(letters):
        letter = next(c for c in letters if letters.count(c) > 1)
        first = letters.index(letter)
        second = letters.index(letter, first + 1)
        letters = "".join(c for i, c in enumerate(letters) if i not in (first, second)) + letter
        if not isinstance(operand, Branch):
            operand = operand.diagonal(dim1=first, dim2=second)
            continue
        sizes = [size for i, size in enumerate(operand.shape) if i not in (first, second)]
        ends = {"dim1": first + 1, "dim2": second + 1}
        shape = [*sizes, operand.shape[first]]
        operand = write.moved(lambda t, ends=ends: t.diagonal(**ends), shape, operand)
    return letters, operand


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
