"""Carries out what follows an ending: the job's command once, each message until it is through or given up.

What is due is kept with its job, in the same commit as the ending, so that a daemon that is killed in between hands it
on to the next one. A command is started once (daemon.followup.command says how); one whose machine has restarted since
is not run any more: it would stop a machine that somebody has just started. A message may come twice then.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from daemon.background_io import BackgroundIO
from daemon.followup.command import CommandEnd, forget, run_command
from daemon.followup.delivery import MAIL_SECONDS, Delivery, deliver
from daemon.followup.facts import Standing, ended_so, follow_up, mend, session_here
from daemon.followup.message import Message, message_of, trial_message
from daemon.followup.secret_files import secret_of
from daemon.queue.entry import Entry, FollowUp
from daemon.settings import NotifySettings, Settings, WhenSettings, load_settings
from daemon.wire.answers import NotifyResult
from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, RUNNING_STATES
from presets.errors import UserError
from presets.runs.run_view import RunView

log = logging.getLogger("daemon")

WAITS = (5.0, 30.0, 120.0, 600.0)  # seconds between two tries of a message; one more try than these
LONGEST_WAIT = 3600.0  # however long a receiver asks for
HOLD_SECONDS = 120.0  # for which messages hold the idle command up: a receiver that is away keeps no machine running
SETTINGS_WAIT = 30.0  # until settings that cannot be read are looked at again
DELIVERY_SECONDS = MAIL_SECONDS + 10.0
FOLDER = "follow_ups"  # in the state folder


@dataclass
class _UnderWay:
    """What follows one ending, since a moment by time.monotonic."""

    due: FollowUp
    task: asyncio.Task[None]
    began: float = field(default_factory=time.monotonic)


class FollowUps:
    """Those of all jobs of one daemon."""

    def __init__(
        self,
        state: Path,
        settings: Path,
        entries: dict[int, Entry],
        save: Callable[[int], None],
        changed: Callable[[int], None],
        *,
        last_session: str = "",
        waits: Sequence[float] = WAITS,
    ) -> None:
        """`entries`: all jobs, with what the last daemon left. `save`: one of them; `changed`: announces it too.
        `last_session`: when that daemon ran: what ended since, as is found until the first tick, ended with the
        machine."""
        self.failures: deque[tuple[float, str]] = deque(maxlen=20)  # (wall clock, what went wrong): the newest
        self._folder, self._settings, self._entries = state / FOLDER, settings, entries
        self._save_job, self._changed = save, changed
        self._waits, self._machine_restarted = waits, last_session not in ("", session_here())
        self._background = BackgroundIO()  # of its own: a receiver that hangs holds up no request
        self._standings = {job: Standing(e.record.state, e.record.attempt) for job, e in entries.items()}
        self._left = {e.record.id for e in entries.values() if e.follow_ups}
        self._under_way: dict[str, _UnderWay] = {}

    @property
    def pending(self) -> int:
        return len(self._under_way)

    def hold_up(self) -> bool:
        """Whether the idle command has to wait for them: for a command until its end, for messages not longer than a
        receiver takes that is there. One that is tried again later is the next daemon's if this machine is stopped."""
        oldest = time.monotonic() - HOLD_SECONDS
        return any(one.due.command_due or one.began > oldest for one in self._under_way.values())

    def note(self, entry: Entry, view: RunView | None) -> None:
        """To be called for every change of a job, before it is saved: an ending is put down with it."""
        job, now = entry.record.id, Standing(entry.record.state, entry.record.attempt)
        event = ended_so(self._standings.get(job), now)
        self._standings[job] = now
        if event is None:
            return
        others = [e.record.state for e in self._entries.values() if e is not entry]
        due = follow_up(
            entry,
            event,
            view,
            running=sum(s in RUNNING_STATES for s in others),
            queued=sum(s in LIVE_STATES - RUNNING_STATES for s in others),
        )
        due.command_due = due.command_due and not self._machine_restarted
        entry.follow_ups.append(due)
        self._left.add(job)

    def tick(self) -> None:
        """Begin what is due and not under way. To be called after it was saved."""
        self._machine_restarted = False
        for job in self._left:
            entry = self._entries.get(job)
            for due in entry.follow_ups if entry is not None else []:
                assert entry is not None
                if mended := mend(entry, due):
                    self._failed(f"job {job}: what was kept of its end ({due.event}) is damaged: {mended}")
                if due.key not in self._under_way:
                    self._under_way[due.key] = _UnderWay(due, asyncio.create_task(self._follow(entry, due)))
        self._left.clear()

    async def _follow(self, entry: Entry, due: FollowUp) -> None:
        try:
            await asyncio.gather(self._command(entry, due), self._messages(entry, due))
        except Exception as e:  # a bug of ours: it must not come back with every daemon
            log.exception("job %d: what follows its end failed", entry.record.id)
            self._failed(f"job {entry.record.id}: what follows its end ({due.event}) failed: {e!r}")
        entry.follow_ups.remove(due)
        self._save(entry)
        del self._under_way[due.key]
        await asyncio.to_thread(forget, self._folder / due.key)

    def _save(self, entry: Entry, *, shown: bool = False) -> None:
        """`shown`: clients see what has changed."""
        if self._entries.get(entry.record.id) is entry:  # else its user has removed it
            (self._changed if shown else self._save_job)(entry.record.id)

    # --- its command ------------------------------------------------------------------------------------------

    async def _command(self, entry: Entry, due: FollowUp) -> None:
        if not due.command_due:
            return
        end, name, attempt = await self._run(entry, due), f"on_{due.event}", due.facts["WANLORA_ATTEMPT"]
        due.command_due = False  # also where there is none: one that is set later is for later endings
        record = entry.record
        shown = end is not None and record.state in ENDED_STATES and str(record.attempt) == attempt
        if end is not None and shown:
            record.outcome = f"{record.outcome}\n{name} {end.text}".lstrip("\n")
        self._save(entry, shown=shown)

    async def _run(self, entry: Entry, due: FollowUp) -> CommandEnd | None:
        """Its command, to its end; None where there is none to run."""
        name, job = f"on_{due.event}", entry.record.id
        attempt = due.facts["WANLORA_ATTEMPT"]
        command = entry.commands.get(due.event)
        if command == "":
            return None
        if due.session != session_here():
            self._failed(f"job {job}: {name} is not run: the machine has restarted since the job ended")
            return None
        when = (await self._read_settings(f"job {job}: {name}")).when if command is None else None
        command = getattr(when, name) if command is None else command
        if not command:
            return None
        if when is None:
            try:
                when = (await self._load()).when
            except UserError:  # it does not need them
                when = WhenSettings()
        log.info("job %d: %s begins", job, name)
        end = await run_command(
            command,
            begun=self._folder / due.key,
            environment=due.facts,
            log=Path(entry.record.run_dir, "logs", f"{name}_{attempt}.log"),
            spare_log=self._folder / f"{name}_{job}_{attempt}.log",
            seconds=60 * when.minutes,
            background=self._background,
        )
        if end.good:
            log.info("job %d: %s %s", job, name, end.text)
        else:
            self._failed(f"job {job}: {name} {end.text}")
        return end

    # --- messages ---------------------------------------------------------------------------------------------

    async def _messages(self, entry: Entry, due: FollowUp) -> None:
        settings = await self._read_settings(f"job {entry.record.id}: the messages about its end")
        message = message_of(due, time.time())
        told = [n for n in settings.notify if due.event in n.on and n.label not in due.delivered]
        await asyncio.gather(*(self._tell(entry, due, target, message) for target in told))

    async def _tell(self, entry: Entry, due: FollowUp, target: NotifySettings, message: Message) -> None:
        job = entry.record.id
        for wait in [*self._waits, None]:
            result = await self._deliver(target, message)
            if result.ok:
                log.info("job %d: %s was told that it is %s: %s", job, target.label, due.event, result.text)
                break
            if not result.again or wait is None:
                self._failed(f"job {job}: {target.label} could not be told that it is {due.event}: {result.text}")
                break
            wait = min(LONGEST_WAIT, max(wait, result.wait))
            log.warning("job %d: %s: %s; once more in %.0f s", job, target.label, result.text, wait)
            await asyncio.sleep(wait)
            with suppress(UserError):  # what its user has mended meanwhile counts
                now = {n.label: n for n in (await self._load()).notify}
                if target.label not in now:
                    log.info("job %d: %s is not to be told any more", job, target.label)
                    break
                target = now[target.label]
        due.delivered.append(target.label)
        self._save(entry)

    async def _deliver(self, target: NotifySettings, message: Message) -> Delivery:
        def work() -> Delivery:
            return deliver(target, message, secret_of(target, self._settings))

        try:
            return await self._background(work, what=target.label, seconds=DELIVERY_SECONDS)
        except UserError as e:
            return Delivery(ok=False, text=str(e))

    async def test(self, name: str) -> list[NotifyResult]:
        """Tell all, or the one of that name, and say what came back. Raises UserError."""
        told = [n for n in (await self._load()).notify if name in ("", n.label)]
        if not told:
            raise UserError(
                f"there is no [[notify]] called {name[:100]}"
                if name
                else "nobody is to be told: there is no [[notify]]",
                where=str(self._settings),
                fix='Write one there, such as:  [[notify]]  kind = "ntfy"  url = "https://ntfy.sh/your-own-topic"',
            )

        async def one(target: NotifySettings) -> NotifyResult:
            result = await self._deliver(target, trial_message(target.label, time.time()))
            return NotifyResult(target.label, target.kind, result.ok, result.text)

        return await asyncio.gather(*map(one, told))

    # --- settings ---------------------------------------------------------------------------------------------

    async def _load(self) -> Settings:
        return await self._background(partial(load_settings, self._settings), what=str(self._settings))

    async def _read_settings(self, what: str) -> Settings:
        """Waits until they can be read: what is to be done is in them. Says so once."""
        said = False
        while True:
            try:
                return await self._load()
            except UserError as e:
                if not said:
                    self._failed(f"{what}: waits until the settings can be read: {e}")
                said = True
            await asyncio.sleep(SETTINGS_WAIT)

    def _failed(self, text: str) -> None:
        log.error("%s", text)
        self.failures.append((time.time(), text))
