"""Schemathesis on the whole OpenAPI document, with all of its checks."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import ServerProcess
from tests.faults.kit import check_at_rest, counts

KEY = "a-key-of-some-length"
# What a schema cannot say: that an image has a page 3, or axes YXS. 422 is right for these. 5xx, which the check allows
# by default, is not.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 415, 422, 429]
"""


@pytest.fixture(scope="module")
def server(shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"admin_key": KEY, "log_level": "error", "max_pixels": 1 << 20}
    with ServerProcess(shared_weights, tmp_path_factory.mktemp("log") / "log", settings) as process:
        yield process


@pytest.mark.parametrize("examples", counts(short=5, long=200))
def test_every_operation_keeps_what_the_document_promises(server: ServerProcess, tmp_path: Path, examples: int) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(tmp_path / "schemathesis.toml"),
        "run", f"{server.url}/openapi.json", "--checks", "all", "--max-examples", str(examples), "--seed", "1",
        "--header", f"Authorization: Bearer {KEY}", "--request-timeout", "120", "--no-color",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    check_at_rest(server)
    [counted] = re.findall(r"\d+ generated.*", ended.stdout)[-1:]
    print(f"schemathesis: {counted}")
