"""The time that is left, and what it did not suffice for.

Every stage of a bound is given a :class:`Clock` and looks at it between pieces of its work: layers,
chunks of rows, steps, rounds. A piece that will not be done in time, judged by the earlier ones, is
not begun; what is left keeps the bounds it has, of interval arithmetic at worst, and the stage is
noted. A clock without a limit is never looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """When to stop, and what has been left out for it.

    Attributes:
        end: When, as ``now`` counts; None for never.
        now: The time in seconds.
        missed: Stages that were cut short, each with the layers it did not reach, none if it has no
            layers. Shared by the parts of a clock.
    """

    end: float | None = None
    now: Callable[[], float] = time.monotonic
    missed: dict[str, set[int]] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(seconds: float | None) -> Clock:
        """A clock that starts now; without a limit for None and infinity."""
        limited = seconds is not None and math.isfinite(seconds)
        return Clock(time.monotonic() + seconds) if limited else Clock()

    @property
    def is_limited(self) -> bool:
        """Whether there is an end."""
        return self.end is not None

    @property
    def left(self) -> float:
        """Seconds, not below 0."""
        return math.inf if self.end is None else max(0.0, self.end - self.now())

    @property
    def is_over(self) -> bool:
        """Whether nothing more should be begun."""
        return self.end is not None and self.now() >= self.end

    def allows(self, seconds: float) -> bool:
        """Whether work of so many seconds can be begun and ended in time."""
        if self.end is None:
            return True
        left = self.left
        return left > 0 and seconds <= left

    def part(self, share: float) -> Clock:
        """A clock that ends when this share of the time left is over, with the same notes."""
        if self.end is None:
            return self
        now = self.now()
        return replace(self, end=now + share * max(0.0, self.end - now))

    def before(self, seconds: float) -> Clock:
        """A clock that leaves so many seconds for what comes after, with the same notes."""
        return self if self.end is None else replace(self, end=self.end - seconds)

    def ends_after(self, other: Clock) -> bool:
        """Whether it leaves more time than another clock of the same kind."""
        return other.end is not None and (self.end is None or self.end > other.end)

    def without_notes(self) -> Clock:
        """The same end; what is noted on this clock is not reported."""
        return replace(self, missed={})

    def miss(self, stage: str, layer: int | None = None) -> None:
        """Note that a stage was cut short, in which of the network's layers (the first is 1)."""
        self.missed.setdefault(stage, set()).update(() if layer is None else (layer,))

    @property
    def not_reached(self) -> tuple[str, ...]:
        """What the time did not suffice for, in words."""
        return tuple(f"{stage}{_layers(sorted(layers))}" for stage, layers in self.missed.items())

    def in_time(
        self, pieces: Iterable[T], stage: str | None = None, layer: int | None = None
    ) -> Iterator[T]:
        """Pieces of work of about one size, as long as another fits; the rest is noted.

        Args:
            pieces: What is to be done; the time between two is that of the first of them.
            stage, layer: What to note; nothing if None.
        """
        if self.end is None:
            yield from pieces
            return
        longest = 0.0
        for piece in pieces:
            if not self.allows(longest):
                if stage is not None:
                    self.miss(stage, layer)
                return
            begin = self.now()
            yield piece
            longest = max(longest, self.now() - begin)

    def growing(
        self, total: int, first: int, most: int, stage: str | None = None
    ) -> Iterator[slice]:
        """Slices of many alike pieces of work, larger ones as long as these fit; the rest is noted.

        Nobody knows how long a piece takes before some are done: so few are, then each slice is up
        to four times the one before and no longer than the time left allows.

        Args:
            total: Number of pieces.
            first: How many are done at first; without a limit as many as at once.
            most: How many can be done at once.
            stage: What to note; nothing if None.
        """
        size = most if self.end is None else max(1, min(first, most))
        begin, each = 0, 0.0
        while begin < total:
            left = self.left
            if each > 0 and left < size * each:
                size = int(left / each)
            if left <= 0 or size < 1:
                if stage is not None:
                    self.miss(stage)
                return
            before, end = self.now(), min(total, begin + size)
            yield slice(begin, end)
            each = (self.now() - before) / (end - begin)
            begin, size = end, min(4 * size, most)


UNLIMITED = Clock()


def _layers(numbers: list[int]) -> str:
    """`` of layer 3`` or `` of layers 2 to 4``; empty if none."""
    if not numbers:
        return ""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f" of layer {first}"
    if last - first + 1 == len(numbers):
        return f" of layers {first} to {last}"
    return f" of layers {', '.join(map(str, numbers))}"
