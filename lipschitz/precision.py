"""What floating-point hardware must not do behind a bound's back."""

from __future__ import annotations

import torch


def disable_tf32() -> None:
    """Makes float32 products on GPUs use float32; TF32's 10-bit mantissa would spoil a bound."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
