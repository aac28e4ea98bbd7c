"""Notices that a rank of this host has died, whatever this process is doing meanwhile: it may wait for that rank, or
compute for a minute. On other hosts, the connections say so."""

import threading
from collections.abc import Callable, Mapping

import psutil

LOOK_SECONDS = 0.3


class Watch:
    """A thread that looks at processes, rank -> pid, until it is closed, and says once of the first that has ended."""

    def __init__(self, pids: Mapping[int, int], lost: Callable[[int], None]) -> None:
        """`lost`: is given the rank, in the thread of the watch."""
        self._processes: dict[int, psutil.Process | None] = {rank: _process(pid) for rank, pid in pids.items()}
        self._lost, self._closed = lost, threading.Event()
        self._thread = threading.Thread(target=self._look, name="lost-ranks", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Give it time to find out, where something says that a rank has ended."""
        self._thread.join(seconds)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            for rank, process in self._processes.items():
                if process is None or not _lives(process):
                    self._lost(rank)
                    return


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _lives(process: psutil.Process) -> bool:
    """A dead one whose parent has not asked for it yet is dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
