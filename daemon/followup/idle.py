"""The idle command: runs once when nothing has been running or about to run for so long, such as to stop a rented
machine.

It counts from the end of the last job and over the daemon's restarts, in time that setting a clock does not change. A
daemon that finds an empty queue does not count, unless `after_start` is set. Clients that look on change nothing: they
are told how long it is till then, and a job that is submitted ends it.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from daemon.background_io import BackgroundIO
from daemon.followup.command import forget, run_command
from daemon.followup.facts import session_here
from daemon.settings import IdleSettings, load_settings
from presets.errors import UserError

log = logging.getLogger("daemon")

SETTINGS_AGE = 10.0  # seconds after which they are read again
ANNOUNCED = 300.0  # seconds before, at which the log warns
COMMAND_SECONDS = 600.0


class IdleCount(Struct):
    """How far it has come; no clock, no files. Times are seconds since the machine's start."""

    session: str
    since: float | None = None  # when the queue was empty; None while it is not
    ran: bool = False
    armed: bool = False  # something has run, or need not have

    def look(self, now: float, *, busy: bool, arm: bool) -> bool:
        """Whether something has changed. `arm`: it counts though nothing has run yet."""
        before = msgspec.structs.astuple(self)
        if busy:
            self.since, self.ran, self.armed = None, False, True
        else:
            self.armed = self.armed or arm
            if self.armed and self.since is None:
                self.since = now
        return msgspec.structs.astuple(self) != before

    def left(self, now: float, minutes: float) -> float | None:
        """Seconds until it is time; None when it is not counting."""
        return None if self.since is None or self.ran else max(0.0, 60 * minutes - (now - self.since))


class Idle:
    """Keeps the count and runs the command."""

    def __init__(self, state: Path, settings: Path, remembered: str, remember: Callable[[str], None]) -> None:
        """`remembered`: what the last daemon handed to `remember`, "" when nothing."""
        self.problem = ""  # why it did not work, for people
        self._state, self._settings, self._remember = state, settings, remember
        self._background = BackgroundIO()
        self._count = _count_of(remembered)
        self._read: IdleSettings | None = None
        self._read_at = 0.0
        self._announced = self._busy = False
        self._task: asyncio.Task[None] | None = None

    @property
    def left(self) -> float | None:
        """Seconds until the command runs; None when it will not."""
        if self._read is None or not self._read.command:
            return None
        return self._count.left(_now(), self._read.minutes)

    def tick(self, *, busy: bool) -> None:
        """`busy`: something runs, is about to, or has just ended and is not yet dealt with."""
        self._busy = busy
        if self._count.look(_now(), busy=busy, arm=self._read is not None and self._read.after_start):
            self._remember(msgspec.json.encode(self._count).decode())
            self._announced = False
        if busy or self._count.ran or (self._task is not None and not self._task.done()):
            return
        left = self.left
        if self._read is None or time.monotonic() - self._read_at > SETTINGS_AGE or left == 0.0:
            self._task = asyncio.create_task(self._look())
        elif left is not None and left <= ANNOUNCED and not self._announced:
            self._announced = True
            log.warning(
                "nothing has been running: the idle command runs in %.0f s. A job that is submitted ends that, so does"
                " taking [idle] out of %s",
                left,
                self._settings,
            )

    async def _look(self) -> None:
        """Read the settings, and run the command when it is time by them."""
        self._read_at = time.monotonic()
        try:
            self._read = (await self._background(partial(load_settings, self._settings), what=str(self._settings))).idle
            self.problem = ""
        except UserError as e:
            if str(e) != self.problem:
                log.error("the idle command waits until the settings can be read: %s", e)
            self.problem, self._read = str(e), IdleSettings()
        if self.left != 0.0 or self._busy:
            return
        self._count.ran = True
        self._remember(msgspec.json.encode(self._count).decode())
        log.warning("nothing has been running for %.3g minutes: the idle command begins", self._read.minutes)
        begun = self._state / "follow_ups" / f"idle-{uuid.uuid4().hex[:8]}"
        end = await run_command(
            self._read.command,
            begun=begun,
            environment={"WANLORA_EVENT": "idle", "WANLORA_MINUTES": f"{self._read.minutes:g}"},
            log=self._state / "idle_command.log",
            spare_log=self._state / "idle_command.log",
            seconds=COMMAND_SECONDS,
            background=self._background,
        )
        await asyncio.to_thread(forget, begun)
        log.log(logging.INFO if end.good else logging.ERROR, "the idle command %s", end.text)
        self.problem = "" if end.good else f"the idle command {end.text}"


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # which goes on while the machine sleeps


def _count_of(remembered: str) -> IdleCount:
    """A machine or container that was started since begins anew: somebody has come to use it."""
    session = session_here()
    try:
        count = msgspec.json.decode(remembered, type=IdleCount)
    except msgspec.MsgspecError:
        count = IdleCount(session)
    return count if count.session == session else IdleCount(session)
