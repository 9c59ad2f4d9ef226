"""Looking for large gradients: every one that is found is a lower bound, whatever led to it.

``norms_at`` computes norms at points, ``softness`` says how far kinks are spread for a climb,
``ascent`` climbs the norm that results, ``elites`` keeps the best points apart from each other,
``variation`` changes them at random, ``record`` has the best certified norm of every row, and
``attack`` spends the time that it is given on whichever of these gains most. Nothing here is
certified but by :mod:`lipschitz.bounds.witness`.
"""
