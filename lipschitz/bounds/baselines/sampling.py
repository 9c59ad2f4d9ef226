"""Lower bounds alone: random points and gradient ascent.

Method card
    Needs: gradients; any network of this package, any size.
    Returns: a lower bound with a witness, and NO upper bound: the upper bound of the result is
        infinity and its status says ``lower_bound_only``. The largest gradient sampled estimates
        the constant from below, and nothing bounds how far below.
    Idea: the l1 norm of true gradients at the centre, at random points and corners of the box, and
        along projected gradient ascent on a smoothed norm.
    Sound: as a lower bound. Exact: never known to be.
    Reference: random sampling as "CLEVER" (Weng et al. 2018) and the lower bounds of Jordan and
        Dimakis 2020 (section 6) use it; without CLEVER's extreme value extrapolation, which may
        land on either side of the constant.
"""

from __future__ import annotations

import torch

from lipschitz.bounds.clock import UNLIMITED, Clock
from lipschitz.bounds.outcome import Outcome, better
from lipschitz.bounds.true_gradients import STAGE, Sampling, sample_gradients
from lipschitz.problem import LocalProblem
from lipschitz.words import LOWER_BOUND_ONLY

# Climbs from different points. The first is the one that accompanies every upper bound elsewhere,
# so this method never finds less; the others have more points and steps. Choices: fewer may find
# less.
_CLIMBS = 8
_LONGER = {"num_random": 256, "ascent_steps": 100}


def sampled_lower_bounds(problem: LocalProblem, seed: int = 0, clock: Clock = UNLIMITED) -> Outcome:
    """Largest true gradient norms found in the box, without any upper bound.

    Args:
        problem: What to sample, R rows.
        seed: Seed of the first climb's random points.
        clock: When to stop.

    Returns:
        Lower bounds [R] with witnesses; upper bounds of infinity.
    """
    found = sample_gradients(problem, Sampling(seed=seed), clock=clock)
    for climb in range(1, _CLIMBS):
        if clock.is_over:
            clock.miss(STAGE)
            break
        sampling = Sampling(**_LONGER, ascent_rows=len(problem.rows), seed=seed + climb)
        found = better(found, sample_gradients(problem, sampling, clock=clock))
    return Outcome(
        torch.full_like(found.norms, torch.inf),
        found,
        status=LOWER_BOUND_ONLY,
        not_reached=clock.not_reached,
    )
