"""Slow and simple truths that the tool is compared with; none of its bounding code is used."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobian by autograd at one point [*shape]: [C, *shape]."""
    return torch.autograd.functional.jacobian(lambda p: model(p[None])[0], x)


def dense_matrix(linear, input_shape: tuple[int, ...], dtype=torch.float64) -> Tensor:
    """Matrix of a linear function of one input: [outputs, inputs]."""
    size = torch.Size(input_shape).numel()
    basis = torch.eye(size, dtype=dtype).reshape(size, *input_shape)
    return linear(basis).reshape(size, -1).T


def points_in_box(lower: Tensor, upper: Tensor, count: int, seed: int = 0) -> Tensor:
    """Random points and random corners of a box, [2 count + 1, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    fractions = torch.rand(count, *lower.shape, generator=generator, dtype=torch.float64)
    fractions = torch.cat([fractions, fractions.round(), torch.full_like(fractions[:1], 0.5)])
    return (lower + fractions.to(lower) * (upper - lower)).clamp(lower, upper)


def jacobians(model: nn.Module, points: Tensor) -> Tensor:
    """Jacobians by autograd at many points [P, *shape]: [P, C, *shape]."""
    x = points.clone().requires_grad_()
    outputs = model(x)
    rows = []
    for c in range(outputs.shape[1]):
        (row,) = torch.autograd.grad(
            outputs[:, c].sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(row)
    return torch.stack(rows, dim=1)


def network_at_its_kinks(seed: int) -> tuple[nn.Module, Tensor]:
    """Three hidden layers of large weights and a point at which every deeper neuron is near 0."""
    torch.manual_seed(seed)
    sizes = (2, 4, 4, 4, 1)
    model = nn.Sequential()
    x = torch.rand(2, dtype=torch.float64)
    value = x
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs).double()
        with torch.no_grad():
            layer.weight.mul_(100)
            if i > 0:
                layer.bias.copy_(-(layer.weight @ value))
            value = torch.relu(layer(value))
        model.append(layer)
        if i < len(sizes) - 2:
            model.append(nn.ReLU())
    return model.eval(), x


def exact_preactivations(model: nn.Module, x: Tensor) -> list[list[Fraction]]:
    """Pre-activations at a point in rational arithmetic, layer by layer."""
    values, found = [Fraction(v) for v in x.tolist()], []
    for layer in model:
        if isinstance(layer, nn.Linear):
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            ]
            found.append(values)
        else:
            values = [max(v, Fraction(0)) for v in values]
    return found[:-1]
