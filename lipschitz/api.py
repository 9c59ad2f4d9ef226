"""The library call: a network, a point, a radius -> certified bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lipschitz.arguments import Ends, Numbers, check_dtype
from lipschitz.bounds.options import MethodOptions
from lipschitz.bounds.true_gradients import Sampling
from lipschitz.checks import check_number
from lipschitz.network.graph import Graph
from lipschitz.network.input_shape import input_shape_of
from lipschitz.prepared import Prepared
from lipschitz.problem import check_box_given, make_problem
from lipschitz.result import LipschitzResult
from lipschitz.search.options import BranchOptions


def local_lipschitz(
    model: nn.Module | Graph,
    x: Numbers | None = None,
    eps: Numbers | str | None = None,
    *,
    method: str = "crown",
    engine: str | None = None,
    norm: str | float = "inf",
    outputs: str | None = None,
    inputs: str = "all",
    classes: int | Sequence[int] | None = None,
    margin_of: int | None = None,
    pairs: bool = False,
    x_lower: Numbers | None = None,
    x_upper: Numbers | None = None,
    clip: Ends | None = None,
    optimize: bool = True,
    dtype: torch.dtype | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    branching: BranchOptions | None = None,
) -> LipschitzResult:
    """Certified bounds of the local Lipschitz constant of a network around a point.

    The constant is the largest operator norm of the Jacobian over the box ``x +- eps``: for Linf
    the largest l1 norm of any output's gradient (Shi et al. 2022, eq. 1), for L1 the largest
    column sum, for L2 the largest singular value. Units are those of the network's input: no
    normalisation is undone.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipschitz import local_lipschitz
        >>> weights = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(weights), model[0].bias.zero_()
        ...     _ = model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> x = torch.tensor([1.0, 0.0])  # both neurons stay active within 0.1
        >>> result = local_lipschitz(model, x, eps=0.1)
        >>> result.status, round(result.upper_bound, 4), round(result.lower_bound, 4)
        ('exact', 2.5, 2.5)
        >>> from lipschitz import BranchOptions
        >>> result = local_lipschitz(model, x, eps=2.0, branching=BranchOptions(timeout=10))
        >>> result.status, round(result.upper_bound, 4), result.branch
        ('exact', 3.0, 'both')
        >>> round(local_lipschitz(model, x, eps=0.1, norm=2).upper_bound, 4)
        1.8028

    Numbers may come as tensors, numpy arrays, lists or plain numbers; a batch of points is refused.

    Args:
        model: A network in eval mode mapping [B, *input_shape] to [B, C], or its graph.
        x: The centre, [*input_shape] or [1, *input_shape]; left out, it is the middle of the box
            between ``x_lower`` and ``x_upper``.
        eps: Box radius, a number (also as text, ``"2/255"``) or one per input, broadcastable to
            ``x``; 0 leaves an input fixed.
        norm: ``inf``, ``1`` or ``2``, of the input and of the output.
        outputs: ``all`` (the operator norm of the Jacobian) or ``each`` (the largest dual norm of a
            single output's gradient); the same for Linf. Margins are taken one by one unless
            ``all`` is asked for.
        inputs: ``all`` inputs count in the norm, or only the ``free`` ones that the box lets
            change.
        method: A name of :data:`lipschitz.METHODS`, such as ``crown``, ``alpha`` or ``lipmip``.
        engine: ``auto_lirpa`` or ``native``; the method's default if None.
        classes: Outputs to bound, or one of them; all if None.
        margin_of: A label y; then the margins ``f_y - f_c`` are bounded instead of the outputs.
        pairs: Bound the margins ``f_i - f_j`` of all pairs of outputs.
        x_lower, x_upper: Instead of ``eps``: the ends of the box, broadcastable to ``x``.
        clip: Smallest and largest value of an input, to which the box is cut.
        optimize: Optimise the slopes of pre-activation bounds (method ``crown``).
        dtype: Precision to compute in; the model's own if None.
        tolerance: Relative gap up to which the result is called exact.
        seed: Seed of the points sampled for the lower bound.
        branching: Refine by branch and bound, with these options; ``method`` then has no effect
            and ``engine`` is ``native`` unless given.

    Returns:
        Certified bounds, a witness of the lower one, and how they were found.

    Raises:
        InputError: A ValueError: something about the model, ``x`` or ``eps`` that the caller can
            mend, said in one line.
        NotImplementedError: A layer that is not supported, by name.
    """
    check_box_given(x, eps, x_lower, x_upper)
    check_number("tolerance", tolerance, zero=True)
    check_dtype(dtype)
    prepared = Prepared(
        model,
        input_shape_of(model, x, x_lower, x_upper),
        method=method,
        engine=engine,
        options=MethodOptions(optimize=optimize, seed=seed),
        dtype=dtype,
        branching=branching,
        norm=norm,
        inputs=inputs,
    )
    problem = make_problem(
        prepared.graph,
        x,
        eps,
        x_lower=x_lower,
        x_upper=x_upper,
        clip=clip,
        classes=classes,
        margin_of=margin_of,
        pairs=pairs,
        norm=norm,
        outputs=outputs,
        inputs=inputs,
    )
    return prepared.bound(problem, tolerance=tolerance, sampling=Sampling(seed=seed))
