"""The words that users meet, in options and in results. Nothing here loads torch.

Every status comes with certified bounds, except ``error``, which only rows of the command line
bear.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipschitz.errors import InputError

# Status of a result.
BOUND = "bound"  # a bound, no search for more
EXACT = "exact"  # upper and lower bound meet within the tolerance
TIMEOUT = "timeout"
DOMAIN_LIMIT = "domain_limit"
INTERRUPTED = "interrupted"
LOWER_BOUND_ONLY = "lower_bound_only"  # the upper bound is infinity
ERROR = "error"

NORM_NAMES = ("inf", "1", "2")
OUTPUTS = ("each", "all")
INPUTS = ("all", "free")
ENGINES = ("native", "auto_lirpa")

# What branch and bound splits, when it recomputes intervals, when programs take part.
BRANCHES = ("relu", "input", "auto")
# What ``auto`` may do where there are few inputs: cut boxes and split neurons in one search.
BOTH = "both"
REFRESH = ("on", "off", "auto")
PROGRAMS = ("auto", "always", "never")
# How the variable to split is chosen -> whether signs of Jacobian entries compete with neurons.
HEURISTICS = {"sign": True, "slope": False, "area": False, "babsr": False}


@dataclass(frozen=True)
class Asked:
    """What is to be measured, as far as it can be said before there is a network.

    Attributes:
        norm: One of :data:`NORM_NAMES`.
        joint: All outputs together, as one operator norm.
        only_free: Only the inputs count that the box lets change.
    """

    norm: str = "inf"
    joint: bool = False
    only_free: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is what the paper measures, which every engine and search knows."""
        return self.norm == "inf" and not self.only_free

    def __str__(self) -> str:
        """What is special about it, for messages."""
        return f"norm {self.norm}" if self.norm != "inf" else "inputs 'free'"


def norm_name(given: str | float) -> str:
    """The name of a norm from ``2``, ``"L2"``, ``float("inf")`` and the like.

    Raises:
        InputError: No such norm.
    """
    name = str(given).lower().removeprefix("l").removesuffix(".0")
    if name not in NORM_NAMES:
        raise InputError(f"norm {given}: expected {', '.join(NORM_NAMES)}")
    return name


def default_outputs(norm: str, *, margins: bool) -> str:
    """What ``outputs`` is where nobody says: the constant of the network as a map, in every norm.

    A margin is a function by itself. For Linf the two are the same number, known per output.
    """
    return "each" if margins or norm == "inf" else "all"
