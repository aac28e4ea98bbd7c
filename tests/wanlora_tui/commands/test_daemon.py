"""daemon start, stop, status, and every other command's way to the daemon: from other shells, after a logout, when it
is hung, when it is no daemon of ours."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.processes.proc import identify, is_alive
from daemon.wire.blocking import ping
from daemon.wire.paths import daemon_paths
from daemon.wire.protocol import PROTOCOL_VERSION
from presets import VERSION
from tests.helpers import NO_TORCH
from tests.helpers.interface.harness import environment, until, wanlora
from tests.helpers.waiting import PATIENCE
from wanlora_tui.commands import daemon_status

NOBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")


@pytest.fixture
def started(home: Path) -> int:
    """The pid of the user's own daemon, which has been started."""
    assert wanlora("daemon", "start").returncode == 0
    return ping().pid


@pytest.fixture
def elsewhere(home: Path) -> dict[str, str]:
    """The environment of another shell of the same user: su, cron, sudo, a batch system."""
    (home / "other-run").mkdir(mode=0o700)
    (home / "other-tmp").mkdir(mode=0o700)
    return environment(XDG_RUNTIME_DIR=str(home / "other-run"), TMPDIR=str(home / "other-tmp"))


def without_torch(env: dict[str, str]) -> dict[str, str]:
    """For doctor, of which a test wants to know something else."""
    return env | {"PYTHONPATH": os.pathsep.join([str(NO_TORCH), env["PYTHONPATH"]])}


def has_ended(pid: int) -> bool:
    """Also where nobody waits for orphans, and it stays as a zombie."""
    process = identify(pid)
    return process is None or not is_alive(process)


def status(env: dict[str, str] | None = None) -> dict[str, object]:
    said = wanlora("daemon", "status", "--json", env=env)
    told: dict[str, object] = json.loads(said.stdout)
    assert said.returncode == (0 if told["state"] == "answering" else 1), said
    return told


def test_status_tells_all_there_is_to_know(home: Path, started: int):
    began = time.time()
    told = status()
    over = time.time()
    assert (
        told["running"] is True and told["state"] == "answering" and told["pid"] == started and told["live_jobs"] == 0
    )
    assert (told["version"], told["protocol"], told["client_version"], told["client_protocol"]) == (
        VERSION,
        PROTOCOL_VERSION,
        VERSION,
        PROTOCOL_VERSION,
    )
    assert (told["runtime_dir"], told["state_dir"], told["log"]) == (
        f"{home}/run/wanlora",
        f"{home}/state/wanlora",
        f"{home}/state/wanlora/daemon.log",
    )
    assert (told["control"], told["feed"]) == (f"{home}/run/wanlora/control.sock", f"{home}/run/wanlora/feed.sock")
    assert told["started"] <= over and began - 1 < told["started"] + told["uptime"] < over + 1e5
    said = wanlora("daemon", "status").stdout
    assert (
        f"The daemon runs in {home}/run/wanlora: 0 jobs, 0 of them running or queued." in said
        and f"pid {started}" in said
        and "daemon.log" in said
    )


def test_how_long_it_runs_is_not_told_by_a_clock_that_is_set(
    home: Path, started: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    later = time.time() + 1e6
    monkeypatch.setattr("time.time", lambda: later)
    for json_too in (True, False):
        assert daemon_status.status(Namespace(dir=None, json=json_too)) == 0
    told, _, text = capsys.readouterr().out.partition("\n")
    assert 0 <= json.loads(told)["uptime"] < 1e5 and f"pid {started} for " in text and "for 11d" not in text, text
    os.kill(started, signal.SIGSTOP)  # nor of one that does not answer
    assert daemon_status.status(Namespace(dir=None, json=True)) == 1
    assert 0 <= json.loads(capsys.readouterr().out)["uptime"] < 1e5
    os.kill(started, signal.SIGCONT)


def test_status_without_one_says_where_it_looked(home: Path):
    told = status()
    assert (
        told["running"] is False
        and told["state"] == "none"
        and told["pid"] is None
        and told["live_jobs"] == 0
        and told["protocol"] == PROTOCOL_VERSION
    )
    for command in (("jobs",), ("daemon", "status"), ("daemon", "stop")):
        said = wanlora(*command)
        assert "o daemon is running" in said.stdout + said.stderr
        assert (
            f"{home}/state/wanlora" in said.stdout + said.stderr and f"{home}/run/wanlora" in said.stdout + said.stderr
        )


def test_another_shell_finds_the_daemon(home: Path, started: int, elsewhere: dict[str, str]):
    assert wanlora("jobs", env=elsewhere).returncode == 0
    assert status(elsewhere)["pid"] == started and status(elsewhere)["runtime_dir"] == f"{home}/run/wanlora"
    again = wanlora("daemon", "start", env=elsewhere)
    assert again.returncode == 0 and f"runs already, in {'~/run/wanlora'}" in again.stderr
    assert f"answers (pid {started})" in wanlora("doctor", env=without_torch(elsewhere)).stdout
    gone = wanlora("daemon", "stop", env=elsewhere)
    assert gone.returncode == 0 and f"The daemon (pid {started}) has ended" in gone.stderr
    assert has_ended(started)


def test_a_foreign_or_missing_runtime_variable_is_passed_over(home: Path, started: int):
    for given in (
        str(home / "nowhere"),
        "relative",
        str(home / "state/wanlora/daemon.log"),
        "/proc",
        str(home / ("x" * 90)),
    ):
        assert wanlora("jobs", env=environment(XDG_RUNTIME_DIR=given)).returncode == 0, given


def test_after_a_logout_and_a_login_it_is_there(home: Path, started: int):
    shutil.rmtree(home / "run")
    assert until(lambda: wanlora("jobs").returncode == 0, "an answer while the runtime directory is away")
    (home / "run").mkdir(mode=0o700)
    assert until(lambda: status()["runtime_dir"] == f"{home}/run/wanlora", "the way back to it")
    assert status()["pid"] == started
    assert wanlora("daemon", "stop").returncode == 0
    assert not list((home / "run/wanlora").iterdir()) and has_ended(started)


def test_a_stopped_daemon_is_hung_and_not_none(home: Path, started: int):
    os.kill(started, signal.SIGSTOP)
    told = status()
    assert (
        told["running"] is True
        and told["state"] == "hung"
        and told["pid"] == started
        and "stopped by a signal" in told["problem"]
    )
    commands = (["daemon", "status"], ["daemon", "start"], ["jobs"], ["doctor"])
    env = without_torch(environment())
    with ThreadPoolExecutor(len(commands)) as at_once:  # each waits for its answer
        answers = list(at_once.map(lambda command: wanlora(*command, env=env), commands))
    for command, said in zip(commands, answers, strict=True):
        words = said.stdout + said.stderr
        assert said.returncode == 1 and f"(pid {started})" in words and "stopped by a signal" in words, command
        assert (
            f"kill -CONT {started}" in words
            and "wanlora daemon stop" in words
            and f"{home}/state/wanlora/daemon.log" in words
        ), command
        assert "o daemon is running" not in words and "another daemon" not in words, command
    assert re.search(r"^fail +Daemon\b", answers[-1].stdout, re.MULTILINE)  # by itself: torch is not there either
    gone = wanlora("daemon", "stop")
    assert (
        gone.returncode == 0
        and "SIGTERM and SIGCONT" in gone.stderr
        and f"The daemon (pid {started}) has ended" in gone.stderr
    )
    assert has_ended(started) and status()["state"] == "none"


def test_many_starts_at_once_and_one_says_that_it_started_it(home: Path):
    command = [sys.executable, "-m", "wanlora_tui.cli", "daemon", "start"]
    said = [
        p.communicate(timeout=PATIENCE)[1]
        for p in [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ]
    assert sorted("Started the daemon" in words for words in said) == [False, False, False, True], said
    assert sum("runs already" in words for words in said) == 3


@pytest.fixture
def planted(home: Path) -> Iterator[Path]:
    """A folder for the sockets that another user made first, in which a false daemon notes whatever it is told."""
    folder, heard = home / "run/wanlora", home / "run/heard"
    folder.mkdir()
    heard.touch()
    for path in (home, home / "run"):
        path.chmod(0o711)
    os.chown(folder, NOBODY, NOBODY)
    os.chown(heard, NOBODY, NOBODY)
    script = (
        f"import os, zmq\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\ns ="
        f" zmq.Context().socket(zmq.ROUTER)\ns.bind('ipc://{folder}/control.sock')\nprint(flush=True)\nwhile True:\n   "
        f" s.recv_multipart(); open({str(heard)!r}, 'a').write('told')"
    )
    false = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert false.stdout is not None and false.stdout.readline() == b"\n"
        yield heard
    finally:
        false.kill()
        false.communicate()


@root_only
def test_another_users_folder_is_told_nothing_and_takes_nothing_away(home: Path, planted: Path):
    env = without_torch(environment())
    for command in (["jobs"], ["daemon", "status"], ["doctor"], ["daemon", "stop"]):
        said = wanlora(*command, env=env)
        assert f"{home}/run/wanlora belongs to" in said.stdout + said.stderr, said
    assert wanlora("jobs").returncode == 1 and "wanlora daemon start" in wanlora("jobs").stderr
    assert wanlora("daemon", "start").returncode == 0
    assert wanlora("jobs").returncode == 0
    told = status()
    folder = Path(told["runtime_dir"])
    assert (
        folder != home / "run/wanlora"
        and folder.stat().st_uid == os.getuid()
        and folder.stat().st_mode & 0o777 == 0o700
    )
    assert "is not a directory of your own" in Path(told["log"]).read_text()
    assert planted.read_text() == ""
    assert wanlora("daemon", "stop").returncode == 0 and not folder.exists()


def test_a_folder_that_others_can_write_to_is_told_nothing(home: Path):
    where = daemon_paths()
    where.runtime.mkdir()
    where.runtime.chmod(0o777)
    said = wanlora("jobs")
    assert said.returncode == 1 and f"other users can write to {where.runtime}" in said.stderr
    assert wanlora("daemon", "start").returncode == 0 and where.runtime.stat().st_mode & 0o777 == 0o700
    where.runtime.chmod(0o777)  # while it runs: it mends that
    assert until(lambda: where.runtime.stat().st_mode & 0o777 == 0o700, "the right mode")
    assert wanlora("jobs").returncode == 0


@root_only
def test_the_state_folder_of_another_user_is_named(home: Path, started: int):
    os.chown(daemon_paths().lock, NOBODY, NOBODY)
    try:
        for command in (["jobs"], ["daemon", "status"], ["daemon", "start"], ["daemon", "stop"]):
            said = wanlora(*command)
            assert (
                said.returncode == 1
                and f"{home}/state/wanlora/daemon.lock: belongs to" in said.stderr
                and "XDG_STATE_HOME" in said.stderr
                and "Traceback" not in said.stderr
            )
    finally:
        os.chown(daemon_paths().lock, os.getuid(), os.getgid())
