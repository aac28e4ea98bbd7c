"""What the user decides for the daemon once and for all jobs."""

import os
from pathlib import Path

import pytest

from daemon.settings import DaemonSettings, Settings, load_settings, settings_file
from presets.errors import UserError


def loaded(tmp_path: Path, text: str | bytes) -> Settings:
    path = settings_file(tmp_path)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(path)


def test_a_missing_file_means_all_defaults(tmp_path: Path):
    assert load_settings(settings_file(tmp_path)) == Settings() == loaded(tmp_path, "")
    assert Settings().daemon == DaemonSettings(on_boot="ask", restarts=3, restart_delay=10.0)


def test_what_is_written_counts(tmp_path: Path):
    found = loaded(tmp_path, '[daemon]\non_boot = "resume"\nrestarts = 0\nrestart_delay = 2\n')
    assert found.daemon == DaemonSettings(on_boot="resume", restarts=0, restart_delay=2.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[daemon]\non_boot = "always"', "daemon.on_boot"),
        ("[daemon]\nrestarts = -1", "daemon.restarts"),
        ("[daemon]\nrestart_delay = 1e9", "daemon.restart_delay"),
        ("[daemon]\non_bot = 1", "on_bot"),
        ("[deamon]", "deamon"),
        ("daemon", "not valid TOML"),
        (b"\xff", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, text, problem):
    with pytest.raises(UserError, match=problem) as refused:
        loaded(tmp_path, text)
    assert refused.value.where == str(tmp_path / "settings.toml") and refused.value.fix


@pytest.mark.parametrize("name", ["settings.toml", "."])
def test_settings_that_everybody_may_write_to_are_refused(tmp_path: Path, name: str):
    """They say which commands run."""
    path = tmp_path / "settings.toml"
    path.write_text("")
    (tmp_path / name).chmod(0o777)
    with pytest.raises(UserError, match="every user may write there") as caught:
        load_settings(path)
    assert caught.value.where == str(tmp_path / name) and "chmod o-w" in caught.value.fix
    (tmp_path / name).chmod(0o1777 if name == "." else 0o775)
    assert load_settings(path) == Settings()


def test_what_cannot_be_read_says_why(tmp_path: Path):
    settings_file(tmp_path).mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        load_settings(settings_file(tmp_path))
    settings_file(tmp_path).rmdir()
    os.mkfifo(settings_file(tmp_path))
    with pytest.raises(UserError, match="it is a named pipe"):
        load_settings(settings_file(tmp_path))
    settings_file(tmp_path).unlink()
    settings_file(tmp_path).write_bytes(bytes(2**19))
    with pytest.raises(UserError, match="it has 524,288 bytes, and such a file at most 262,144"):
        load_settings(settings_file(tmp_path))
