"""How many rows fit in memory at once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

# Copies of the widest tensor that one pass holds at its peak: the rows, their positive part, two
# products and the next node's rows. Counted, not measured: a wrong number costs memory or speed.
_COPIES = 6
# Bytes of one chunk on a CPU. Chunks that leave the cache were up to seven times slower (page
# faults of fresh memory); on which network and machine is not on record.
_CPU_CHUNK = 32 * 2**20
# Bytes of one chunk on a GPU, a guess: enough rows to fill it, and not so many that the rows of a
# chunk share no small window (see ``windows``).
_CUDA_CHUNK = 2 * 2**30


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; a guess where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reusable
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system counts its free pages
        return 4 * _CPU_CHUNK


def default_memory_budget(device: torch.device) -> int:
    """Bytes that propagation may use for its rows: a part of what is free on the device."""
    if device.type == "cuda":
        return min(_CUDA_CHUNK, free_memory(device) // 2)
    return min(_CPU_CHUNK, free_memory(device) // 4)


def numbers_at_once(budget: int, itemsize: int, copies: int = _COPIES) -> float:
    """How many numbers a pass's largest tensor may have; see :func:`row_chunks`."""
    return budget / (copies * itemsize)


def row_chunks(
    batch: int, count: int, elements: int, budget: int, itemsize: int, copies: int = _COPIES
) -> Iterator[tuple[slice, slice]]:
    """Cut ``batch x count`` rows into blocks that fit.

    Args:
        batch: B, boxes.
        count: K, rows per box.
        elements: Size of the widest tensor of one row; each row is used with both signs.
        budget: Bytes.
        itemsize: Bytes per number.
        copies: Tensors of that size alive at once.

    Returns:
        (boxes, rows) as slices; together they cover everything once.
    """
    return blocks(batch, count, max(1, budget // (2 * copies * elements * itemsize)))


def blocks(batch: int, count: int, fit: int) -> Iterator[tuple[slice, slice]]:
    """The same where ``fit`` of the rows do; all boxes of a row together where possible."""
    batch_step = min(batch, fit)
    count_step = max(1, min(count, fit // batch_step))
    for b in range(0, batch, batch_step):
        for k in range(0, count, count_step):
            yield slice(b, b + batch_step), slice(k, k + count_step)


def take(tensor: Tensor, boxes: slice) -> Tensor:
    """The boxes of a tensor whose leading dimension is B, or 1 for all of them."""
    return tensor if tensor.shape[0] == 1 else tensor[boxes]
