"""Which layers are affine maps, and which are refused for what reason.

A rule gets the call and the module; it answers with maps applied to the call's branch and raises
NotImplementedError with the reason if it cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from lipschitz.network.affine.base import Applied, Branch, Value
from lipschitz.network.affine.calls import Call, positive, reshaped
from lipschitz.network.affine.functions import convolution, resized, scale_per_channel, transposed
from lipschitz.network.affine.maps import Linear, Positive

ModuleRule = Callable[[Call, nn.Module], Value]


def _branch(call: Call) -> Branch:
    return call.branches[0]


def _linear(call: Call, module: nn.Linear) -> Value:
    branch = _branch(call)
    return Applied(Linear(module.weight, module.bias, branch.shape), (branch,))


def _convolution(call: Call, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Value:
    value: Value = _branch(call)
    padding = module.padding
    if module.padding_mode != "zeros":
        padding = 0
        pads, mode = module._reversed_padding_repeated_twice, module.padding_mode
        padded = F.pad(torch.empty(1, *value.shape, device="meta"), pads, mode=mode).shape[1:]
        value = Applied(
            Positive(lambda x: F.pad(x, pads, mode=mode), [value.shape], padded), (value,)
        )
    return convolution(
        call,
        value,
        module.weight,
        module.bias,
        module.stride,
        padding,
        module.dilation,
        module.groups,
    )


def _transposed(
    call: Call, module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
) -> Value:
    return transposed(
        call,
        _branch(call),
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )


def _norm(call: Call, module: nn.modules.batchnorm._NormBase) -> Value:
    if module.running_mean is None or module.running_var is None:
        raise NotImplementedError(
            "it keeps no running statistics, so its mean and variance depend on the input and it "
            "is not affine; use track_running_stats=True"
        )
    return scale_per_channel(
        _branch(call),
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        module.eps,
    )


def _positive(call: Call, module: nn.Module) -> Value:
    return positive(call)


def _reshape(call: Call, module: nn.Module) -> Value:
    return reshaped(_branch(call), call.shape)


def _upsample(call: Call, module: nn.Upsample) -> Value:
    return resized(call, module.mode)


MODULE_RULES: dict[type[nn.Module], ModuleRule] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _norm),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), _reshape),
    nn.Upsample: _upsample,
    **dict.fromkeys(
        (
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.AvgPool3d,
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
            nn.ConstantPad1d,
            nn.ConstantPad2d,
            nn.ConstantPad3d,
            nn.ZeroPad1d,
            nn.ZeroPad2d,
            nn.ZeroPad3d,
            nn.ReflectionPad1d,
            nn.ReflectionPad2d,
            nn.ReflectionPad3d,
            nn.ReplicationPad1d,
            nn.ReplicationPad2d,
            nn.ReplicationPad3d,
            nn.CircularPad1d,
            nn.CircularPad2d,
            nn.CircularPad3d,
            nn.UpsamplingNearest2d,
            nn.UpsamplingBilinear2d,
            nn.PixelShuffle,
            nn.PixelUnshuffle,
            nn.ChannelShuffle,
            nn.Fold,
            nn.Unfold,
        ),
        _positive,
    ),
}

# Modules that pass their input on unchanged in eval mode.
IDENTITY_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)

# Reasons, for layers that are often asked for.
REFUSED_MODULES: dict[type[nn.Module], str] = {
    nn.Embedding: "its input is an index, which has no neighbourhood",
}
