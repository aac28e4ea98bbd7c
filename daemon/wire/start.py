"""Starting the daemon from a client: once, in a session of its own, and waiting for its answer.

Finding the one that runs is daemon.wire.find's, ending it daemon.wire.stop's.
"""

import subprocess
import sys
import time
from pathlib import Path

from daemon.errors import DaemonError, NotAnswering, NotRunning
from daemon.wire.blocking import ping
from daemon.wire.find import find
from daemon.wire.paths import daemon_paths, make_private

START_TIMEOUT = 120.0  # seconds for a daemon to answer: on a busy machine it may have a long run to read first
MOVE_TIMEOUT = 3.0  # seconds for one that has lost its folder to open another, or for another client's to take the lock
KEEP_LOG_BYTES = 4 * 2**20

# daemons this process started; kept, because they are not to be waited for
_started: list[subprocess.Popen[bytes]] = []


def ensure_running(dir: Path | None = None) -> bool:
    """Start the daemon of `dir` (the user's own by default) in its own session unless one runs, and wait for its
    answer. Whether it was ours.

    Raises DaemonError with the daemon's own words when it does not come up, NotAnswering when one runs and is hung,
    VersionMismatch when another version runs.
    """
    where = daemon_paths(dir)
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
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
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
        raise DaemonError(
            f"the daemon did not start: {' / '.join(words[-3:]) or 'it said nothing'}",
            fix=f"Run `wanlora daemon start` to see more, or read {where.log}",
        ) from None


def _answers(dir: Path | None) -> bool:
    """Whether a daemon answers that holds no lock here: it comes through a tunnel, or has lost its state folder."""
    try:
        ping(dir)
        return True
    except NotRunning:
        return False


def _wait_for(dir: Path | None, process: "subprocess.Popen[bytes] | None" = None) -> int:
    """The pid of the daemon that answers; of one that starts or moves its sockets, in a while. Raises NotRunning when
    `process` has failed and no other's holds the lock, NotAnswering when one is hung."""
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
