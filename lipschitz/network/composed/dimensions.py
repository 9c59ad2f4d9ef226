"""Dimensions as a call names them, and without the batch."""

from __future__ import annotations

from collections.abc import Sequence

from lipschitz.network.affine import Branch


def inner(x: Branch, dim: int) -> int:
    """A dimension without the batch.

    Raises:
        NotImplementedError: It is the batch.
    """
    count = x.rank
    if not -count <= dim < count or (dim % count == 0 and not x.whole):
        raise NotImplementedError("it mixes the examples of a batch")
    return dim % count - (not x.whole)


def inner_dims(x: Branch, dims: int | Sequence[int] | None) -> list[int]:
    """Dimensions without the batch.

    Raises:
        NotImplementedError: The batch is one of them.
    """
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        if x.whole:
            return list(range(len(x.shape)))
        raise NotImplementedError("without dimensions it mixes the examples of a batch")
    return [inner(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)]
