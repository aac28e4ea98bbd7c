"""Starting things that outlive us: trainers from the daemon, the daemon from a client."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from daemon.client import DaemonError, NotRunning, ping
from daemon.paths import make_private, places
from daemon.processes import MARKER

START_TIMEOUT = 20.0  # seconds for a fresh daemon to answer
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


def start_trainer(command: list[str], *, job_file: Path, out: str, options: list[str], gpus: list[int], marker: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a trainer in a session of its own, its output in `log`. Raises OSError.

    It inherits that SIGHUP is ignored, which the daemon does for itself: the end of a login ends neither.
    """
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    environment = os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), MARKER: marker}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, str(job_file), "--out", out, *options],
            cwd="/", env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


_started: list[subprocess.Popen[bytes]] = []  # daemons this process started; kept, because they are not to be waited for


def ensure_running(dir: Path | None = None) -> None:
    """Start the daemon of `dir` (the user's own by default) in its own session unless one runs, and wait for its answer.

    Raises DaemonError with the daemon's own words when it does not come up, VersionMismatch when another version runs.
    """
    where = places(dir)
    try:
        ping(dir)
        return
    except NotRunning:
        pass
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
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            if ping(dir).pid != process.pid:  # another client's was faster; ours sees that and goes
                process.wait(START_TIMEOUT)
            return
        except NotRunning:
            time.sleep(0.05)
        if process.poll() is not None:  # it failed, or another client's daemon was faster and is about to answer
            deadline = min(deadline, time.monotonic() + 2)
    with where.log.open("rb") as log:
        log.seek(begin)
        words = log.read(KEEP_LOG_BYTES).decode("utf-8", "replace").strip().splitlines()
    raise DaemonError(f"the daemon did not start: {' / '.join(words[-3:]) or 'it said nothing'}", fix=f"Run `wanlora daemon start` to see more, or read {where.log}")
