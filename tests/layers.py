"""Small networks, one for every layer and operator that is an affine map, and those refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor, nn


class Apply(nn.Module):
    """``function(x, constant)`` between two layers; the constant is a buffer of the given shape."""

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], constant: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", torch.randn(constant))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)


def around(
    layer: nn.Module, shape: tuple[int, ...], *, first: nn.Module | None = None
) -> nn.Module:
    """The layer behind another layer and a ReLU, and before a ReLU and a Linear."""
    if first is None:
        dimensions = len(shape) - 1
        convolutions = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        first = (
            convolutions[dimensions](shape[0], shape[0], 3, padding=1)
            if dimensions
            else nn.Linear(shape[0], shape[0])
        )
    body = nn.Sequential(first, nn.ReLU(), layer).eval()
    size = body(torch.zeros(1, *shape)).numel()
    return nn.Sequential(body, nn.ReLU(), nn.Flatten(), nn.Linear(size, 2))


def _layer(name: str, make: Callable[[], nn.Module], *shape: int) -> Case:
    return Case(name, lambda: around(make(), shape), shape)


def _apply(
    name: str,
    function: Callable[[Tensor, Tensor], Tensor],
    *shape: int,
    constant: tuple[int, ...] = (),
) -> Case:
    return Case(name, lambda: around(Apply(function, constant), shape), shape)


def _norm(make: Callable[[], nn.Module]) -> nn.Module:
    norm = make()
    with torch.no_grad():
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(-1.5, 1.5)
    return norm


class Branches(nn.Module):
    """Many operands, factors, in-place sums, concatenation; the raw input reaches the end."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.act = nn.ReLU()
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.act(layer(x)) for layer in self.inner]
        y = sum([*parts, x])
        y = torch.add(y, parts[0], alpha=-0.5)
        y += parts[1].clone().mul_(2)
        z = torch.cat([torch.sub(y, x, alpha=2), x.flip(1)], dim=1)
        return self.last(F.relu(z, inplace=True)) + x[:, :2]


class Twice(nn.Module):
    """One layer in two places, and ``x + x``."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.shared(x))
        return y + y


class InPlace(nn.Module):
    """What is read after an in-place change is the changed value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.act(y)
        w = x - y  # y has become relu(y)
        w.add_(1)
        w *= 2
        return z - 3 * y + w


class ShapeBranch(nn.Module):
    """Python code that asks for shapes, which only torch.export can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding="same")
        self.norm = _norm(lambda: nn.BatchNorm2d(2))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 4 or len(x.shape) != 4:
            raise ValueError("expected 4x4")
        y = torch.relu(self.norm(self.conv(x)))
        y = F.dropout(F.avg_pool2d(y, 2), 0.5, self.training)
        return self.last(torch.cat(torch.chunk(y, 2, dim=1), 1).flatten(1)) / 2 - 1


class Numbers(nn.Module):
    """Activations of single numbers, which have no dimension but the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        parts = [torch.relu(y[:, 0]), F.relu(y[:, 1] - y[:, 2]), y[:, 3].relu(), x[:, 0]]
        return self.last(torch.stack(parts, 1))


LAYERS = [
    _layer("conv1d_groups", lambda: nn.Conv1d(2, 4, 2, 2, 1, groups=2), 2, 5),
    _layer(
        "conv2d_same_even", lambda: nn.Conv2d(1, 2, (2, 3), padding="same", dilation=1), 1, 4, 4
    ),
    _layer("conv2d_reflect", lambda: nn.Conv2d(1, 2, 3, 2, 1, padding_mode="reflect"), 1, 4, 4),
    _layer(
        "conv2d_circular", lambda: nn.Conv2d(1, 2, 3, 1, 2, 2, padding_mode="circular"), 1, 4, 4
    ),
    _layer("conv1d_replicate", lambda: nn.Conv1d(1, 2, 3, 1, 1, padding_mode="replicate"), 1, 6),
    _layer("conv3d", lambda: nn.Conv3d(1, 2, 2, (1, 2, 1), 1), 1, 2, 3, 2),
    _layer("transposed_1d", lambda: nn.ConvTranspose1d(2, 2, 3, 2, 1, 1, groups=2), 2, 4),
    _layer("transposed_2d", lambda: nn.ConvTranspose2d(1, 2, 3, 2, 1, 1, dilation=2), 1, 3, 3),
    _layer("transposed_2d_padded", lambda: nn.ConvTranspose2d(2, 1, 3, 3, (0, 1), (2, 1)), 2, 3, 2),
    _layer("transposed_3d", lambda: nn.ConvTranspose3d(1, 1, 2, 2), 1, 2, 2, 2),
    _layer("batch_norm_1d", lambda: _norm(lambda: nn.BatchNorm1d(4)), 4),
    _layer("batch_norm_3d", lambda: _norm(lambda: nn.BatchNorm3d(2)), 2, 2, 2, 2),
    _layer(
        "instance_norm",
        lambda: _norm(lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
        *(2, 3, 3),
    ),
    _layer("avg_pool_1d", lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True), 2, 6),
    _layer(
        "avg_pool_2d",
        lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        *(1, 4, 4),
    ),
    _layer("avg_pool_2d_divisor", lambda: nn.AvgPool2d(2, divisor_override=3), 1, 4, 4),
    _layer("avg_pool_3d", lambda: nn.AvgPool3d(2, 1), 1, 2, 3, 2),
    _layer("adaptive_avg_pool", lambda: nn.AdaptiveAvgPool2d((2, 3)), 1, 5, 4),
    _layer(
        "max_pool_of_one",
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(2, 2, 1)),
        *(2, 3, 3),
    ),
    _layer("constant_pad", lambda: nn.ConstantPad2d((1, 2, 0, 1), 0.7), 1, 3, 3),
    _layer("reflection_pad", lambda: nn.ReflectionPad1d((2, 1)), 2, 4),
    _layer("replication_pad", lambda: nn.ReplicationPad2d((1, 0, 2, 1)), 1, 3, 3),
    _layer("circular_pad", lambda: nn.CircularPad2d(1), 1, 3, 3),
    _layer("crop", lambda: nn.ZeroPad2d((-1, 1, 0, -1)), 1, 3, 3),
    _layer("nearest", lambda: nn.Upsample(scale_factor=2), 1, 3, 3),
    _layer("bilinear", lambda: nn.Upsample((5, 7), mode="bilinear", align_corners=True), 1, 3, 4),
    _layer("bicubic", lambda: nn.Upsample((5, 3), mode="bicubic"), 2, 3, 4),
    _layer("trilinear", lambda: nn.Upsample(scale_factor=1.5, mode="trilinear"), 1, 2, 2, 2),
    _layer("pixel_shuffle", lambda: nn.PixelShuffle(2), 4, 2, 2),
    _layer("pixel_unshuffle", lambda: nn.PixelUnshuffle(2), 1, 4, 4),
    _layer("channel_shuffle", lambda: nn.ChannelShuffle(2), 4, 2, 2),
    _layer("unfold", lambda: nn.Unfold(2), 1, 3, 3),
    _layer("fold", lambda: nn.Sequential(nn.Unfold(2), nn.Fold((3, 3), 2)), 1, 3, 3),
    _layer("unflatten", lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 1, 2)), 6),
    _apply(
        "functional_conv",
        lambda x, c: F.conv2d(x, c * 2, c[:, 0, 0, 0], (2, 1), padding=1, dilation=1),
        *(1, 4, 4),
        constant=(2, 1, 3, 2),
    ),
    _apply(
        "functional_transposed",
        lambda x, c: F.conv_transpose1d(x, c, stride=2, padding=1, output_padding=1),
        *(2, 3),
        constant=(2, 2, 3),
    ),
    _apply(
        "functional_batch_norm",
        lambda x, c: F.batch_norm(x, c, c.abs() + 0.5, weight=-c, bias=c),
        *(2, 3),
        constant=(2,),
    ),
    _apply("functional_pad", lambda x, c: F.pad(x, (1, 0, 2, 1), value=-0.3), 1, 3, 3),
    _apply(
        "interpolate",
        lambda x, c: F.interpolate(x, scale_factor=1.7, mode="bicubic", align_corners=True),
        *(1, 3, 3),
    ),
    _apply("mean", lambda x, c: x.mean(dim=(2, 3)), 2, 3, 2),
    _apply("sum", lambda x, c: torch.sum(x, -1, keepdim=True), 2, 3, 2),
    _apply("matrix", lambda x, c: x @ c, 2, 3, constant=(3, 4)),
    _apply("matrix_from_left", lambda x, c: torch.matmul(c, x), 2, 3, constant=(3, 2)),
    _apply("vector", lambda x, c: x.matmul(c), 2, 3, constant=(3,)),
    _apply("einsum", lambda x, c: torch.einsum("bij,kj->bki", x, c), 2, 3, constant=(2, 3)),
    _apply("linear", lambda x, c: F.linear(x, c), 2, 3, constant=(2, 3)),
    _apply("addmm", lambda x, c: torch.addmm(c[0], x, c, alpha=-2, beta=0.5), 3, constant=(3, 3)),
    _apply(
        "transposes",
        lambda x, c: (
            x.permute(0, 2, 3, 1).transpose(1, 2).movedim(1, 2).contiguous().view(-1, 4, 3)
        ),
        *(2, 2, 3),
    ),
    _apply(
        "slices",
        lambda x, c: torch.cat([x[:, :, ::2].flatten(1), x[..., -1], x[:, [1, 0, 1], 0]], 1),
        *(2, 4),
    ),
    _apply(
        "selections",
        lambda x, c: torch.stack(
            [x.select(2, 1), x.narrow(2, 1, 1)[:, :, 0], x.index_select(2, c.long().abs())[..., 0]],
            dim=2,
        ),
        *(2, 3),
        constant=(1,),
    ),
    _apply(
        "splits",
        lambda x, c: x.chunk(4, 1)[2] - x.split([2, 2], dim=1)[0][:, :1] + x.unbind(1)[0][:, None],
        *(4, 3),
    ),
    _apply("roll", lambda x, c: torch.roll(x.flip((1, 2)), 1, 2).repeat(1, 1, 2), 2, 3),
    _apply("constants_in", lambda x, c: torch.cat([x, x.new_ones(x.size(0), 1, 3)], 1), 2, 3),
    _apply(
        "where", lambda x, c: torch.where(c > 0, x, 2.0).masked_fill(c > 1, 0.1), 4, constant=(4,)
    ),
    _apply("broadcast", lambda x, c: x.mean(2, keepdim=True) - x + c, 2, 3, constant=(2, 1)),
    _apply("grow", lambda x, c: (x[:, :, :1] * c).expand(-1, 2, 4) / 3, 2, 3, constant=(1, 4)),
    Case("branches", Branches, (4,)),
    Case("twice", Twice, (3,)),
    Case("numbers", Numbers, (3,)),
    Case("in_place", InPlace, (3,)),
    Case("shape_branch", ShapeBranch, (1, 4, 4)),
    Case("one_output", lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(), Apply(_total, ())), (3,)),
]


def _total(x: Tensor, constant: Tensor) -> Tensor:
    return x.sum(1)
