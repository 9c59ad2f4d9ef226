"""Options of the methods."""

from __future__ import annotations

from dataclasses import dataclass, field

from lipschitz.checks import check_flag, check_number, shown, whole_number
from lipschitz.errors import InputError


@dataclass(frozen=True)
class SlopeOptimization:
    """How engine A optimises the lower slopes (alpha) of pre-activation bounds.

    Attributes:
        iterations: Adam steps for each side of each layer.
        learning_rate: Its step length.
        decay: Factor on the step length after every step.

    Raises:
        InputError: Numbers that make no sense.
    """

    iterations: int = 20
    learning_rate: float = 0.5
    decay: float = 0.98

    def __post_init__(self) -> None:
        whole_number("iterations", self.iterations, least=1)
        check_number("learning_rate", self.learning_rate)
        check_number("decay", self.decay)


@dataclass(frozen=True)
class MethodOptions:
    """Options of the methods; each uses those that concern it.

    Attributes:
        optimize: Optimise the slopes of pre-activation bounds (``crown`` on auto_LiRPA), or the
            weights of planes (``joint``).
        slopes: How.
        rows_at_once: Output directions per batch, None for as many as fit.
        memory_budget: Bytes for the coefficients of one chunk of rows; the engine chooses if None.
        timeout: Seconds per problem, for the methods that keep a limit (:attr:`Method.timed_on`);
            None is 60 for those that search, and no limit for the others.
        seed: Seed of the points that ``sampling`` and the searching methods draw.

    Raises:
        InputError: Numbers that make no sense.
    """

    optimize: bool = True
    slopes: SlopeOptimization = field(default_factory=SlopeOptimization)
    rows_at_once: int | None = None
    memory_budget: int | None = None
    timeout: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_flag("optimize", self.optimize)
        if not isinstance(self.slopes, SlopeOptimization):
            raise InputError(f"slopes {shown(self.slopes)}: expected SlopeOptimization(...)")
        for name in ("rows_at_once", "memory_budget"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least=1)
        if self.timeout is not None:
            check_number("timeout", self.timeout, infinite=True)
        whole_number("seed", self.seed, least=0)

    @property
    def search_seconds(self) -> float:
        """The limit of a method that searches."""
        return 60.0 if self.timeout is None else self.timeout
