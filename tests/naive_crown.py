"""Plain CROWN of the Jacobian norm written out entry by entry, on dense matrices."""

from __future__ import annotations

import torch


def naive_bound(weights, biases, small, lower, upper, row):
    """The same relaxation on dense matrices, one entry at a time; returns norm bound and boxes.

    ``weights[k], biases[k]`` is the k-th affine map; (leaky) ReLU with slope ``small`` between.
    """

    def largest(start, coefficients, constant, boxes):
        """Maximum of coefficients . z_start + constant by CROWN through the given boxes."""
        for k in range(start, 0, -1):
            constant = constant + coefficients @ biases[k]
            coefficients = coefficients @ weights[k]
            new = torch.zeros_like(coefficients)
            for j, c in enumerate(coefficients.tolist()):
                low, high = boxes[k - 1][0][j].item(), boxes[k - 1][1][j].item()
                if low >= 0:
                    new[j] = c
                elif high <= 0:
                    new[j] = small * c
                else:
                    chord = (high - small * low) / (high - low)
                    if c > 0:
                        new[j] = c * chord
                        constant = constant + c * (high - chord * high)
                    else:
                        new[j] = c * (1.0 if chord > 0.5 else small)
            coefficients = new
        constant = constant + coefficients @ biases[0]
        coefficients = coefficients @ weights[0]
        ends = torch.where(coefficients > 0, upper, lower)
        return float(constant + coefficients @ ends)

    boxes = []
    interval = (lower, upper)  # of the activations, by interval arithmetic
    for k, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        high = weight.clamp(min=0) @ interval[1] + weight.clamp(max=0) @ interval[0] + bias
        low = weight.clamp(min=0) @ interval[0] + weight.clamp(max=0) @ interval[1] + bias
        interval = tuple(torch.where(z > 0, z, small * z) for z in (low, high))
        low, high = low.clone(), high.clone()
        for j in range(len(bias)):
            if k > 0 and low[j] < 0 < high[j]:
                unit = torch.zeros(len(bias), dtype=bias.dtype)
                unit[j] = 1
                low[j], high[j] = -largest(k, -unit, 0.0, boxes), largest(k, unit, 0.0, boxes)
        boxes.append((low, high))

    def chord_pair(g_low, g_high, s_low, s_high):
        """(lower slope, lower intercept, upper slope, upper intercept) of g * s in g."""
        if s_low == s_high:
            return s_low, 0.0, s_low, 0.0
        ends = [(min(s_low * g, s_high * g), max(s_low * g, s_high * g)) for g in (g_low, g_high)]
        run = g_high - g_low
        if run == 0:
            return 0.0, ends[0][0], 0.0, ends[0][1]
        result = []
        for side in (0, 1):
            slope = (ends[1][side] - ends[0][side]) / run
            result += [slope, ends[0][side] - slope * g_low]
        return tuple(result)

    lines = {}

    def largest_back(start, coefficients):
        """Maximum of coefficients . g_start, g_k the cotangent at the k-th affine map's input."""
        constant = 0.0
        for k in range(start, len(weights)):
            coefficients = weights[k] @ coefficients
            if k == len(weights) - 1:
                return constant + float(coefficients @ row)
            new = torch.zeros_like(coefficients)
            for j, c in enumerate(coefficients.tolist()):
                low_slope, low_const, high_slope, high_const = lines[k][j]
                new[j] = c * (high_slope if c > 0 else low_slope)
                constant += c * (high_const if c > 0 else low_const)
            coefficients = new
        raise AssertionError

    for k in range(len(weights) - 2, -1, -1):  # slopes of z_k meet the cotangent of map k + 1
        lines[k] = []
        for j in range(len(biases[k])):
            unit = torch.zeros(len(biases[k]), dtype=row.dtype)
            unit[j] = 1
            low, high = boxes[k][0][j].item(), boxes[k][1][j].item()
            s_low, s_high = (
                (1.0, 1.0) if low >= 0 else (small, small) if high <= 0 else (small, 1.0)
            )
            g_low, g_high = -largest_back(k + 1, -unit), largest_back(k + 1, unit)
            lines[k].append(chord_pair(g_low, g_high, s_low, s_high))
    coefficients, constant = torch.zeros(len(lower), dtype=row.dtype), 0.0
    for i in range(len(lower)):
        unit = torch.zeros(len(lower), dtype=row.dtype)
        unit[i] = 1
        low, high = -largest_back(0, -unit), largest_back(0, unit)
        slope = (abs(high) - abs(low)) / (high - low) if high > low else (1.0 if low > 0 else -1.0)
        coefficients[i] = slope
        constant += abs(low) - slope * low
    return largest_back(0, coefficients) + constant, boxes
