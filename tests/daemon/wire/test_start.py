"""Starting the daemon from a client: once, whoever is first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from psutil import Process

from daemon.errors import DaemonError
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.paths import daemon_paths, make_private
from daemon.wire.start import ensure_running
from daemon.wire.stop import stop_daemon
from tests.daemon.conftest import until
from tests.helpers import NO_GPUS
from tests.helpers.interface.harness import running_daemon, wanlora, write_job
from tests.helpers.waiting import PATIENCE


@pytest.fixture
async def home(short_dir):
    yield short_dir
    pid = ping(short_dir).pid
    os.kill(pid, 15)
    await until(lambda: _ended(pid))


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:  # a child of another starter, or waited for already
        return not Path(f"/proc/{pid}").exists()


async def test_it_starts_one_daemon_in_a_session_of_its_own_and_only_one(home):
    ensure_running(home)
    pid = ping(home).pid
    assert os.getsid(pid) == pid != os.getsid(0)
    ensure_running(home)
    assert ping(home).pid == pid
    assert "serving" in daemon_paths(home).log.read_text()


async def test_many_starters_at_once_get_one_daemon(home):
    script = (
        "from pathlib import Path\nfrom daemon.wire.blocking import ping\nfrom daemon.wire.start import"
        f" ensure_running\nensure_running(Path({str(home)!r}))\nprint(ping(Path({str(home)!r})).pid)"
    )
    starters = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {starter.communicate(timeout=PATIENCE)[0] for starter in starters}
    assert told == {f"{ping(home).pid}\n"}


def test_a_daemon_that_cannot_start_says_why(short_dir):
    state = daemon_paths(short_dir).state
    state.mkdir()
    daemon_paths(short_dir).database.mkdir()
    with pytest.raises(DaemonError, match=r"the daemon did not start: .*the job table cannot be read"):
        ensure_running(short_dir)


async def test_a_log_that_cannot_be_opened_is_told_by_the_daemon_and_by_one_that_cannot_start(home):
    where = daemon_paths(home)
    make_private(where.state)
    where.log.symlink_to("elsewhere")
    where.database.mkdir()
    with pytest.raises(
        DaemonError, match=r"start: /.*the job table cannot be read.*touched\. .*/daemon\.log could not be opened"
    ):
        ensure_running(home)
    where.database.rmdir()
    ensure_running(home)
    found = find(home).holder
    assert found and found.log == "" and f"{where.log} cannot be opened" in found.no_log
    said = wanlora("daemon", "status", "--dir", home)
    assert f"It writes no log file: {where.log} cannot be opened" in said.stdout
    where.log.unlink()
    await until(lambda: (now := find(home).holder) and now.log == str(where.log) and not now.no_log)
    assert not (where.state / "elsewhere").exists()


async def test_a_daemon_of_a_test_knows_of_no_gpu(short_dir):
    """However it is started: tests must not depend on the GPUs of their machine, or on who uses them."""
    ensure_running(short_dir)
    by_client = Process(ping(short_dir).pid).environ()
    stop_daemon(short_dir)
    assert wanlora("daemon", "start", "--dir", short_dir).returncode == 0
    by_command = Process(ping(short_dir).pid).environ()
    stop_daemon(short_dir)
    with running_daemon(short_dir):  # its trainers have its environment
        async with Client(short_dir) as client:
            job = (await client.submit(write_job(short_dir, pace_ms=1000))).id

            async def trainer() -> int | None:
                return (await client.show(job)).pid

            by_itself = Process(await until(trainer, "the trainer")).environ()
    for found in (by_client, by_command, by_itself):
        assert found["PYTHONPATH"].split(os.pathsep)[0] == str(NO_GPUS)
