"""One attempt's processes: are they alive, end them, and what did they die of.

They are started by daemon.processes.start_trainer; any single process is daemon.processes.proc's.
"""

import signal
import subprocess
import time

from daemon.processes.proc import ProcessId, is_alive, marked, send

ORPHAN_GRACE = 180.0  # seconds for a worker whose launcher died to save and stop


class Trainer:
    """The launcher and everything it started. Processes are found by their marker: workers have their own sessions."""

    def __init__(self, launcher: ProcessId, marker: str, child: subprocess.Popen[bytes] | None = None) -> None:
        """`child` when this daemon is the launcher's parent; None for an adopted one."""
        self.launcher, self.marker = launcher, marker
        self.exit_code: int | None = None
        self._child = child
        self._asked: set[ProcessId] = set()
        self._orphaned_at = 0.0

    def poll(self) -> bool:
        """Whether anything of this trainer still runs. Workers left behind by their launcher are brought to an end,
        the topmost first, because it can save; nothing holds the GPUs any more when this says False."""
        if self._child is not None:
            self.exit_code = self._child.poll()
            if self.exit_code is None:
                return True
        elif is_alive(self.launcher):
            return True
        rest = marked(self.marker)
        if not rest:
            return False
        self._orphaned_at = self._orphaned_at or time.monotonic()
        if time.monotonic() - self._orphaned_at > ORPHAN_GRACE:
            self.kill()
        elif rest[0] not in self._asked:
            self._asked.add(rest[0])
            send(rest[0], signal.SIGTERM)
        return True

    def terminate(self) -> None:
        """Ask it to save and end. The launcher hands the signal on to its workers."""
        send(self.launcher, signal.SIGTERM)

    def kill(self) -> None:
        """End all its processes now."""
        for process in [self.launcher, *marked(self.marker)]:
            send(process, signal.SIGKILL)
