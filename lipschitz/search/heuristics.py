"""Which variable to split: scores of neurons and of Jacobian entries.

The bound is a sum. Every unstable neuron adds to it the gap of the chord of ``g * s`` (cotangent
times slope), weighted by its coefficient ``|A_q|``; every entry of open sign adds the gap of the
chord of ``|J_i|``. A score estimates how much of the bound a split can remove. Splitting the sign
of an entry is sound without any condition on the inputs, since ``|J_i| = max(J_i, -J_i)``: one
child counts the entry as ``J_i``, the other as ``-J_i``. It removes the whole gap of that chord,
and each child costs one backward pass with a single row. That makes it the most profitable split on
wide boxes with few inputs.

Shapes: B subdomains, N neurons, D entries, as in :mod:`lipschitz.search.subdomains`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipschitz.search.options import check_heuristic
from lipschitz.words import HEURISTICS


@dataclass(frozen=True)
class SplitFacts:
    """What the scores look at.

    Attributes:
        coefficient: How much the bound counts h = g * s of each neuron, [B, N].
        cotangent_lower, cotangent_upper: Interval of g, [B, N].
        slope_range: Width of the slope's interval, [B, N]; 0 for a stable neuron.
        splittable: Neurons whose pre-activation interval a split would help, [B, N].
        entry_gap: Intercept of the chord of ``|J_i|`` (or of its square), 0 where the sign is
            fixed, [B, D].
        curved: Where entries vary that enter the bound by a square: any open neuron may matter,
            whatever its coefficient. [B]; None if no entry does.
    """

    coefficient: Tensor
    cotangent_lower: Tensor
    cotangent_upper: Tensor
    slope_range: Tensor
    splittable: Tensor
    entry_gap: Tensor
    curved: Tensor | None = None


def slope_score(facts: SplitFacts) -> Tensor:
    """``|A| max |g|``: the most that the term ``A g s`` can move when s goes over its interval."""
    largest = torch.maximum(facts.cotangent_lower.abs(), facts.cotangent_upper.abs())
    return facts.coefficient.abs() * largest * facts.slope_range


def area_score(facts: SplitFacts) -> Tensor:
    """Area between the two lines around h, weighted by ``|A|`` (Shi et al. 2022, section 3.4)."""
    lower, upper = facts.cotangent_lower, facts.cotangent_upper
    area = upper * upper.abs() - lower * lower.abs()
    return facts.coefficient.abs() * area.clamp(min=0) * facts.slope_range


def babsr_score(facts: SplitFacts) -> Tensor:
    """The chord's intercept times ``|A|``, the leading term of BaBSR (Bunel et al. 2020)."""
    lower, upper = facts.cotangent_lower.clamp(max=0), facts.cotangent_upper.clamp(min=0)
    intercept = -lower * upper / (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
    return facts.coefficient.abs() * intercept * facts.slope_range


# Weight of entries against neurons. Fixing the sign of an entry removes its whole gap in both
# children and never makes intervals stale, so it is worth more than a neuron of the same score.
# When it was chosen, anything from 1 to 4 did as well; on which networks is not on record.
_ENTRY_WEIGHT = 2.0

_SCORES: dict[str, Callable[[SplitFacts], Tensor]] = {
    "sign": slope_score,
    "slope": slope_score,
    "area": area_score,
    "babsr": babsr_score,
}

Chooser = Callable[[SplitFacts], Tensor]


def chooser(heuristic: str = "sign") -> Chooser:
    """A function that picks the variable to split.

    Where the heuristic scores every variable 0, one whose relaxation still has a gap is taken
    instead, so that only a subdomain whose bound has no gap at all is called a leaf.

    Args:
        heuristic: ``sign`` (slope score, entries compete), ``slope``, ``area`` or ``babsr``.

    Returns:
        Function from facts to variables, [B]; -1 where the bound has no gap left.

    Raises:
        InputError: An unknown heuristic.
    """
    check_heuristic(heuristic)
    score, signs = _SCORES[heuristic], HEURISTICS[heuristic]

    def choose(facts: SplitFacts) -> Tensor:
        choice = choose_by_gap(facts)
        if facts.curved is None or not facts.splittable.shape[1]:
            return choice
        reach = torch.maximum(facts.cotangent_lower.abs(), facts.cotangent_upper.abs())
        reach = (reach * facts.slope_range).masked_fill(~facts.splittable, 0)
        best, neuron = reach.max(dim=1)
        return torch.where((choice < 0) & facts.curved & (best > 0), neuron, choice)

    def choose_by_gap(facts: SplitFacts) -> Tensor:
        neurons = score(facts).masked_fill(~facts.splittable, 0)
        entries = facts.entry_gap * (_ENTRY_WEIGHT if signs else 0.0)
        best, choice = torch.cat([neurons, entries], dim=1).max(dim=1)
        if score is slope_score and signs:
            return choice.masked_fill(best <= 0, -1)
        spare = slope_score(facts).masked_fill(~facts.splittable, 0)
        spare_best, spare_choice = torch.cat([spare, facts.entry_gap], dim=1).max(dim=1)
        spare_choice = spare_choice.masked_fill(spare_best <= 0, -1)
        return torch.where(best > 0, choice, spare_choice)

    return choose
