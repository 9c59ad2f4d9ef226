"""Checks of certified signs against true gradients, for the tests of applications."""

from __future__ import annotations

from oracles import jacobian, jacobians

from lipschitz.applications.jacobian import box_problem
from lipschitz.applications.signs import CONSTANT, DECREASING, INCREASING, NEITHER


def contradictions(model, problem, signs, points):
    """Entries whose certificate a sampled true gradient refutes, or whose witness is none."""
    values = jacobians(model, points).flatten(2)
    wrong = []
    for sign in signs:
        row = problem.row_names.index(sign.row)
        entry = values[:, row, sign.feature]
        slack = 1e-10 * (1 + float(entry.abs().max()))
        rises = sign.verdict in (INCREASING, CONSTANT)
        falls = sign.verdict in (DECREASING, CONSTANT)
        fine = sign.lower - slack <= entry.min() and entry.max() <= sign.upper + slack
        fine &= not (rises and entry.min() < -slack) and not (falls and entry.max() > slack)
        for witness, direction in ((sign.positive, 1), (sign.negative, -1)):
            if witness is not None:
                inside = (witness >= problem.lower) & (witness <= problem.upper)
                there = jacobian(model, witness).flatten(1)[row, sign.feature]
                fine &= bool(inside.all()) and float(direction * there) > 0
        if sign.verdict == NEITHER:
            fine &= sign.positive is not None and sign.negative is not None
        if not fine:
            wrong.append(sign)
    return wrong


def line_problem(graph, x, feature, low=0.0, high=1.0):
    lower, upper, centre = x.clone(), x.clone(), x.clone()
    lower.view(-1)[feature], upper.view(-1)[feature] = low, high
    centre.view(-1)[feature] = (low + high) / 2
    return box_problem(graph, centre, box=(lower, upper))
