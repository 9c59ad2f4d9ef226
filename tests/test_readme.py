"""README stays short and says things in the right order; what README and docs/ name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").glob("**/*.md")])
# `lipschitz/search/loop.py`, `experiments/`; not a file that a reader makes.
_OURS = re.compile(
    r"`((?:lipschitz|commands|models|data|experiments|benchmarks|tests|results)/[\w./-]*)`"
)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def test_newcomer_reads_readme_in_three_minutes():
    assert len(README.read_text().splitlines()) < 200


def test_readme_says_what_a_bound_means_before_the_options():
    text = README.read_text()
    places = [
        text.index(part)
        for part in (
            "./run.sh",
            "| `status` |",
            "local_lipschitz(",
            "docs/options.md",
            "pip install .",
        )
    ]
    assert "Units" in text[: places[2]]
    assert places == sorted(places)


def test_links_of_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose(README))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    missing = [name for name in _OURS.findall(prose(page)) if not (ROOT / name).exists()]
    assert not missing
