"""What is answered: :class:`LipschitzResult`, certified bounds and how they were found."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LipschitzResult:
    """Certified bounds of a local Lipschitz constant.

    Attributes:
        upper_bound: No Jacobian in the box has a larger norm; for ``outputs`` ``each`` no gradient
            of any of the rows.
        lower_bound: The norm of the true gradient (Jacobian) at ``witness``; 0 if none was found.
        class_upper_bounds: One upper bound per row of the problem, in its order; one number where
            the norm is that of all rows together.
        root_upper_bound: The upper bound before any branching.
        status: ``bound``, ``exact``, ``timeout``, ``domain_limit``, ``interrupted``, or
            ``lower_bound_only`` from a method whose upper bound is infinity.
        witness: A point of the box whose gradient attains ``lower_bound``, or None.
        method, engine: What computed the upper bound.
        seconds: Wall-clock time.
        domains: Subdomains bounded by branch and bound, 0 without it.
        leaves_checked: Leaves whose activation region was checked by a linear program.
        solver_gap: Of method ``sdp``: how far, relatively, ``upper_bound`` may be above the optimum
            of its semidefinite program; None elsewhere, and where the program was not reached.
        dtype, device: Where and in what precision it was computed.
        branch: What branch and bound split, ``relu``, ``input`` or ``both``; None without it.
        norm, outputs, inputs: What was measured, as in :class:`lipschitz.LocalProblem`.
        not_reached: What the time did not suffice for, in words, such as ``slope optimisation``;
            the bounds hold without it.
    """

    upper_bound: float
    lower_bound: float
    class_upper_bounds: tuple[float, ...]
    root_upper_bound: float
    status: str
    witness: Tensor | None
    method: str
    engine: str
    seconds: float
    domains: int = 0
    leaves_checked: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    branch: str | None = None
    norm: str = "inf"
    outputs: str = "each"
    inputs: str = "all"
    solver_gap: float | None = None
    not_reached: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as values that JSON can hold: infinity as None, tensors and tuples as lists."""
        return plain_fields(self)


def plain_fields(result: Any) -> dict[str, Any]:
    """The fields of a result, a dataclass, as values that JSON can hold.

    Infinity is None, tensors and tuples are lists.
    """
    return {field.name: _plain(getattr(result, field.name)) for field in fields(result)}


def _plain(value: Any) -> Any:
    """A field's value for JSON."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if value in (float("inf"), float("-inf")) else value
