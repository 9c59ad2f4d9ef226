"""What the command line asks of one example."""

from __future__ import annotations

from argparse import Namespace

from data.points import Points
from lipschitz import Prepared
from utils import numbers


def label_of(prepared: Prepared, points: Points, index: int) -> int:
    """The label of a point, or the class that the network predicts if it has none."""
    if points.labels is not None:
        return int(points.labels[index])
    at = points.x[index][None].to(device=prepared.graph.device, dtype=prepared.graph.dtype)
    return int(prepared.graph.values(at)[-1].argmax())


def classes_of(args: Namespace) -> list[int] | None:
    """The outputs named by ``--classes``."""
    return None if args.classes is None else numbers("--classes", args.classes, int)
