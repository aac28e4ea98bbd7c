"""Starting things that outlive us, and ending them: trainers from the daemon, the daemon from a client."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

from daemon.client import DaemonError, NotAnswering, NotRunning, find, ping
from daemon.paths import make_private, places
from daemon.processes import MARKER
from daemon.stop import Stopped, stop_daemon

__all__ = ["Stopped", "ensure_running", "start_trainer", "stop_daemon", "torchrun"]

START_TIMEOUT = 120.0  # seconds for a daemon to answer: on a busy machine it may have a long run to read first
MOVE_TIMEOUT = 3.0  # seconds for one that has lost its folder to open another, or for another client's to take the lock
KEEP_LOG_BYTES = 4 * 2**20


def torchrun(grace: int = 180) -> list[str]:
    """The command that trains with the engine; a job file, `--out DIR` and perhaps `--resume ...` follow it.

    torchrun ends its workers on SIGHUP unless told which signals are its own, and 30 seconds after SIGTERM unless told
    to wait (`grace`, seconds). It learnt to wait later than torch 2.10, so its own source is asked what it knows;
    importing torch would take seconds.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise DaemonError("torch is not installed", where=sys.executable, fix="Install wanlora-tui into this Python again")
    options = (Path(found.origin).parent / "distributed" / "run.py").read_text("utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    if "--signals-to-handle" in options:
        command.append("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT")
    if "--shutdown-timeout" in options:
        command.append(f"--shutdown-timeout={grace}")
    return [*command, "-m", "engine"]


def start_trainer(command: list[str], *, job_file: Path, out: str, options: list[str], environment: dict[str, str], marker: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a trainer in a session of its own, its output in `log`. `environment`: all of its own, but for the marker. Raises OSError.

    It inherits that SIGHUP is ignored, which the daemon does for itself: the end of a login ends neither.
    """
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, str(job_file), "--out", out, *options],
            cwd="/", env=environment | {MARKER: marker}, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


_started: list[subprocess.Popen[bytes]] = []  # daemons this process started; kept, because they are not to be waited for


def ensure_running(dir: Path | None = None) -> bool:
    """Start the daemon of `dir` (the user's own by default) in its own session unless one runs, and wait for its answer. Whether it was ours.

    Raises DaemonError with the daemon's own words when it does not come up, NotAnswering when one runs and is hung,
    VersionMismatch when another version runs.
    """
    where = places(dir)
    if find(dir).holder is not None or _answers(dir):
        _wait_for(dir)
        return False
    make_private(where.state)
    if where.log.exists() and where.log.stat().st_size > KEEP_LOG_BYTES:
        where.log.replace(where.log.with_suffix(".log.1"))
    with where.log.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", *(["--dir", str(dir.absolute())] if dir else [])],
            cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _started.append(process)
    try:
        if (pid := _wait_for(dir, process)) != process.pid:  # another client's was faster; ours sees that and goes
            process.wait(START_TIMEOUT)
        return pid == process.pid
    except NotAnswering:
        raise
    except NotRunning:
        with where.log.open("rb") as log:
            log.seek(begin)
            words = log.read(KEEP_LOG_BYTES).decode("utf-8", "replace").strip().splitlines()
        raise DaemonError(f"the daemon did not start: {' / '.join(words[-3:]) or 'it said nothing'}", fix=f"Run `wanlora daemon start` to see more, or read {where.log}") from None


def _answers(dir: Path | None) -> bool:
    """Whether a daemon answers that holds no lock here: it comes through a tunnel, or has lost its state folder."""
    try:
        ping(dir)
        return True
    except NotRunning:
        return False


def _wait_for(dir: Path | None, process: "subprocess.Popen[bytes] | None" = None) -> int:
    """The pid of the daemon that answers; of one that starts or moves its sockets, in a while. Raises NotRunning when `process`
    has failed and no other's holds the lock, NotAnswering when one is hung."""
    begun = hoped = time.monotonic()
    while True:
        try:
            return ping(dir).pid
        except NotRunning as e:
            now = time.monotonic()
            if (isinstance(e, NotAnswering) and e.starting) or (process is not None and process.poll() is None):
                hoped = now
            holder = find(dir).holder
            if now - hoped > MOVE_TIMEOUT or now - begun > START_TIMEOUT or (holder is not None and holder.is_stopped):
                raise
            time.sleep(0.05)
