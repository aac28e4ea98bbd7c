"""One run, live: loss, pace, memory, what happens, what came out. Leaving it stops nothing."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, RESUMABLE_STATES, RUNNING_STATES, JobRecord
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.feeds.status_lights import Light, daemon_light, trainer_light
from wanlora_tui.output.formatting import state_text
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.compare import CompareScreen, copy_path
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.resume import resume_run
from wanlora_tui.widgets.event_log_view import EventLogView
from wanlora_tui.widgets.files_list import FilesList
from wanlora_tui.widgets.loss_plot import LossPlot
from wanlora_tui.widgets.meters import MemoryBar, Numbers
from wanlora_tui.widgets.phase_bar import PhaseBar
from wanlora_tui.widgets.poster import Poster
from wanlora_tui.widgets.redraw_throttle import Changed, Throttle

WIDTHS = [(0, "-narrow"), (120, "-wide")]  # columns from which on a class holds
HEIGHTS = [(0, "-short"), (30, "-tall")]  # rows
PANES = ("plot", "preview", "log", "files")
TRAINING = frozenset({"starting", "running"})  # its trainer takes commands
POSSIBLE_IN = {
    "stop_run": RUNNING_STATES,
    "resume_run": RESUMABLE_STATES,
    "change_run": TRAINING,
    "save_now": TRAINING,
    "sample_now": TRAINING,
    "go_back": ENDED_STATES,
}
LIGHT_STYLES = {"good": "$text-success", "waiting": "$text-warning", "bad": "bold $text-error", "off": "$text-muted"}


class DashboardScreen(Screen[None]):
    """Renders a ShownRun. `client` is None for a recorded run, which takes no commands."""

    HELP_GROUP = "dashboard"
    AUTO_FOCUS = ""
    BINDINGS = bindings(
        "dashboard.stop",
        "dashboard.resume",
        "dashboard.change",
        "dashboard.save",
        "dashboard.sample",
        "dashboard.checkpoints",
        "dashboard.compare",
        "dashboard.view",
        "dashboard.preview",
        "dashboard.log",
        "dashboard.files",
        "dashboard.plot",
        "dashboard.copy",
        "dashboard.back",
        "dashboard.quit",
    )
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS

    def __init__(self, run: ShownRun, client: Client | None, image: type[Widget], *, host: str = "") -> None:
        super().__init__()
        self.run, self._client, self._image, self._host = run, client, image, host
        self._pane = "plot"
        self._told_away = False
        self._drawing = Throttle(self, self._render_all)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.record.run_dir)

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="lights")
        yield PhaseBar(id="phase")
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield LossPlot(id="plot")
                yield EventLogView(id="log")
            with Vertical(id="right"):
                yield Numbers(id="numbers")
                with Horizontal(id="bars"):
                    yield MemoryBar(id="vram")
                    yield MemoryBar(id="ram")
                yield Poster(self._image, host=self._host, id="preview")
                yield FilesList(id="files")
        # in 80 columns every key counts; the help names the palette
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.action_pane("plot")
        self._follow()
        self.set_interval(1.0, self._render_lights)

    @work(exclusive=True, group="follow")
    async def _follow(self) -> None:
        await self.run.follow(self._changed)

    def _changed(self) -> None:
        self.post_message(Changed())

    # --- rendering ---------------------------------------------------------------------------------------------

    @on(Changed)
    def _draw_soon(self) -> None:
        self._drawing.ask()

    def _render_all(self) -> None:
        record, view = self.run.record, self.run.view
        gpus = "GPU " + ",".join(map(str, record.gpus)) + (f" on {self._host}" if self._host else "")
        self.query_one("#title", Static).update(
            Text.assemble(
                (record.name, "bold"),
                f"  {state_text(record.state)}  attempt {max(1, view.attempt)}  {gpus}",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
        self.query_one(PhaseBar).show(record, view)
        self.query_one(LossPlot).show(view.losses, view.resumed)
        self.query_one(EventLogView).show(view.log)
        self.query_one(Numbers).show(view, running=record.state == "running")
        self.query_one("#vram", MemoryBar).show("VRAM", view.vram_gib, view.vram_total_gib)
        self.query_one("#ram", MemoryBar).show("RAM", view.ram_gib, view.ram_total_gib)
        self.query_one(Poster).show(view.samples, self.run_dir)
        self.query_one(FilesList).show(
            view, self.run_dir, failure=record.outcome or view.outcome if record.state == "failed" else ""
        )
        self._render_lights()
        if self.is_current:  # under a dialog the actions would be looked up in that
            self.refresh_bindings()
        if self.run.away and not self._told_away:
            self._told_away = True
            self.notify(self.run.away, timeout=10)

    def _render_lights(self) -> None:
        lights: list[Light] = [
            daemon_light(self.run.beat_age),
            trainer_light(self.run.record, self.run.view, self.run.beat, self.run.beat_age),
        ]
        parts = [part for light in lights for part in ((light.line, LIGHT_STYLES[light.level]), "   ")]
        self.query_one("#lights", Static).update(Content.assemble(*parts, self.run.problem))

    # --- panes: in a narrow terminal one at a time -------------------------------------------------------------

    def action_pane(self, pane: str) -> None:
        """Show one pane; the same key again goes back to the loss. In a wide terminal all are there: the key focuses
        it."""
        wide = self.has_class("-wide")
        self._pane = "plot" if pane == self._pane and not wide else pane
        for name in PANES:
            self.set_class(name == self._pane, f"-pane-{name}")
        target = self.query_one(f"#{self._pane}")
        if target.can_focus:
            target.focus()
        else:
            self.set_focus(None)
        self.call_after_refresh(self._render_all)

    def action_next_pane(self) -> None:
        self.action_pane(PANES[(PANES.index(self._pane) + 1) % len(PANES)])

    # --- commands ----------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What makes no sense for the job's state is not offered; what cannot be done just now is greyed out in the
        footer."""
        if action == "compare":
            return bool(self.run.view.samples)
        possible_in = POSSIBLE_IN.get(action)
        if possible_in is None:
            return True
        state = self.run.record.state
        if state not in possible_in:
            return False
        return None if self._client is None or state == "stopping" else True

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
        if queued := await resume_run(self.app, self._client, self.run.record, from_step=from_step):
            self.run.record = queued
            self.post_message(Changed())

    @work
    async def action_change_run(self) -> None:
        changed = await self.app.push_screen_wait(ChangeScreen(self.run.record.name, self.run.view.settings))
        sent = []
        for field, value in changed or []:
            if await self._send(Client.set, field, value):
                sent.append(f"{field} = {value or 'left out'}")
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

    def action_compare(self) -> None:
        self.app.push_screen(CompareScreen(self.run, self.run_dir, self._image, host=self._host))

    async def _send(self, request: Callable[..., Awaitable[JobRecord]], *values: str) -> bool:
        """Whether the daemon took a request of the Client about this job; a refusal is shown."""
        try:
            self.run.record = await request(self._client, self.run.record.id, *values)
        except DaemonError as e:
            self.notify(str(e), severity="error", timeout=10)
            return False
        self.post_message(Changed())
        return True

    def action_copy_path(self) -> None:
        copy_path(self, self.run_dir, title="Run folder")

    def action_back(self) -> None:
        self.app.close_dashboard()  # type: ignore[attr-defined]

    @property
    def is_over(self) -> bool:
        """Whether the run has ended and all it said has been folded in."""
        return self.run.record.state in ENDED_STATES
