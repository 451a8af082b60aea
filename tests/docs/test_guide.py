"""Every command of the guide, run as its reader would, page by page, against a service with the shipped weights."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.kit import GUIDE, read_blocks
from tests.e2e.kit import ROOT, ServerProcess

PAGES = [*sorted(GUIDE.glob("*.md")), ROOT / "README.md"]
ADDRESS = "http://localhost:8000"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for one page puts a model into it."""
    folder = tmp_path_factory.mktemp("guide") / "weights"
    folder.mkdir()
    shutil.copy(ROOT / "weights" / "best_model.pth", folder)
    return folder


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[ServerProcess]:
    with ServerProcess(weights, weights.parent / "server.log", {"reload_poll_s": 0.5}) as process:
        yield process


@pytest.fixture
def checkout(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository to the guide's reader, so that nothing is left behind in the real one."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "weights").symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_shell(text: str, folder: Path, url: str) -> str:
    text = text.replace(ADDRESS, url)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASKWELL_URL": url}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(text: str, names: dict[str, Any], url: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text.replace(ADDRESS, url), "guide", "exec"), names)
    return printed.getvalue()


def without_numbers(text: str) -> str:
    """Counts depend on the weights, and a little on the processor."""
    return re.sub(r"\d+(\.\d+)?", "N", text).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_do_what_it_says(page: Path, server: ServerProcess, checkout: Path) -> None:
    names: dict[str, Any] = {"__name__": "guide"}
    printed = ""
    for block in read_blocks(page):
        if block.why is not None or block.kind in ("", "text"):
            continue
        where = f"{page.name}:{block.line}"
        assert block.kind in ("sh", "python", "output"), f"{where}: {block.kind}"
        if block.kind == "sh":
            printed = run_shell(block.text, checkout, server.url)
        elif block.kind == "python":
            printed = run_python(block.text, names, server.url)
        else:
            assert without_numbers(printed) == without_numbers(block.text), where
    if page.stem == "your-data":
        assert {path.name for path in (checkout / "masks").rglob("*.png")} == {"a_labels.png", "b_labels.png"}


def test_every_page_has_commands_that_are_run() -> None:
    assert len(PAGES) >= 7
    for page in PAGES:
        assert any(block.why is None and block.kind in ("sh", "python") for block in read_blocks(page)), page.name


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(server: ServerProcess, tmp_path: Path) -> None:
    script = (
        "import nbformat, sys\n"
        "from nbclient import NotebookClient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "NotebookClient(notebook, timeout=240, resources={'metadata': {'path': sys.argv[2]}}).execute()\n"
        "print('\\n'.join(str(output) for cell in notebook.cells for output in cell.get('outputs', [])))\n"
    )
    environment = {**os.environ, "MASKWELL_URL": server.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(GUIDE / "notebook.ipynb"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of the pixels are cell" in done.stdout
    assert done.stdout.count("image/png") == 2
