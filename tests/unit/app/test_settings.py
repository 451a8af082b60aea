from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, describe_mistakes, describe_settings, describe_strangers


def test_each_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"MASKWELL_{name.upper()}" in describe_settings()


def test_settings_come_from_the_environment_and_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWELL_WEIGHTS_DIR", "/models")
    monkeypatch.setenv("MASKWELL_BATCH_WAIT_MS", "2.5")
    settings = Settings()
    assert (settings.weights_dir, settings.batch_wait_ms) == (Path("/models"), 2.5)
    with pytest.raises(ValidationError):
        setattr(settings, "port", 1)  # noqa: B010  # a plain assignment is refused by the type checker already


def test_a_variable_that_is_no_setting_is_told() -> None:
    environment = {
        "MASKWELL_KEY_FILE": "keys.txt",
        "maskwell_port": "1",
        "MASKWELL_URL": "x",
        "MASKWELL_KEY": "x",
        "HOME": "/",
    }
    assert describe_strangers(environment) == [
        "MASKWELL_KEY_FILE is no setting and is ignored; is MASKWELL_KEYS_FILE meant?"
    ]
    assert describe_strangers({"MASKWELL_KEY": "alice user sha256:0"}) == [
        "MASKWELL_KEY is no setting and is ignored; is MASKWELL_KEYS meant?"
    ]


def test_an_empty_variable_is_as_if_it_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEYS", "ADMIN_KEY", "LOG_FORMAT", "PORT", "CACHE_DIR"):
        monkeypatch.setenv(f"MASKWELL_{name}", "")
    assert Settings() == Settings.model_construct()


def test_mistakes_are_told_by_the_variable_s_name_and_secrets_are_not_told() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"port": 0, "admin_key": "hunter2"})
    text = describe_mistakes(caught.value)
    assert "MASKWELL_PORT" in text
    assert "MASKWELL_ADMIN_KEY" in text
    assert "hunter2" not in text
    assert "hunter2" not in str(Settings.model_construct(admin_key=None))


def test_the_admin_key_is_never_shown() -> None:
    settings = Settings.model_validate({"admin_key": "0123456789abcdef"})
    assert "0123456789abcdef" not in repr(settings)


def test_workers_share_the_cores_evenly_and_each_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.available_cpus", lambda: 9)
    shares = {workers: Settings(workers=workers).cores for workers in (1, 2, 4, 9, 16)}
    assert shares == {1: 9, 2: 4, 4: 2, 9: 1, 16: 1}
    assert Settings(workers=2, codec_threads=0).codec_thread_count == 4
    assert Settings(workers=2, codec_threads=3).codec_thread_count == 3
