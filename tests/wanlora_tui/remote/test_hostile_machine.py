"""A machine that says nothing, or talks without end, holds up nobody here and fills neither memory nor disk."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from daemon.errors import DaemonError
from presets.errors import UserError
from wanlora_tui.remote import connection, far_process, ssh_line
from wanlora_tui.remote.connection import Connection
from wanlora_tui.remote.far_process import FarProcess, LineLost
from wanlora_tui.remote.far_shell import running
from wanlora_tui.remote.far_wanlora import KnownHosts
from wanlora_tui.remote.ssh_line import LONGEST_WORDS, SshLine

pytestmark = pytest.mark.process
FLOOD = [sys.executable, "-c", "while True: print('y' * 1000, flush=True)"]


class Line:
    """One whose other end does what a test says."""

    host = "box"

    def __init__(self, *command: str) -> None:
        self._command = command

    def session(self, script: str, *flags: str) -> list[str]:
        return [*self._command] if self._command else ["sh", "-c", script]


def started(line: Line, script: str = "true") -> FarProcess:
    return FarProcess(cast(SshLine, line), script)


def test_a_shell_that_never_begins_is_given_up(monkeypatch):
    monkeypatch.setattr(far_process, "BEGIN_SECONDS", 0.2)
    with pytest.raises(LineLost, match="box has not answered for 0 s") as told:
        started(Line("sleep", "1000"))
    assert "ssh box echo hello" in told.value.fix


def test_a_shell_that_only_makes_noise_is_given_up(monkeypatch):
    monkeypatch.setattr(far_process, "MOST_NOISE", 5000)
    with pytest.raises(DaemonError, match="the shell on box ran nothing") as told:
        started(Line(*FLOOD))
    assert len(str(told.value)) < 2000


def test_errors_without_end_fill_no_disk(monkeypatch):
    monkeypatch.setattr(far_process, "MOST_KEPT", 2**16)
    with started(Line(), "sleep 0.5; exec yes >&2") as process:
        assert process.wait(60) != 0
        assert len(process.stderr) <= 2**16
        with pytest.raises(LineLost):
            process.read()


@pytest.fixture
def there(tmp_path: Path, monkeypatch) -> Connection:
    found = Connection("box", tmp_path, KnownHosts(tmp_path))
    monkeypatch.setattr(found, "_up", Line)
    return found


def test_an_answer_without_end_is_refused(there: Connection, monkeypatch):
    monkeypatch.setattr(connection, "MOST_SAID", 2**20)
    with pytest.raises(DaemonError, match="box answers with more than 1 MiB"):
        there.run(running(FLOOD))


def test_a_search_for_wanlora_that_never_ends_is_given_up(there: Connection, monkeypatch):
    monkeypatch.setattr(connection, "FIND_SECONDS", 0.5)
    monkeypatch.setattr(connection, "status_script", lambda *paths: "exec sleep 1000")
    with pytest.raises(LineLost, match="box has not answered for 0 s"):
        there._find_daemon()
    with pytest.raises(LineLost, match="box has not answered for 1 s"):
        there.run(running(["sleep", "1000"]), timeout=1.0)


def ssh_that(does: str, tmp_path: Path, monkeypatch) -> SshLine:
    (tmp_path / "ssh").write_text(f"#!{sys.executable}\nimport sys, time\nfrom pathlib import Path\n{does}\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return SshLine("box", tmp_path / "socket", ask=False)


def test_words_without_a_line_end_are_not_kept(tmp_path: Path, monkeypatch):
    line = ssh_that("for i in range(300): sys.stderr.write('y' * 4000)", tmp_path, monkeypatch)
    while not line.has_ended:
        line.listen(0.1)
        assert len(line._said) <= LONGEST_WORDS
    line.close()
    assert all(len(words) <= LONGEST_WORDS for words in line.words)


def test_a_login_that_leads_to_no_shell_is_given_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ssh_line, "SHELL_SECONDS", 0.2)
    line = ssh_that("Path(sys.argv[3]).touch(); time.sleep(1000)", tmp_path, monkeypatch)
    assert not line.dial(lambda: False)
    assert "no shell has begun there" in line.last_words and line.process.returncode is not None


def test_what_ssh_says_of_a_line_that_is_gone_is_one_line(tmp_path: Path, monkeypatch):
    line = ssh_that("sys.stderr.write('one\\r\\n\\n two\\n'); sys.exit(255)", tmp_path, monkeypatch)
    with pytest.raises(UserError) as told:
        line.forward(tmp_path / "here", "/there")
    line.close()
    assert told.value.what == "one; two"


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")
def test_a_client_of_a_line_that_is_gone_dials_none_and_blames_no_shell(tmp_path: Path):
    line = object.__new__(SshLine)
    line.host, line.socket = "box", tmp_path / "socket"
    done = subprocess.run(line.session("true"), capture_output=True, text=True, check=False)
    assert done.returncode == 255 and "not found" not in done.stderr
