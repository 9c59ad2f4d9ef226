"""Bounds of networks that others trained, over true gradients that an attack of its own finds.

Every network of the manifest in a folder is bounded on its boxes by every method, each within a
time limit, and attacked for as long as the longest of them took, by code that shares nothing with
the library. Rows are added to OUTPUT/others.csv as they come; the same command goes on where it was
stopped.

Example: python -m benchmarks.others --nets nets --set table --timeout 60 --output results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.others.box import Entry
from benchmarks.others.manifest import SETS, Box, boxes_of, read_manifest
from benchmarks.others.process import rows_of
from benchmarks.others.report import STEM, draw, markdown, summary_lines, wrong_lines
from benchmarks.others.rows import ATTACK, Row, RowFile, row_of
from benchmarks.others.verdicts import Verdict, check_published, summary, verdict
from lipschitz.errors import InputError
from utils import Parser, run_cli

PUBLISHED = "published"
# Half the side of the box that stands for all inputs where a constant is published for these.
_LARGE_BOX = 1e3
# Seconds that the attack has at least, within the limit, however fast the methods were.
_LEAST_ATTACK = 5.0
# Methods that a published constant of all inputs is compared with.
_PUBLISHED_METHODS = ["global", "alpha", "bab"]


def main(argv: list[str] | None = None) -> int:
    """Measure what is not measured yet, print and write the scoreboard.

    Returns:
        1 if anything is wrong with the bounds, 0 otherwise.
    """
    args = _parsed(argv)
    entries = read_manifest(args.nets)
    boxes = boxes_of(entries, args.set, args.only)
    methods = _methods(args.methods)
    file = RowFile(args.output / f"{STEM}.csv")
    if not args.report_only:
        for row in _measured(boxes, methods, args, file):
            print(_said(row), flush=True)
    return _report(boxes, methods, args, file)


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", type=Path, required=True, help="folder with a manifest.json")
    parser.add_argument("--set", choices=(*SETS, "all"), default="all", help="(default all)")
    parser.add_argument("--methods", help="comma-separated; ibp,crown,joint,alpha,sdp,bab if not")
    parser.add_argument("--only", help="names of networks, comma-separated")
    parser.add_argument("--timeout", type=float, default=60, help="seconds each (default 60)")
    parser.add_argument("--memory", type=float, default=8, help="GiB of a process (default 8)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the attack (default 0)")
    parser.add_argument("--report-only", action="store_true", help="of the rows that are there")
    parser.add_argument("--output", type=Path, default=Path("others"), help="(default others)")
    args = parser.parse_args(argv)
    for name in ("timeout", "memory", "threads"):
        if not 0 < getattr(args, name) < float("inf"):
            raise InputError(f"--{name} {getattr(args, name)}: expected a number above 0")
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output {args.output}: expected a folder")
    return args


def _methods(given: str | None) -> list[str]:
    from benchmarks.others.library import LADDER, known_methods

    if given is None:
        return list(LADDER)
    chosen = given.split(",")
    for name in chosen:
        if name not in known_methods():
            raise InputError(f"--methods {name}: expected {', '.join(known_methods())}")
    return [name for name in known_methods() if name in chosen]


def _measured(
    boxes: Sequence[Box], methods: list[str], args: argparse.Namespace, file: RowFile
) -> Iterator[Row]:
    """Rows that the file does not have yet, added to it as they come."""
    for box in boxes:
        cells = {"set": box.group, "network": box.name, "eps": box.eps}
        place = {"entry": box.entry, "eps": box.eps}
        yield from _run({"kind": "bounds", "methods": methods, **place}, cells, args, file)
        own = [row for row in _rows_of(box, args, file) if row.method in (ATTACK, *methods)]
        longest = max(row.seconds or 0.0 for row in own)
        seconds = min(args.timeout, max(longest, _LEAST_ATTACK))
        attack = {"kind": "attack", "methods": [ATTACK], "seconds": seconds, **place}
        yield from _run(attack, cells, args, file)
    for entry in _with_published(boxes):
        if entry[PUBLISHED]["value"] is None:
            continue
        cells = {"set": PUBLISHED, "network": entry["name"], "eps": entry[PUBLISHED]["region"]}
        place = {
            "entry": entry,
            "norm": str(entry[PUBLISHED]["norm"]),
            "all_within": _LARGE_BOX,
            "precise": True,
        }
        bounds = {"kind": "bounds", "methods": _PUBLISHED_METHODS, **place}
        yield from _run(bounds, cells, args, file)
        yield from _run({"kind": "attack", "methods": [ATTACK], **place}, cells, args, file)


def _rows_of(box: Box, args: argparse.Namespace, file: RowFile) -> list[Row]:
    """Rows of a box with the time limit that is asked for."""
    return [
        row
        for row in file.rows
        if row.key[:2] == (box.name, box.eps)
        and row.timeout == args.timeout
        and row.set != PUBLISHED
    ]


def _run(
    job: dict[str, Any], cells: dict[str, str], args: argparse.Namespace, file: RowFile
) -> Iterator[Row]:
    wanted = [
        method
        for method in job["methods"]
        if not file.has((cells["network"], cells["eps"], method, args.timeout), job.get("seconds"))
    ]
    if not wanted:
        return
    job = {
        "seconds": args.timeout,
        **job,
        "methods": wanted,
        "folder": str(args.nets.resolve()),
        "threads": args.threads,
        "memory": args.memory,
        "seed": args.seed,
    }
    for said in rows_of(job):
        row = row_of(said, **cells, timeout=args.timeout)
        file.add(row)
        yield row


def _with_published(boxes: Sequence[Box]) -> list[Entry]:
    entries = {box.name: box.entry for box in boxes if PUBLISHED in box.entry}
    return list(entries.values())


def _said(row: Row) -> str:
    numbers = [
        f"{name} {value:.6g}"
        for name, value in (("upper", row.upper), ("lower", row.lower))
        if value is not None
    ]
    seconds = [] if row.seconds is None else [f"{row.seconds:.2f} s"]
    parts = [row.network, f"eps {row.eps}", row.method, *numbers, row.status, *seconds, row.note]
    return "  ".join(filter(None, parts))


def _report(
    boxes: Sequence[Box], methods: list[str], args: argparse.Namespace, file: RowFile
) -> int:
    from benchmarks.others.library import LADDER

    verdicts: list[Verdict] = []
    for box in boxes:
        own = [row for row in _rows_of(box, args, file) if row.method in (ATTACK, *methods)]
        if own:
            verdicts.append(verdict(own, LADDER))
    if not verdicts:
        raise InputError(f"{file.path} has no rows of these boxes at --timeout {args.timeout:g}")
    groups = {name: [v for v in verdicts if v.group == name] for name in SETS}
    groups = {name: found for name, found in groups.items() if found}
    summaries = {name: summary(found, methods) for name, found in groups.items()}
    published, contradictions = _published_lines(boxes, args, file)
    how = (
        f"At most {args.timeout:g} s a method, the attack as long as the slowest; {args.threads} "
        f"CPU thread(s), at most {args.memory:g} GiB."
    )
    text = markdown(groups, summaries, methods, published, how)
    (args.output / f"{STEM}.md").write_text(text)
    draw(verdicts, methods, args.output / f"{STEM}.png")
    for name, found in summaries.items():
        print("\n".join([f"{name}:", *(f"  {line}" for line in summary_lines(found))]))
    print("\n".join(f"published: {line}" for line in published))
    wrong = wrong_lines(groups)
    for line in (*contradictions, *wrong):
        print(f"WRONG  {line}", file=sys.stderr)
    print(f"written: {args.output / STEM}.csv, .md, .png")
    return int(bool(contradictions) or any(v.wrong for v in verdicts))


def _published_lines(
    boxes: Sequence[Box], args: argparse.Namespace, file: RowFile
) -> tuple[list[str], list[str]]:
    """A line about every published value, and those that are contradicted."""
    lines, contradictions = [], []
    for entry in _with_published(boxes):
        own = [
            row
            for row in file.rows
            if (row.set, row.network, row.timeout) == (PUBLISHED, entry["name"], args.timeout)
        ]
        given = entry[PUBLISHED]
        text, contradicted = check_published(entry, own)
        shown = "" if given["value"] is None else f" {given['value']:.10g}"
        line = f"{entry['name']}, L{given['norm']}, {given['region']}:{shown} {text}"
        lines.append(line)
        if contradicted:
            contradictions.append(line)
    return lines, contradictions


if __name__ == "__main__":
    sys.exit(run_cli(main))
