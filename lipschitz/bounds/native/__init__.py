"""Engine B, ``native``: batched bound propagation written directly on torch.

(Engine A is auto_LiRPA, in ``lipschitz.bounds.lirpa``.) In the order in which a bound runs:
``interval`` (interval arithmetic, forward and backward) finds the unstable neurons; ``forward``
bounds their pre-activations by CROWN with the lines of ``lines``, whose lower slopes (alpha)
``slopes`` may optimise, and of ``pool_lines``, around maxima over windows, which follow from what
``pool_bounds`` knows of the windows; ``backward`` bounds the Jacobian from the resulting intervals
of the activations' slopes. ``crown`` and ``alpha`` put the two together, without and with optimised
slopes, and ``root`` is what they give; ``joint`` bounds networks with curved activations more
tightly, on the graphs of ``terms``, ``products`` networks that multiply two values, and
``plane_rows`` single entries of the Jacobians of both. ``curvature`` bounds products of the Hessian
with directions, ``hessian_matrices`` whole Hessians, ``hessian_norms`` norms from intervals of
entries, and ``hessian_root`` puts these together for one box.
``plan`` holds what is known of a graph before there is a box, ``rows`` and ``memory`` keep the rows
of coefficients few and small.
"""
