"""The guide as its reader meets it: pages, blocks of code, links."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.kit import ROOT

GUIDE = ROOT / "docs" / "guide"
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `why` says why the tests do not run it."""

    kind: str
    text: str
    line: int
    why: str | None


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["kind"], found["text"], text.count("\n", 0, found.start()) + 1, found["why"])
        for found in FENCE.finditer(text)
    ]


def read_links(page: Path) -> list[str]:
    """Addresses of links and pictures, code left out."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    return LINK.findall(text)


def read_anchors(page: Path) -> set[str]:
    """What `#...` may lead to, as Git forges name headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text))
    return set(slugs)
