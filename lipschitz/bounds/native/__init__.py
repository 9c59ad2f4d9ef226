"""Engine B: batched bound propagation written directly on torch.

In the order in which a bound runs: ``interval`` (interval arithmetic both ways) finds the neurons
that need more; ``forward`` bounds these pre-activations by lines (``lines``), whose slopes
``slopes`` may optimise; ``backward`` bounds the Jacobian from the slopes that are left. ``crown``
and ``alpha`` put the two together, without and with optimised slopes. ``plan`` holds what all of
this knows of a graph, ``rows`` and ``memory`` keep the rows of coefficients few and small.
"""
