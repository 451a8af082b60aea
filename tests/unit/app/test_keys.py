import asyncio
import errno
import os
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.__main__ import main
from app.files import Signature
from app.files import sign as real_sign
from app.keys import KeyRing, KeysError, make_key, parse_keys
from app.service import Service
from app.settings import Settings


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_key_is_found_by_itself_and_by_nothing_else(tmp_path: Path) -> None:
    alice, alice_line = make_key("alice", "user")
    boss, boss_line = make_key("boss", "admin")
    ring = KeyRing(Settings(keys_file=write(tmp_path / "keys", "# ours", "", alice_line, f"  {boss_line}  ")))
    assert ring.required
    assert ring.has_admin
    for key, name, role in ((alice, "alice", "user"), (boss, "boss", "admin")):
        found = ring.find(key)
        assert found is not None
        assert (found.name, found.role) == (name, role)
        assert key not in repr(found)
        assert key not in (alice_line, boss_line)
    for wrong in ("", alice[:-1], alice + "x", alice.upper(), alice_line.split(":")[1], "ü", "\udcff"):
        assert ring.find(wrong) is None


def test_two_keys_are_never_alike_and_hold_256_bits() -> None:
    keys = {make_key("x", "user")[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("mw_") and len(key) == 46 for key in keys)


def test_an_expired_key_is_none_and_one_is_good_on_its_last_day(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    keys = {days: make_key(f"d{days}", "user", today + timedelta(days)) for days in (-1, 1)}
    ring = KeyRing(Settings(keys_file=write(tmp_path / "keys", *(line for _, line in keys.values()))))
    assert ring.find(keys[-1][0]) is None
    assert ring.find(keys[1][0]) is not None
    assert parse_keys(keys[1][1], "x")[0].expires == today + timedelta(1)


def test_keys_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [make_key(name, "user") for name in ("a", "b")]
    monkeypatch.setenv("MASKWELL_KEYS", ";".join(line for _, line in lines))
    settings = Settings()
    ring = KeyRing(settings)
    assert [ring.find(key) is not None for key, _ in lines] == [True, True]
    assert "sha256" not in repr(settings)


def test_the_admin_key_alone_closes_nothing_to_users() -> None:
    ring = KeyRing(Settings(admin_key=SecretStr("0123456789abcdef")))
    assert (ring.required, ring.has_admin) == (False, True)
    found = ring.find("0123456789abcdef")
    assert found is not None
    assert (found.name, found.role) == ("admin", "admin")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("alice user sha256:12", "line 1: not NAME user|admin sha256"),
        ("alice root sha256:" + "0" * 64, "line 1"),
        ("# only words", "holds no key"),
        ("", "holds no key"),
        ("a user sha256:" + "0" * 64 + " expires=2026-02-31", "line 1"),
        ("a user sha256:" + "0" * 64 + "\na user sha256:" + "1" * 64, "several keys are named a"),
        ("mw_an-own-key-in-place-of-its-digest", "line 1"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_being_shown(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(KeysError) as caught:
        KeyRing(Settings(keys_file=write(tmp_path / "keys", text)))
    assert reason in str(caught.value).replace("`", "")
    assert "mw_an-own-key" not in str(caught.value)
    assert "0000" not in str(caught.value)


def test_a_missing_file_of_keys_ends_start_up_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASKWELL_KEYS_FILE", str(tmp_path / "none"))
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: MASKWELL_KEYS_FILE: ")


def test_a_changed_file_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, old_line = make_key("old", "user")
    new, new_line = make_key("new", "user")
    ring = KeyRing(Settings(keys_file=write(tmp_path / "keys", old_line)))

    def replace(*lines: str) -> None:
        write(tmp_path / "part", *lines).replace(tmp_path / "keys")
        ring.refresh()

    replace(old_line, new_line)
    assert (ring.find(old) is not None, ring.find(new) is not None) == (True, True)
    replace("rubbish")
    assert ring.find(new) is not None
    assert "the keys before stay in force" in caplog.text
    replace(new_line)
    assert (ring.find(old) is None, ring.find(new) is not None) == (True, True)
    os.unlink(tmp_path / "keys")  # noqa: PTH108  # as an orchestrator does between two versions
    ring.refresh()
    assert ring.find(new) is not None


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, line = make_key("alice", "user")
    path = write(tmp_path / "keys", line)
    ring = KeyRing(Settings(keys_file=path))
    path.unlink()
    os.mkfifo(path)
    ring.refresh()
    assert "it is no ordinary file; the keys before stay in force" in caplog.text
    assert ring.find(key) is not None
    with pytest.raises(KeysError, match="no ordinary file"):
        KeyRing(Settings(keys_file=path))


def test_a_file_that_could_not_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(Settings(keys_file=write(tmp_path / "keys", make_key("alice", "user")[1])))
    bob, line = make_key("bob", "user")
    write(tmp_path / "keys", line)
    with monkeypatch.context() as patch:

        def fail(*_: object, **options: object) -> str:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(Path, "read_text", fail)
        ring.refresh()
        ring.refresh()
    assert caplog.text.count("Input/output error; the keys before stay in force") == 1
    assert ring.find(bob) is None
    ring.refresh()
    assert ring.find(bob) is not None


def test_whatever_goes_wrong_at_a_look_there_is_a_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(Settings(keys_file=write(tmp_path / "keys", make_key("alice", "user")[1]), reload_poll_s=0.01))
    bob, line = make_key("bob", "user")
    write(tmp_path / "keys", line)
    honest, failures = threading.Thread.start, iter([RuntimeError("can't start new thread")])

    def start(thread: threading.Thread) -> None:
        if thread.name == "keys":
            for failure in failures:
                raise failure
        honest(thread)

    monkeypatch.setattr(threading.Thread, "start", start)

    async def main() -> None:
        watch = asyncio.create_task(service._watch_keys())
        while service.keys.find(bob) is None:
            await asyncio.sleep(0.01)
        watch.cancel()

    try:
        asyncio.run(asyncio.wait_for(main(), 60))
    finally:
        service.close()


def test_a_file_of_keys_on_a_share_that_does_not_answer_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.service.KEYS_DEADLINE_S", 0.1)
    go_on, looks = threading.Event(), 0
    key, line = make_key("alice", "user")
    service = Service(Settings(keys_file=write(tmp_path / "keys", line), reload_poll_s=0.01))

    def sign(path: Path) -> Signature | None:
        nonlocal looks
        looks += 1
        go_on.wait()
        return real_sign(path)

    monkeypatch.setattr("app.keys.sign", sign)

    async def main() -> None:
        watch = asyncio.create_task(service._watch_keys())
        try:
            while "does not answer" not in caplog.text:  # so the loop is not held up
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert looks == 1  # a second look would hang too, and might end first
            assert service.keys.find(key) is not None
            new, new_line = make_key("new", "user")
            write(tmp_path / "keys", new_line)
            go_on.set()
            while service.keys.find(new) is None:
                await asyncio.sleep(0.01)
            assert service.keys.find(key) is None
        finally:
            go_on.set()
            watch.cancel()

    try:
        asyncio.run(asyncio.wait_for(main(), 60))
    finally:
        service.close()


def test_new_permissions_alone_make_a_file_be_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", make_key("alice", "user")[1])
    ring = KeyRing(Settings(keys_file=path))
    before = ring._signature()
    path.chmod(0o600 if path.stat().st_mode & 0o044 else 0o644)
    assert ring._signature() != before


def test_the_command_prints_the_line_alone_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "alice", "--admin", "--expires", "2031-05-06"]) == 0
    printed = capsys.readouterr()
    [key] = parse_keys(printed.out, "x")
    assert (key.name, key.role, key.expires) == ("alice", "admin", date(2031, 5, 6))
    [shown] = [line for line in printed.err.splitlines() if line.startswith("mw_")]
    ring = KeyRing(Settings(keys=SecretStr(printed.out)))
    assert ring.find(shown) is not None
    assert main(["key", "a b"]) == 2
    assert "a name has 1 to 64" in capsys.readouterr().err
