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


def test_networks_of_examples_are_trained_long_enough():
    # the default of 10 epochs leaves these two at 29 % and 62 % of the test points
    pages = [README, *(ROOT / "docs").glob("**/*.md")]
    text = "\n".join(page.read_text().replace("\\\n", " ") for page in pages)
    calls = re.findall(r"train_model\.py .*--data (?:simple|cancer)\b.*", text)
    assert calls
    for call in calls:
        epochs = re.search(r"--num-epochs (\d+)", call)
        assert epochs, call
        assert int(epochs[1]) >= 100, call
