"""``main.py --certify``: certified robust radii."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from commands.options import classes_of
from commands.rows import SCHEMA, shown_label
from lipschitz.applications.radii import certify_example
from utils import duration, significant, versions

if TYPE_CHECKING:
    from commands.run import Run

CERTIFIED, MISCLASSIFIED = "certified", "misclassified"


def certify_row(run: Run, index: int, label: int) -> dict[str, Any]:
    """The certified radius around one of the points, in pixels, as a row."""
    args, points = run.args, run.points
    found = certify_example(
        run.prepared,
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
        **run.settings,
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
        f"example {row['example']} label {shown_label(row)} radius {significant(row['radius'])} "
        f"margin {significant(row['margin'])} nearest {row['nearest']} status {row['status']} "
        f"seconds {duration(row['seconds'])}"
    )


def certify_summary(rows: list[dict[str, Any]]) -> str:
    """The last line of ``--certify``: how many, and the mean over all examples."""
    certified = sum(row["status"] == CERTIFIED for row in rows)
    mean, seconds = (sum(row[k] for row in rows) / len(rows) for k in ("radius", "seconds"))
    return (
        f"certified {certified}/{len(rows)} avg_radius {significant(mean)} "
        f"avg_time {duration(seconds)}"
    )
