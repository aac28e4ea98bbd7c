"""The lines that systemd and cron are given: each word comes back as it was, whatever is in it."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.services import crontab, systemd
from daemon.services.command_line import daemon_command, kept_variables

ODD = Path("/srv/my data/100% \"sure\" $HOME 'it' \\ {b}")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "XDG_STATE_HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", '/odd "state" 5%')


def test_the_command_is_that_of_this_interpreter():
    assert daemon_command(None) == [sys.executable, "-m", "daemon", "--log"]
    assert daemon_command(Path("/d")) == [sys.executable, "-m", "daemon", "--log", "--dir", "/d"]
    assert kept_variables({"PATH": "/bin", "HF_TOKEN": "secret", "PYTHONPATH": ""}) == {"PATH": "/bin"}


def test_each_folder_has_its_own_unit():
    names = {systemd.unit_name(dir) for dir in (None, Path("/a"), Path("/b"))}
    assert len(names) == 3 and "wanlora.service" in names
    assert all(name.startswith("wanlora") and name.endswith(".service") for name in names)


def test_odd_paths_are_quoted_for_systemd():
    text = systemd.unit_text(ODD)
    [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart=").replace("%%", "%").replace("$$", "$"))
    assert words == daemon_command(ODD)
    assert 'Environment="XDG_STATE_HOME=/odd \\"state\\" 5%%"' in text


@pytest.mark.process
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    unit = tmp_path / "wanlora.service"
    unit.write_text(systemd.unit_text(ODD))
    said = subprocess.run(["systemd-analyze", "verify", "--user", unit], capture_output=True, text=True, check=False)
    assert said.returncode == 0 and "wanlora" not in said.stderr, said


@pytest.mark.process
def test_a_shell_reads_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "py thon"))
    program = tmp_path / "py thon"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$XDG_STATE_HOME" "$@"\n')
    program.chmod(0o755)
    wanted = ['/odd "state" 5%', *daemon_command(ODD)[1:]]
    said = subprocess.run(["/bin/sh", "-c", crontab.shell_line(ODD)], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == wanted
    line = crontab.cron_line(ODD)
    assert line.startswith("@reboot ") and "\n" not in line
    assert "%" not in line.replace("\\%", "")  # cron would end the command there
    command = line.removeprefix("@reboot ").replace("\\%", "%")  # as cron hands it on
    said = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == wanted
