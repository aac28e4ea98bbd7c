"""wanlora wait, with a real daemon: its exit codes, one line for each job, and a daemon that is killed meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.wire.blocking import ping
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, own_daemon, running_daemon, until, wanlora, write_job
from tests.wanlora_tui.test_cli import submit
from wanlora_tui.commands.common import ask

LONG = {"steps": 100_000, "pace_ms": 20}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def waiting_for(folder: Path, *args: str) -> "subprocess.Popen[str]":
    """One that waits already: what it is to say has not happened."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wanlora_tui.cli", "wait", *args, "--dir", str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stderr.readline().startswith("Waiting for ")
    return process


def test_the_exit_code_says_how_jobs_ended_also_those_of_long_ago(folder: Path, tmp_path: Path):
    for name in ("good", "broken_1"):
        submit(folder, write_job(tmp_path, name, steps=5))
    done = wanlora("wait", "good", "--dir", folder)
    assert (done.returncode, done.stdout) == (0, "good done\n") and done.stderr in ("", "Waiting for good.\n")
    both = wanlora("wait", "broken_1", "good", "--dir", folder)
    assert both.returncode == 1 and sorted(both.stdout.splitlines()) == ["broken_1 failed", "good done"]
    assert "broken_1" in both.stderr
    again = wanlora("wait", "good", "--dir", folder)
    assert (again.returncode, again.stdout) == (0, "good done\n")
    unknown = wanlora("wait", "good", "nobody", "--dir", folder)
    assert unknown.returncode == 1 and "no such job" in unknown.stderr and unknown.stdout == ""


def test_a_stopped_job_can_be_resumed_a_cancelled_one_has_failed(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "long_1", **LONG))
    waiting = waiting_for(folder, "long_1")
    assert wanlora("stop", "long_1", "--dir", folder).returncode == 0
    assert waiting.communicate()[0] == "long_1 stopped\n" and waiting.returncode == 75
    submit(folder, write_job(tmp_path, "long_2", **LONG))
    waiting = waiting_for(folder, "long_2")
    assert wanlora("cancel", "long_2", "--dir", folder).returncode == 0
    assert waiting.communicate()[0] == "long_2 cancelled\n" and waiting.returncode == 1
    assert wanlora("wait", "long_1", "long_2", "--dir", folder).returncode == 1


def test_the_first_of_several_is_enough_where_that_is_asked_for(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "first", **LONG))
    submit(folder, write_job(tmp_path, "second", **LONG))
    waiting = waiting_for(folder, "--any", "second", "first")
    assert wanlora("stop", "first", "--dir", folder).returncode == 0
    assert waiting.communicate()[0] == "first stopped\n" and waiting.returncode == 75
    assert wanlora("cancel", "second", "--dir", folder).returncode == 0


def test_it_says_which_job_its_user_must_let_go(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "before", **LONG))
    ask(folder, lambda daemon: daemon.submit(write_job(tmp_path, "behind", steps=5), after=["before"]))
    waiting = waiting_for(folder, "behind")
    assert wanlora("stop", "before", "--dir", folder).returncode == 0
    assert (
        waiting.stderr is not None
        and f"Let it go with: wanlora --dir {folder} release behind" in waiting.stderr.readline()
    )
    assert wanlora("release", "behind", "--dir", folder).returncode == 0
    assert waiting.communicate()[0] == "behind done\n" and waiting.returncode == 0


def test_it_waits_through_the_end_of_a_daemon_and_the_start_of_the_next(folder: Path, tmp_path: Path):
    with own_daemon() as own:
        submit(own, write_job(tmp_path, "through", **LONG))
        waiting = waiting_for(own, "through")
        pid = ping(own).pid
        os.kill(pid, signal.SIGKILL)
        assert waiting.stderr is not None
        assert "Still waiting" in waiting.stderr.readline() and waiting.poll() is None
        with running_daemon(own):
            until(lambda: ping(own).pid != pid, "the next daemon")
            assert wanlora("stop", "through", "--dir", own).returncode == 0
            assert waiting.communicate()[0] == "through stopped\n" and waiting.returncode == 75
