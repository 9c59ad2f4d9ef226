"""``main.py --certify``: certified robust radii."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from commands.examples import classes_of, label_of
from commands.rows import SCHEMA
from data.points import Points
from lipschitz import Prepared
from lipschitz.applications.radii import certify_example
from utils import versions

CERTIFIED, MISCLASSIFIED = "certified", "misclassified"


def certify_row(
    args: Namespace, prepared: Prepared, points: Points, index: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The certified radius around one of the points, in pixels, as a row."""
    label = label_of(prepared, points, index)
    found = certify_example(
        prepared,
        points.x[index],
        label,
        norm=args.norm,
        classes=classes_of(args),
        clip=points.clip if args.input_clipping else None,
        seed=args.seed,
    )
    return {
        "schema": SCHEMA,
        "example": args.start + index,
        "label": label,
        **settings,
        # Channels of different std: the ball of pixels inside the one that is certified.
        "radius": found.radius / float(points.unit.max()),
        "margin": found.margin,
        "nearest": found.nearest,
        "evaluations": found.evaluations,
        "status": CERTIFIED if found.margin > 0 else MISCLASSIFIED,
        "seconds": found.seconds,
        "versions": versions(),
    }


def certify_line(row: dict[str, Any]) -> str:
    """The line printed for an example's radius."""
    return (
        f"example {row['example']} label {row['label']} radius {row['radius']:.5f} "
        f"margin {row['margin']:.4f} nearest {row['nearest']} status {row['status']} "
        f"seconds {row['seconds']:.2f}"
    )


def certify_summary(rows: list[dict[str, Any]]) -> str:
    """The last line of ``--certify``: how many, and the mean over all examples."""
    certified = sum(row["status"] == CERTIFIED for row in rows)
    mean, seconds = (sum(row[k] for row in rows) / len(rows) for k in ("radius", "seconds"))
    return f"certified {certified}/{len(rows)} avg_radius {mean:.5f} avg_time {seconds:.2f}"
