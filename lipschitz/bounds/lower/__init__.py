"""Looking for large gradients: every one that is found is a lower bound, whatever led to it.

``softness`` says how far kinks are spread for a climb, ``ascent`` climbs the norm that results,
``variation`` changes good points at random, ``record`` keeps the best certified norm of every row,
``elites`` the best points, and ``attack`` spends the time that it is given on whichever of these
gains most. Nothing here is certified but by :mod:`lipschitz.bounds.witness`.
"""
