"""One attempt's processes: are they alive, end them, and what did they die of.

They are started by daemon.processes.start_trainer; any single process is daemon.processes.proc's.
"""

import asyncio
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from typing import Any

from daemon.processes.proc import ProcessId, is_alive, marked, send
from presets.machine.gpu_locks import GpuLock

log = logging.getLogger("daemon")

ORPHAN_GRACE = 180.0  # seconds for a worker whose launcher died to save and stop


class Trainer:
    """The launcher and everything it started. Processes are found by their marker: workers have their own sessions."""

    def __init__(
        self,
        launcher: ProcessId,
        marker: str,
        lock: GpuLock,
        look: Callable[[], Coroutine[Any, Any, list[ProcessId]]],
        looked: Callable[[], None],
        child: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """`child` when this daemon is the launcher's parent; None for an adopted one. `lock`: what of its GPUs this
        daemon holds for it, besides the launcher. `look`: gives all live processes with the marker. `looked`: called
        when another `poll` would know more."""
        self.launcher, self.marker, self.lock = launcher, marker, lock
        self.exit_code: int | None = None
        self._child, self._find, self._looked = child, look, looked
        self._look: asyncio.Task[list[ProcessId]] | None = None  # for what the launcher has left behind
        self._is_over = self._is_unseen = False
        self._asked: set[ProcessId] = set()
        self._orphaned_at = 0.0

    def poll(self) -> bool:
        """Whether anything of this trainer still runs, as far as is known. Workers left behind by their launcher are
        brought to an end, the topmost first, because it can save; nothing holds the GPUs any more when this says
        False. Looking for them takes a while where many processes are, so it is done beside the loop."""
        if self._is_over:
            return False
        if self._child is not None:
            self.exit_code = self._child.poll()
            if self.exit_code is None:
                return True
        elif is_alive(self.launcher):
            return True
        if self._look is None:
            self._look = asyncio.create_task(self._find())
            self._look.add_done_callback(lambda _: self._looked())
        if not self._look.done():
            return True
        look, self._look = self._look, None
        if error := look.exception():
            if not self._is_unseen:
                log.warning("what is left of trainer %d cannot be seen yet: %s", self.launcher.pid, error)
            self._is_unseen = True
            return True
        rest = look.result()
        self._is_over = not rest
        if self._is_over:
            return False
        self._orphaned_at = self._orphaned_at or time.monotonic()
        if time.monotonic() - self._orphaned_at > ORPHAN_GRACE:
            for process in rest:
                send(process, signal.SIGKILL)
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
