"""What is asked of the daemon about the job under the cursor, and about the list: each after the question it needs."""

from collections import Counter
from collections.abc import Awaitable, Callable

from textual import work

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.list_messages import HIGHEST_PRIORITY, Place
from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, RESUMABLE_STATES, RUNNING_STATES, JobRecord
from presets.errors import UserError
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.feeds.status_lights import answers
from wanlora_tui.output.formatting import count, waits_for
from wanlora_tui.screens.kinds import AsksDaemon

Request = Callable[[int], Awaitable[JobRecord]]


def possible(record: JobRecord) -> dict[str, bool]:
    """Action -> whether it does anything for a job in this state."""
    queued = record.state == "queued"
    return {
        "open_job": True,
        "stop_job": record.state in ("starting", "running"),
        "resume_job": record.state in RESUMABLE_STATES or bool(waits_for(record)),
        "cancel_job": record.state in LIVE_STATES,
        "hold_job": queued,
        "move_job": queued,
        "prioritize_job": queued,
        "rename_job": True,
        "duplicate_job": True,
        "remove_job": record.state not in RUNNING_STATES,
        "copy_path": True,
    }


class JobRequests(AsksDaemon):
    """A screen with a job under its cursor."""

    def __init__(self, client: Client, job_list: JobList) -> None:
        super().__init__()
        self._client, self._job_list = client, job_list

    def _current(self) -> JobRecord | None:
        raise NotImplementedError

    def go_to(self, record: JobRecord) -> None:
        """Put the cursor on it."""
        raise NotImplementedError

    @property
    def daemon_answers(self) -> bool:
        return answers(self._job_list.beat_age, self._job_list.problem)

    async def _sure(self, question: str, yes: str, no: str) -> bool:
        from wanlora_tui.screens.confirm import Confirm  # the first frame does not wait for it, nor for resuming

        return await self.app.push_screen_wait(Confirm(question, yes, no))

    @work
    async def action_stop_job(self) -> None:
        record = self._current()
        if record is not None and await self._sure(
            f"Stop {record.name}? It saves a checkpoint first and can be resumed.", "Stop", "Keep running"
        ):
            await self._send(self._client.stop, record, "will save and stop")

    @work
    async def action_resume_job(self) -> None:
        record = self._current()
        if record is not None:
            from wanlora_tui.screens.resume import resume_run

            with self.coming():
                await resume_run(self.app, self._client, record)

    @work
    async def action_cancel_job(self) -> None:
        record = self._current()
        if record is None:
            return
        loses = (
            f" What it trained since its last checkpoint is lost (step {record.step} now)."
            if record.state not in ("queued", "starting")
            else ""
        )
        if await self._sure(f"Cancel {record.name}?{loses}", "Cancel the job", "Keep it"):
            await self._send(
                self._client.cancel, record, "is cancelled" if record.state == "queued" else "ends without saving"
            )

    @work
    async def action_hold_job(self) -> None:
        record = self._current()
        if record is not None and record.held:
            await self._send(self._client.release, record, "may start when its turn comes")
        elif record is not None:
            await self._send(self._client.hold, record, "is held: it does not start until H lets it go")

    @work
    async def action_move_job(self, by: int) -> None:
        record = self._current()
        queued = [r for r in self._job_list.ordered() if r.state == "queued"]
        if record not in queued:
            return
        to = queued.index(record) + by
        if 0 <= to < len(queued):
            place: Place = "before" if by < 0 else "after"
            other = queued[to]
            await self._send(lambda job: self._client.move(job, place, other.id), record, f"comes {place} {other.name}")

    @work
    async def action_prioritize_job(self) -> None:
        from wanlora_tui.screens.jobs.dialogs import AskText

        record = self._current()
        if record is None:
            return

        def wrong(text: str) -> str:
            try:
                fits = abs(int(text)) <= HIGHEST_PRIORITY
            except ValueError:
                fits = False
            return "" if fits else f"A whole number between -{HIGHEST_PRIORITY} and {HIGHEST_PRIORITY}"

        text = await self.app.push_screen_wait(
            AskText(
                f"Priority of {record.name}",
                "Of queued jobs the one with the higher number runs first; 0 is usual.",
                str(record.priority),
                "Set",
                wrong=wrong,
            )
        )
        if text is not None and int(text) != record.priority:
            await self._send(lambda job: self._client.set_priority(job, int(text)), record, f"has priority {int(text)}")

    @work
    async def action_rename_job(self) -> None:
        """Ask until the daemon takes a name, or the user gives up."""
        from wanlora_tui.screens.jobs.dialogs import AskText

        record, problem, name = self._current(), "", ""
        while record is not None:
            begun = record.attempt > 0
            hint = (
                "Its run folder and files keep their name: it has begun."
                if begun
                else "Its run folder and files get this name too: it has not begun yet."
            )
            text = await self.app.push_screen_wait(
                AskText(
                    f"Rename {record.name}",
                    f"{problem}\n{hint}" if problem else hint,
                    name or record.name,
                    "Rename",
                    wrong=lambda text: "" if text else "It needs a name",
                )
            )
            if text is None or text == record.name:
                return
            try:
                with self.coming():  # the question again, where it is refused
                    await self._client.rename(record.id, text)
            except (DaemonError, UserError) as e:
                problem, name = f"✗ {e}", text
            else:
                self.notify(f"{record.name} is called {text} now.")
                return

    @work
    async def action_remove_job(self) -> None:
        record = self._current()
        if record is not None and await self._sure(
            f"Remove {record.name} from the list? Its run folder stays.", "Remove", "Keep it"
        ):
            await self._send(self._client.remove, record, "is off the list; its run folder stays")

    @work
    async def action_remove_ended(self) -> None:
        """Those that had ended when it was asked, and have not begun again since."""
        from wanlora_tui.screens.jobs.dialogs import AskEnded

        ended = [r for r in self._job_list.records.values() if r.state in ENDED_STATES]
        states = await self.app.push_screen_wait(AskEnded(dict(Counter(r.state for r in ended))))
        removed = 0
        for record in ended if states else []:
            now = self._job_list.records.get(record.id)
            if states and record.state in states and now is not None and now.state == record.state:
                try:
                    await self._client.remove(record.id)
                except (DaemonError, UserError) as e:
                    self.notify(str(e), severity="error", timeout=10)
                    break
                removed += 1
        if removed:
            self.notify(f"{count(removed, 'job')} removed from the list; the run folders stay.")

    async def _send(self, request: Request, record: JobRecord, done: str) -> None:
        """`done`: what is said of the job once the daemon has taken it."""
        try:
            await request(record.id)
        except (DaemonError, UserError) as e:
            self.notify(str(e), severity="error", timeout=10)
        else:
            self.notify(f"{record.name} {done}.")
