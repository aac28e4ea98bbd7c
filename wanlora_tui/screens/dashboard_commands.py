"""What the dashboard asks of the daemon about its run, each with its question and its answer. What is drawn is
wanlora_tui.screens.dashboard's; when an action is offered, wanlora_tui.feeds.offers's.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from textual import work

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.job.diff import live_value
from presets.text import setting_text
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.feeds.status_lights import answers
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.kinds import AsksDaemon
from wanlora_tui.screens.resume import resume_run
from wanlora_tui.widgets.redraw_throttle import Changed

# of run folder, job and who is told how it gets on: brings the newest LoRA files here, and says which
FarRun = Callable[[str, str, Callable[[str], None]], str]


class RunCommands(AsksDaemon):
    """The actions of a screen over one run. `client` is None for a recorded run, which takes none."""

    def __init__(self, run: ShownRun, client: Client | None, fetch: FarRun | None) -> None:
        super().__init__()
        self.run, self._client, self._fetch = run, client, fetch
        self._fetching = ""  # how the fetch gets on

    @property
    def run_dir(self) -> Path:
        return Path(self.run.record.run_dir)

    @property
    def daemon_answers(self) -> bool:
        return answers(self.run.beat_age, self.run.problem)

    @work
    async def action_stop_run(self) -> None:
        name = self.run.record.name
        question = (
            f"Stop {name}? It saves a checkpoint first and can be resumed.\nTo leave without stopping it, press q"
            " instead."
        )
        if await self.app.push_screen_wait(Confirm(question, "Stop", "Keep running")) and await self._send(Client.stop):
            self.notify(f"{name} will save and stop.")

    @work
    async def action_resume_run(self) -> None:
        await self._resume()

    async def _resume(self, from_step: int | None = None) -> None:
        assert self._client is not None
        with self.coming():
            queued = await resume_run(self.app, self._client, self.run.record, from_step=from_step)
        if queued:
            self.run.take(queued)
            self.post_message(Changed())

    @work
    async def action_change_run(self) -> None:
        changed = await self.app.push_screen_wait(ChangeScreen(self.run.record.name, self.run.view.settings))
        sent = []
        for field, value in changed or []:
            if await self._send(Client.set, field, value):
                sent.append(f"{field} = {setting_text(field, live_value(field, value))}")
        if sent:
            self.notify("\n".join([*sent, "from the next step on."]))

    @work
    async def action_save_now(self) -> None:
        if await self._send(Client.save_now):
            self.notify("A checkpoint is written after the step it is at.")

    @work
    async def action_sample_now(self) -> None:
        if await self._send(Client.sample_now):
            self.notify("The previews are made after the step it is at.")

    @work
    async def action_go_back(self) -> None:
        """Show the checkpoints, and go back to the one that is chosen."""
        assert self._client is not None
        record = self.run.record
        try:
            with self.coming():
                record, found = await self._client.checkpoints(record.id)
        except DaemonError as e:
            self.notify(str(e), severity="error", timeout=10)
            return
        if not found:
            self.notify(f"{record.name} has no checkpoint yet.", severity="warning")
            return
        step = await self.app.push_screen_wait(CheckpointsScreen(record.name, self.run_dir, found))
        if step is None:
            return
        later = record.step - step
        question = f"Go back to step {step} of {record.name} and train on from there?" + (
            f"\nThe {later} steps after it are set aside in the run folder (abandoned)." if later > 0 else ""
        )
        if await self.app.push_screen_wait(Confirm(question, "Go back", "Stay")):
            await self._resume(step)

    @work(thread=True, exclusive=True, group="fetch")
    def action_fetch(self) -> None:
        """Bring the newest LoRA files here; said in the files pane while it lasts."""
        assert self._fetch is not None

        def tell(text: str) -> None:
            self._fetching = text
            self.post_message(Changed())

        tell("connecting")
        self.app.call_from_thread(self.notify, "The newest LoRA files are being fetched: f shows how it gets on.")
        try:
            text = self._fetch(str(self.run_dir), self.run.record.name, tell)
            self.app.call_from_thread(self.notify, text, timeout=10)
        except UserError as e:
            self.app.call_from_thread(self.notify, str(e), severity="error", timeout=15)
        finally:
            tell("")

    async def _send(self, request: Callable[..., Awaitable[JobRecord]], *values: str) -> bool:
        """Whether the daemon took a request of the Client about this job; a refusal is shown."""
        try:
            self.run.take(await request(self._client, self.run.record.id, *values))
        except DaemonError as e:
            self.notify(str(e), severity="error", timeout=10)
            return False
        self.post_message(Changed())
        return True
