"""For the site's builder: pages that lie outside of docs/ come in, and the contents list what is there."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# File in the repository -> page of the site.
OUTSIDE = {
    **{card: f"models/{card.name}" for card in sorted((ROOT / "weights").glob("*.md"))},
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "README.md": "index.md",
}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append to the contents what mkdocs.yml does not name."""
    nav: list[Any] = list(config.nav or [])
    named = {"index.md"}
    references = sorted(path.name for path in DOCS.glob("*.md") if path.name not in named)
    cards = [page for page in OUTSIDE.values() if page.startswith("models/")]
    decisions = sorted(f"decisions/{path.name}" for path in (DOCS / "decisions").glob("*.md"))
    nav += [{"Reference": [*references, "changelog.md"]}, {"Models": cards}, {"Decisions": decisions}]
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/."""
    for source, page in OUTSIDE.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=source.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository at the site's pages."""
    here = page.file.src_uri
    source = next((path for path, name in OUTSIDE.items() if name == here and name != "index.md"), DOCS / here)

    def to_site(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if target in OUTSIDE:
            wanted = OUTSIDE[target]
        elif target.is_relative_to(DOCS):
            wanted = target.relative_to(DOCS).as_posix()
        else:
            return match[1]  # the builder will say that it leads nowhere
        return os.path.relpath(wanted, Path(here).parent.as_posix())

    return LINK.sub(to_site, markdown)
