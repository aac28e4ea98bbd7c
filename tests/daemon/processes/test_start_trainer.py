"""Starting the daemon from a client, and the command line that starts a trainer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.errors import DaemonError
from daemon.wire.client import ping
from daemon.wire.paths import places
from daemon.wire.start import ensure_running
from tests.daemon.conftest import until
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
    assert "serving" in places(home).log.read_text()


async def test_many_starters_at_once_get_one_daemon(home):
    script = (
        "from pathlib import Path\nfrom daemon.wire.client import ping\nfrom daemon.wire.start import ensure_running\n"
        f"ensure_running(Path({str(home)!r}))\nprint(ping(Path({str(home)!r})).pid)"
    )
    starters = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {starter.communicate(timeout=PATIENCE)[0] for starter in starters}
    assert told == {f"{ping(home).pid}\n"}


def test_a_daemon_that_cannot_start_says_why(short_dir):
    state = places(short_dir).state
    state.mkdir()
    places(short_dir).database.write_bytes(b"no table" * 1000)
    with pytest.raises(DaemonError, match=r"the daemon did not start: .*the job table cannot be opened"):
        ensure_running(short_dir)


def test_the_trainer_is_launched_by_torchrun_without_importing_torch():
    code = (
        "import sys, daemon.processes.start_trainer, daemon.__main__;"
        " print(*daemon.processes.start_trainer.torchrun(90)); sys.exit(any(m in sys.modules for m in ('torch',"
        " 'textual', 'engine', 'diffusers')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told[1:4] == ["-m", "torch.distributed.run", "--standalone"] and told[-2:] == ["-m", "engine"]
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT" in told and "--shutdown-timeout=90" in told


def test_an_older_torchrun_is_not_given_what_it_does_not_know(tmp_path):
    """In an interpreter of its own: here torch may have been imported already."""
    (tmp_path / "torch/distributed").mkdir(parents=True)
    (tmp_path / "torch/__init__.py").write_text("")
    (tmp_path / "torch/distributed/run.py").write_text('parser.add_argument("--signals-to-handle")')
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from daemon.processes.start_trainer import torchrun;"
        " print(*torchrun(), sep=chr(10))"
    )
    command = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT" in command and not any("shutdown" in part for part in command)
