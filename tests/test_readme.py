"""README stays short, says things in the right order, and its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


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
