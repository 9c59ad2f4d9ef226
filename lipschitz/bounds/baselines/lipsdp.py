"""LipSDP: the global L2 Lipschitz constant by semidefinite programming, converted for Linf.

Method card
    Needs: a chain of layers (no branches) with ReLU or LeakyReLU, at most 300 inputs and neurons
        together, and the package cvxpy with an open solver (CLARABEL or SCS).
    Returns: an upper bound per row that holds EVERYWHERE, not only on the box: the L2 Lipschitz
        constant of the row's scalar output, for Linf ("global L2 x sqrt(D)") times the square root
        of the number of inputs, since ``||J||_1 <= sqrt(D) ||J||_2``. It is compared with local
        Linf bounds only so converted. Ctrl-C leaves rows not yet solved at the product of norms.
    Idea: any two values of an activation differ by a slope in [a, 1]; a nonnegative multiplier per
        neuron turns that into one linear matrix inequality for the squared constant.
    Sound: yes. Exact: no.
    Reference: Fazlyab et al., NeurIPS 2019, Theorem 2, with one multiplier per neuron
        (LipSDP-Neuron; the coupled multipliers of LipSDP-Network are not sound, Pauli et al. 2021).

Trusted and not trusted: the solver only proposes multipliers. Layers are scaled to spectral norm
1, so that every hidden difference is at most the input's; if the smallest eigenvalue of the matrix
is ``-e``, the squared constant is then at most ``rho + e * (layers + 1)``. That eigenvalue,
computed in float64 and lowered by a margin for rounding, is the certificate, and the product of
spectral norms the bound where nothing better is certified.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lipschitz.bounds.baselines.chain import dense_chain
from lipschitz.bounds.baselines.extras import require_extra
from lipschitz.bounds.baselines.interrupts import interruptible
from lipschitz.bounds.clock import Clock
from lipschitz.bounds.outcome import Outcome
from lipschitz.network.graph import Graph
from lipschitz.problem import LocalProblem
from lipschitz.rounding import raise_upper_bound
from lipschitz.words import BOUND, INTERRUPTED, TIMEOUT

# Inputs and neurons, together, beyond which the method is refused. A choice: in docs/measured.md
# the solvers took 3 seconds at width 16, and did not end within six from width 32 on.
LARGEST = 300
# CLARABEL, an interior point method, is accurate, and cubic in the square of the size. Beyond so
# many inputs and neurons SCS is faster, to a tolerance that costs the certified bound less than
# 0.2 %; on which networks that was measured is not on record.
_LARGEST_INTERIOR_POINT, _TOLERANCE = 60, 1e-5
# Relative, on spectral norms computed in float64.
_NORM_MARGIN = 1e-12
# scs.h: SCS_SIGINT.
_SCS_INTERRUPTED = -5


@dataclass(frozen=True)
class Chain:
    """``last . act(W_L ... act(W_1 x))``, biases left out, each W_k of spectral norm 1.

    Attributes:
        weights: W_1 to W_L.
        small_slopes: Smaller slope of every neuron, one array per layer.
        last: What follows the last activation, [C, N_L].
        scale: The product of the spectral norms taken out.
    """

    weights: list[np.ndarray]
    small_slopes: list[np.ndarray]
    last: np.ndarray
    scale: float


def spectral_norm(matrix: np.ndarray) -> float:
    """Upper bound of a matrix's largest singular value."""
    return float(np.linalg.norm(matrix, 2)) * (1 + _NORM_MARGIN)


def chain_of(graph: Graph) -> Chain:
    """The network as a chain of matrices of spectral norm 1.

    Raises:
        InputError: Another activation than ReLU or LeakyReLU, branches, or too many neurons for a
            semidefinite program.
    """
    layers, last = dense_chain(graph, "lipsdp", LARGEST)
    norms = [spectral_norm(layer.weight) or 1.0 for layer in layers]
    return Chain(
        [layer.weight / norm for layer, norm in zip(layers, norms, strict=True)],
        [np.full(len(layer.weight), layer.negative_slope) for layer in layers],
        last,
        float(np.prod(norms)),
    )


class Inequality:
    """The matrix ``M(rho, t) >= 0`` that proves a squared constant rho of a chain.

    ``M = rho E - C - (G^T diag(t) H + H^T diag(t) G) / 2`` over the differences (x, a_1, ..., a_L):
    G and H give ``da - a dz`` and ``dz - da``, whose product is nonnegative for every neuron.
    """

    def __init__(self, chain: Chain) -> None:
        self.layers = len(chain.weights)
        self.inputs = chain.weights[0].shape[1]
        count = sum(len(w) for w in chain.weights)
        preact = np.zeros((count, self.inputs + count))
        row, column = 0, 0
        for weight in chain.weights:
            preact[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
            row, column = row + weight.shape[0], column + weight.shape[1]
        value = np.hstack([np.zeros((count, self.inputs)), np.eye(count)])
        self.above = value - np.concatenate(chain.small_slopes)[:, None] * preact
        self.below = preact - value

    def output(self, row: np.ndarray) -> np.ndarray:
        """C of one output direction over the last layer, [N, N]."""
        full = np.zeros(self.above.shape[1])
        full[-len(row) :] = row
        return np.outer(full, full)

    def certified(self, rho: float, multipliers: np.ndarray, output: np.ndarray) -> float:
        """A squared constant that the multipliers prove, near ``rho``; at most 1."""
        multipliers = np.maximum(multipliers, 0)
        if not (np.isfinite(rho) and np.isfinite(multipliers).all()):
            return 1.0
        product = self.above.T @ (multipliers[:, None] * self.below)
        matrix = -output - (product + product.T) / 2
        diagonal = np.arange(self.inputs)
        matrix[diagonal, diagonal] += rho
        size = len(matrix)
        margin = 16 * size * np.finfo(float).eps * (1 + abs(rho) + multipliers.max() * size)
        smallest = float(np.linalg.eigvalsh(matrix)[0]) - margin
        return min(1.0, max(rho, 0.0) + max(0.0, -smallest) * (self.layers + 1))


def _program(inequality: Inequality) -> tuple[Any, Any, Any, Any]:
    """The semidefinite program: problem, rho, multipliers, and C as a parameter."""
    import cvxpy as cp  # optional: only here

    count, size = inequality.above.shape
    rho, multipliers = cp.Variable(nonneg=True), cp.Variable(count, nonneg=True)
    output = cp.Parameter((size, size), symmetric=True)
    product = inequality.above.T @ cp.diag(multipliers) @ inequality.below
    is_input = np.diag((np.arange(size) < inequality.inputs).astype(float))
    matrix = rho * is_input - output - (product + product.T) / 2
    return cp.Problem(cp.Minimize(rho), [matrix >> 0]), rho, multipliers, output


def _solve(problem: Any, size: int, seconds: float) -> bool:
    """Run a solver; whether it says that it has converged.

    Raises:
        KeyboardInterrupt: At once; also where SCS, which takes the signal for itself while it
            iterates, has stopped at it.
    """
    import cvxpy as cp

    if size <= _LARGEST_INTERIOR_POINT:
        solver, options = cp.CLARABEL, {"time_limit": seconds}
    else:
        solver, options = cp.SCS, {"time_limit_secs": seconds, "eps": _TOLERANCE}
    # What cp.Problem.solve does, in steps: it would report an interrupted SCS as one that failed.
    data, chain, inverse = problem.get_problem_data(solver, solver_opts=options)
    answer = interruptible(lambda: chain.solve_via_data(problem, data, solver_opts=options))
    if isinstance(answer, dict) and answer["info"]["status_val"] == _SCS_INTERRUPTED:
        raise KeyboardInterrupt
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "may be inaccurate": the eigenvalue tells
            problem.unpack_results(answer, chain, inverse)
    except cp.SolverError:
        return False
    return problem.status == cp.OPTIMAL


def _squared_constants(chain: Chain, outputs: np.ndarray, clock: Clock) -> tuple[Any, str]:
    """Certified squared constants of unit output directions on the last layer, at most 1: [R]."""
    squared, status = np.ones(len(outputs)), BOUND
    try:
        inequality = Inequality(chain)
        program, rho, multipliers, parameter = _program(inequality)
        for r, output in enumerate(outputs):
            if not output.any():
                continue
            waiting = len(outputs) - r
            seconds = clock.left / waiting
            if seconds <= 0:
                clock.miss(f"semidefinite programs of {waiting} output{'s' * (waiting > 1)}")
                return squared, TIMEOUT
            parameter.value = inequality.output(output)
            if not _solve(program, len(parameter.value), seconds):
                status = TIMEOUT
                clock.miss("the optimum of semidefinite programs")
            if multipliers.value is not None:
                squared[r] = inequality.certified(
                    float(rho.value), multipliers.value, parameter.value
                )
    except KeyboardInterrupt:
        return squared, INTERRUPTED
    return squared, status


def lipsdp_bounds(problem: LocalProblem, *, timeout: float = 60.0) -> Outcome:
    """Upper bound of every row's norm (L2, or Linf by conversion) over ALL inputs x.

    Args:
        problem: The network and rows; its box does not matter.
        timeout: Seconds for all rows together, beyond which rows keep the product of norms.

    Returns:
        Upper bounds [R], and ``timeout`` if the solver was stopped on some row, ``interrupted`` if
        by Ctrl-C.

    Raises:
        InputError: No cvxpy, branches, or too large a network.
    """
    chain = chain_of(problem.graph)
    require_extra("lipsdp", "cvxpy")
    clock = Clock.of(timeout)
    outputs = problem.rows.double().cpu().numpy() @ chain.last
    lengths = np.linalg.norm(outputs, axis=1) * (1 + _NORM_MARGIN)
    squared, status = np.ones(len(outputs)), BOUND
    if chain.weights:
        units = outputs / np.where(lengths > 0, lengths, 1.0)[:, None]
        squared, status = _squared_constants(chain, units, clock)
    factor = problem.graph.input_shape.numel() if problem.norm == "inf" else 1
    bounds = np.sqrt(squared * factor) * lengths * chain.scale
    upper_bounds = raise_upper_bound(torch.from_numpy(bounds).to(problem.rows))
    return Outcome(upper_bounds, status=status, not_reached=clock.not_reached)
