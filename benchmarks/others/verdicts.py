"""What the rows say: ratios, means, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from benchmarks.others.box import Entry
from benchmarks.others.rows import ATTACK, Row

# Relative tolerances: the attack computes in float64 with the file's float32 weights, the library
# may fold these in float32 before; its bounds count with the rounding of everything after.
ROUNDING = 1e-6
NEAR = 1e-3  # a ratio up to 1 + NEAR counts as near
LEAST_LOWER = 0.98  # share of the attack's gradient that a lower bound should reach in equal time
LATE = 1.1
_SAME_TIME = 1.05
_AGREES, _CONTRADICTS = 1e-3, 1e-4


@dataclass(frozen=True)
class Verdict:
    """One box.

    Attributes:
        group, network, eps: Which.
        rows: Of the methods, by name.
        attack: The largest gradient of the attack.
        truth: The larger of it and of the library's lower bounds.
        best: Name of the method of the smallest upper bound, None without any.
        wrong: What must not be, in words.
        late: Methods that took more than :data:`LATE` times their limit.
    """

    group: str
    network: str
    eps: str
    rows: dict[str, Row]
    attack: float
    truth: float
    best: str | None
    wrong: tuple[str, ...]
    late: tuple[str, ...]

    @property
    def title(self) -> str:
        """Network and radius."""
        return f"{self.network}, eps {self.eps}"

    def ratio(self, method: str | None) -> float | None:
        """A method's upper bound over the truth; None without either."""
        row = self.rows.get(method) if method else None
        if row is None or row.upper is None:
            return None
        if self.truth <= 0:
            return 1.0 if row.upper <= 0 else None
        return row.upper / self.truth

    @property
    def exact(self) -> bool:
        """Whether a method says so."""
        return any(row.status == "exact" for row in self.rows.values())

    @property
    def near(self) -> bool:
        """Whether the best ratio is 1 but for a thousandth."""
        ratio = self.ratio(self.best)
        return ratio is not None and ratio <= 1 + NEAR


def verdict(rows: Sequence[Row], ladder: Sequence[str]) -> Verdict:
    """What the rows of one box say.

    Args:
        rows: At least one, as they came; of several of one method the last counts.
        ladder: Names of methods from the cheapest to the dearest.
    """
    attack = next((row for row in reversed(rows) if row.method == ATTACK), None)
    methods = {row.method: row for row in rows if row.method != ATTACK}
    attacked = (attack.lower if attack else None) or 0.0
    truth = max([attacked, *(row.lower or 0.0 for row in methods.values())])
    bounded = [row for row in methods.values() if row.upper is not None]
    best = min(bounded, key=lambda row: row.upper or 0.0, default=None)
    return Verdict(
        rows[0].set,
        rows[0].network,
        rows[0].eps,
        methods,
        attacked,
        truth,
        best.method if best else None,
        (
            *_unsound(bounded, attacked),
            *_contradictions(list(methods.values())),
            *_above_cheaper(methods, ladder),
            *_weak(list(methods.values()), attack),
        ),
        tuple(
            row.method
            for row in methods.values()
            if row.seconds is not None and row.seconds > LATE * row.timeout
        ),
    )


def _unsound(bounded: Sequence[Row], attacked: float) -> list[str]:
    return [
        f"UNSOUND: {row.method} {row.upper:.9g} is below an attacked gradient of {attacked:.9g}"
        for row in bounded
        if row.upper is not None and row.upper < attacked * (1 - ROUNDING)
    ]


def _contradictions(rows: Sequence[Row]) -> list[str]:
    return [
        f"UNSOUND: {one.method}'s lower bound {one.lower:.9g} is above "
        f"{other.method}'s upper bound {other.upper:.9g}"
        for one in rows
        for other in rows
        if one.lower is not None
        and other.upper is not None
        and one.lower > other.upper * (1 + ROUNDING)
    ]


def _above_cheaper(methods: dict[str, Row], ladder: Sequence[str]) -> list[str]:
    found = []
    order = [methods[name] for name in ladder if name in methods]
    for place, dear in enumerate(order):
        for cheap in order[:place]:
            if cheap.upper is None or cheap.seconds is None or dear.seconds is None:
                continue
            if cheap.seconds > _SAME_TIME * dear.seconds:
                continue
            if dear.upper is None:
                if dear.status != "refused":
                    found.append(f"{dear.method} has no bound ({dear.status}), {cheap.method} has")
            elif dear.upper > cheap.upper * (1 + ROUNDING):
                found.append(
                    f"{dear.method} {dear.upper:.7g} is above {cheap.method} {cheap.upper:.7g}"
                )
    return found


def _weak(rows: Sequence[Row], attack: Row | None) -> list[str]:
    if attack is None:
        return []
    found = []
    for row in rows:
        if row.lower is None or row.seconds is None:
            continue
        target = attack.lower_at(row.seconds)
        if row.lower < LEAST_LOWER * target:
            found.append(
                f"{row.method}'s lower bound {row.lower:.6g} is {row.lower / target:.3f} of what "
                f"the attack has in {row.seconds:.2g} s"
            )
    return found


@dataclass(frozen=True)
class Summary:
    """All boxes of a set.

    Attributes:
        boxes: How many.
        compared: Those with a bound and a gradient, of which the mean is.
        mean: Geometric mean of the best ratios; None without any.
        means: The same of single methods: over the boxes that each bounds, with their number.
        exact, near: How many a method calls exact, how many are within :data:`NEAR`.
    """

    boxes: int
    compared: int
    mean: float | None
    means: dict[str, tuple[float, int]]
    exact: int
    near: int


def summary(verdicts: Sequence[Verdict], methods: Sequence[str]) -> Summary:
    """What the boxes of a set say together."""
    best = [r for v in verdicts if (r := v.ratio(v.best)) is not None]
    means = {}
    for method in methods:
        own = [r for v in verdicts if (r := v.ratio(method)) is not None]
        if own:
            means[method] = (geometric_mean(own), len(own))
    return Summary(
        len(verdicts),
        len(best),
        geometric_mean(best) if best else None,
        means,
        sum(v.exact for v in verdicts),
        sum(v.near for v in verdicts),
    )


def check_published(entry: Entry, rows: Sequence[Row]) -> tuple[str, bool]:
    """A published global constant against bounds of the library.

    Args:
        entry: With ``published``.
        rows: ``global``, which bounds all inputs, others that bound a large box, and the attack.

    Returns:
        What there is to say, and whether it is a contradiction.
    """
    value = entry["published"]["value"]
    if value is None:
        return "not available: no value in the manifest", False
    everywhere = [row for row in rows if row.method == "global" and row.upper is not None]
    inside = [row for row in rows if row.method != "global"]
    lower = max((row.lower or 0.0 for row in rows), default=0.0)
    upper = min((row.upper or math.inf for row in inside), default=math.inf)
    loose = min((row.upper or math.inf for row in everywhere), default=math.inf)
    if not rows:
        return "not measured yet", False
    if upper == math.inf and loose == math.inf:
        return "not available: the library gives no bound", False
    above = f"at most {upper:.9g}" if upper < math.inf else "no bound"
    said = f"true gradient {lower:.9g}; large box {above}; everywhere at most {loose:.6g}"
    if lower > value * (1 + _CONTRADICTS):
        return f"CONTRADICTION: a true gradient is larger; {said}", True
    if loose < value * (1 - _CONTRADICTS):
        return f"CONTRADICTION: a bound everywhere is smaller; {said}", True
    if lower >= value * (1 - _AGREES):
        return f"agrees; {said}", False
    return f"not contradicted; {said}", False
