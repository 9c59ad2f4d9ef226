"""No TF32 in a bound."""

import torch

from lipschitz.precision import disable_tf32


def test_disable_tf32_clears_both_flags():
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    disable_tf32()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
