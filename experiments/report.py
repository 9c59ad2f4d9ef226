"""Turns the rows that main.py wrote into tables and pictures.

Example: python experiments/report.py output/quickstart/*.jsonl --output output/quickstart
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.figures import draw_radii, draw_sizes, draw_traces
from experiments.jobs import read_jobs
from experiments.rows import read_results
from experiments.tables import document, to_latex
from experiments.units import axis_of
from utils import Parser, atomic_write_bytes, run_cli


def main(argv: list[str] | None = None) -> int:
    """Reads rows, prints the table, saves tables and pictures; draws traces."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROWS.jsonl",
        help="files of main.py --output; notes.jsonl beside them says what has no row",
    )
    parser.add_argument(
        "--only", metavar="JOBS.txt", help="the rows of these jobs alone, see parallel.py"
    )
    parser.add_argument("--trace", nargs="+", metavar="T.jsonl", help="files of main.py --trace")
    parser.add_argument("--output", default="output", help="folder (default output)")
    parser.add_argument("--title", help="heading of the Markdown document")
    args = parser.parse_args(argv)
    folder = Path(args.output)
    if not args.rows and not args.trace:
        parser.error("no files: give rows of main.py --output, or --trace and its files")
    saved = []
    if args.trace:
        draw_traces(args.trace, folder / "trace.png")
        saved += ["trace.png", "trace.pdf"]
    if args.rows:
        only = None if args.only is None else {job.id for job in read_jobs(args.only)}
        results = read_results(args.rows, only)
        markdown = document(results, args.title)
        texts = {"table.md": markdown}
        if len(results.means):
            texts |= {
                "table.csv": results.means.to_csv(index=False),
                "table.tex": to_latex(results),
            }
            draw_radii(results.means, folder / "bounds", axis_of(results.units))
            drawn = ["bounds", *(path.name for path in draw_sizes(results.means, folder))]
            saved += [name + suffix for name in drawn for suffix in (".png", ".pdf")]
        for name, text in texts.items():
            atomic_write_bytes(folder / name, text.encode())
        saved = [*texts, *saved]
        print(markdown)
    print(f"saved {', '.join(str(folder / name) for name in saved)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
