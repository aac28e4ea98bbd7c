"""Starting the daemon from a client: once, in a session of its own, and waiting for its answer.

Finding the one that runs is daemon.wire.find's, ending it daemon.wire.stop's.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from daemon.errors import DaemonError, NotAnswering, NotRunning
from daemon.processes.proc import UTF8_OUTPUT
from daemon.services import systemd
from daemon.wire.blocking import ping
from daemon.wire.find import find
from daemon.wire.paths import daemon_paths, make_private, spare_parent
from presets.disk import require_room
from presets.files import open_own

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
    if where.is_elsewhere or find(dir).holder is not None or _answers(dir):
        _wait_for(dir)
        return False
    if systemd.is_installed(dir) and systemd.start(dir):  # it watches over this one
        try:
            _wait_for(dir, lambda: systemd.is_starting(dir))
        except NotAnswering:
            raise
        except NotRunning:
            raise DaemonError(
                f"systemd started the daemon ({systemd.unit_name(dir)}), and it has not come up",
                fix=f"See: systemctl --user status {systemd.unit_name(dir)}, or read {where.log}",
            ) from None
        return True
    make_private(where.state)
    with _log(where.log) as log:
        begin = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            # --log: what it says goes to the log from when that can be opened
            [sys.executable, "-m", "daemon", "--log", *(["--dir", str(dir.absolute())] if dir else [])],
            cwd="/",
            env=os.environ | UTF8_OUTPUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        _started.append(process)
        try:
            if (
                pid := _wait_for(dir, lambda: process.poll() is None)
            ) != process.pid:  # another client's was faster; ours sees that and goes
                process.wait(START_TIMEOUT)
            return pid == process.pid
        except NotAnswering:
            raise
        except NotRunning:
            words = _words(log, begin)
            raise DaemonError(
                f"the daemon did not start: {' / '.join(words[-3:]) or 'it said nothing'}",
                fix=(
                    f"Read {where.log}"
                    if os.fstat(log.fileno()).st_nlink
                    else f"{where.log} could not be opened, so no more is kept of what it said"
                ),
            ) from None


def _words(log: FileIO | BinaryIO, begin: int) -> list[str]:
    """The lines in a log from there on, also in one that has no name."""
    try:
        with Path(f"/proc/self/fd/{log.fileno()}").open("rb") as again:
            again.seek(begin)
            lines = again.read(KEEP_LOG_BYTES).decode("utf-8", "replace").strip().splitlines()
            return [line.removeprefix("wanlora daemon: ") for line in lines]
    except OSError as e:
        return [str(e)]


def _log(path: Path) -> FileIO | BinaryIO:
    """Where a disk takes none, what the daemon says goes to a file that is gone when it ends."""
    try:
        require_room(path.parent)
        if path.exists() and path.stat().st_size > KEEP_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return open_own(path, append=True)
    except OSError:
        return tempfile.TemporaryFile(dir=spare_parent())


def _answers(dir: Path | None) -> bool:
    """Whether a daemon answers that holds no lock here: it comes through a tunnel, or has lost its state folder."""
    try:
        ping(dir)
        return True
    except NotRunning:
        return False


def _wait_for(dir: Path | None, comes: Callable[[], bool] = lambda: False) -> int:
    """The pid of the daemon that answers; of one that starts or moves its sockets, in a while. Raises NotRunning when
    none holds the lock and none `comes`, NotAnswering when one is hung."""
    begun = hoped = time.monotonic()
    asked = 0  # one answer alone may be missed by a machine that slept or swapped meanwhile
    while True:
        try:
            return ping(dir).pid
        except NotRunning as e:
            now, asked = time.monotonic(), asked + 1
            if (isinstance(e, NotAnswering) and e.starting) or comes():
                hoped = now
            holder = find(dir).holder
            if holder is not None and holder.is_stopped and isinstance(e, NotAnswering):
                raise
            if asked > 1 and (now - hoped > MOVE_TIMEOUT or now - begun > START_TIMEOUT):
                raise
            time.sleep(0.05)
