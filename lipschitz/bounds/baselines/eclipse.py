"""ECLipsE-Gen-Local: the L2 Lipschitz constant near a point, layer by layer, converted to Linf.

Method card
    Needs: a chain of layers (no branches) with ReLU, at most 1000 inputs and neurons together, and
        the package eclipse-nn, the authors' implementation.
    Returns: "local L2 x sqrt(D)": per row an upper bound on the smallest L2 ball around the box,
        times the square root of the number of inputs, since ``||J||_1 <= sqrt(D) ||J||_2``; never
        above the product of the layers' spectral norms so converted.
    Idea: the matrix inequality of LipSDP splits into one small inequality per layer, with one
        multiplier for all its neurons chosen in closed form. The bounds of the first layers say how
        far the next pre-activations move within the ball; a neuron that stays off has slope 0.
    Sound: yes, up to rounding. Exact: no.
    Reference: Xu and Sivaranjani, NeurIPS 2024 (ECLipsE) and TMLR 2026 (ECLipsE-Gen-Local); its
        closed form "CF". Its forms "Acc" and "Fast" end there too in version 0.1.7: they take a
        solver's answer only if its status contains "Solved", which cvxpy's never does.

Trusted and not trusted: the package's linear algebra, in float64. In closed form every matrix that
it inverts has a condition number of at most 2. The ball is made larger, and the answer raised, by a
margin for rounding that is not a proof; where the package gives no number, the product of spectral
norms stands.
"""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import torch
from torch import Tensor

from lipschitz.bounds.baselines.chain import Layer, dense_chain
from lipschitz.bounds.baselines.extras import require_extra
from lipschitz.errors import InputError
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound

# Inputs and neurons, together, beyond which the method is refused: its dense matrices become large.
# A choice.
LARGEST = 1000
# Relative margin for rounding, not a proof: on the ball's radius, on the size of its
# points, and on the constant.
_MARGIN = 1e-9


def local_l2_constant(
    weights: list[np.ndarray], biases: list[np.ndarray], centre: np.ndarray, radius: float
) -> float:
    """The package's bound on an L2 ball for one output, or infinity where it gives none.

    Args:
        weights, biases: Of all layers, the last with one output; ReLU between.
        centre: [D].
        radius: Of the ball.
    """
    from eclipse_nn import get_lip_estimates  # optional: only here

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every layer
        try:
            constant, _, failed = get_lip_estimates(
                weights, centre, radius, actv="relu", biases=biases, algo="CF"
            )
        except np.linalg.LinAlgError:
            return math.inf
    return math.inf if failed or not math.isfinite(constant) else float(constant)


def relu_chain(graph: Graph) -> tuple[list[Layer], np.ndarray]:
    """The network's layers and what follows the last, as :func:`dense_chain` gives them.

    Raises:
        InputError: Branches, other activations than ReLU, or too large a network.
    """
    layers, last = dense_chain(graph, "eclipse", LARGEST)
    if any(layer.negative_slope for layer in layers):
        raise InputError("eclipse: the package bounds networks of ReLU, not LeakyReLU: use crown")
    return layers, last


def eclipse_bounds(problem: LocalProblem) -> Tensor:
    """Upper bound of every row's norm (L2, or Linf by conversion) over the box, [R].

    Args:
        problem: What to bound.

    Raises:
        InputError: As :func:`relu_chain`, or no eclipse-nn.
    """
    layers, last = relu_chain(problem.graph)
    require_extra("eclipse", "eclipse-nn", "eclipse_nn")
    outputs = problem.rows.double().cpu().numpy() @ last
    lower, upper = (t.double().cpu().numpy().ravel() for t in (problem.lower, problem.upper))
    centre = (lower + upper) / 2
    size = float(np.linalg.norm(centre)) + 1
    radius = float(np.linalg.norm((upper - lower) / 2)) * (1 + _MARGIN) + _MARGIN * size
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    product = float(np.prod([np.linalg.norm(weight, 2) for weight in weights]))
    constants = [
        min(
            local_l2_constant([*weights, row[None]], [*biases, np.zeros(1)], centre, radius),
            product * float(np.linalg.norm(row)),
        )
        for row in outputs
    ]
    factor = math.sqrt(len(centre)) if problem.norm == "inf" else 1.0
    bounds = np.array(constants) * factor * (1 + _MARGIN)
    return raise_upper_bound(torch.from_numpy(bounds).to(problem.rows))
