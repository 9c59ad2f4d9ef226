"""Options of the methods."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SlopeOptimization:
    """How engine A optimises the lower slopes (alpha) of pre-activation bounds.

    Attributes:
        iterations: Adam steps for each side of each layer.
        learning_rate: Its step length.
        decay: Factor on the step length after every step.
    """

    iterations: int = 20
    learning_rate: float = 0.5
    decay: float = 0.98


@dataclass(frozen=True)
class MethodOptions:
    """Options of the methods; each uses those that concern it.

    Attributes:
        optimize: Optimise the slopes of pre-activation bounds (``crown``).
        slopes: How.
        rows_at_once: Output directions per batch, None for as many as fit.
        memory_budget: Bytes for the coefficients of one chunk of rows; the engine chooses if None.
        timeout: Seconds per problem, for the methods that search.
        seed: Seed of the points that ``sampling`` and the searching methods draw.
    """

    optimize: bool = True
    slopes: SlopeOptimization = field(default_factory=SlopeOptimization)
    rows_at_once: int | None = None
    memory_budget: int | None = None
    timeout: float = 60.0
    seed: int = 0
