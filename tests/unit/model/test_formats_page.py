"""What docs/formats.md says is held by tests that exist."""

import re
from pathlib import Path

from tests.unit.model.test_formats import CASES, SIZES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "formats.md").read_text()


def test_every_rule_of_the_page_names_tests_that_exist() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    functions = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.M)}
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(tuple(HEADS))]
    assert len(rows) > 40
    for row in rows:
        named = re.search(r"<!-- (.+?) -->", row)
        assert named, row
        for name in named[1].split("; "):
            assert name in functions or name in CASES or name in SIZES, name


HEADS = ("| format |", "| matter |", "| what the file holds |", "| query |", "| source |", "| output |")


def test_more_than_60_kinds_of_file_are_tried() -> None:
    assert len(CASES) > 60
