"""One run, live: loss, pace, memory, what happens, what came out. Leaving it stops nothing."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content

from daemon.settings import CostSettings
from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, RUNNING_STATES, JobRecord
from daemon.wire.records import RunMachine
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.offers import COMMANDS, as_told, offer
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.feeds.run_times import FREE, run_times
from wanlora_tui.feeds.status_lights import Light, Link, daemon_light, no_link, trainer_light
from wanlora_tui.film.poster import Poster
from wanlora_tui.output.far_words import advised, is_away
from wanlora_tui.output.formatting import device_text, state_text
from wanlora_tui.plot.loss_plot import LossPlot
from wanlora_tui.screens.copying import copy_path
from wanlora_tui.screens.dashboard_commands import FarRun, RunCommands
from wanlora_tui.screens.first_layout import FirstLayout
from wanlora_tui.screens.log import LogScreen
from wanlora_tui.terminal.desktop import can_open, open_folder
from wanlora_tui.terminal.pictures import Drawer, drawer
from wanlora_tui.terminal.rows import Rows
from wanlora_tui.transfer.here import HereFiles
from wanlora_tui.transfer.messages import Files
from wanlora_tui.transfer.pictures import HerePictures, Pictures
from wanlora_tui.widgets.event_log_view import EventLogView
from wanlora_tui.widgets.files_list import FilesList
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.machine_health import MachineHealth, still_to_write
from wanlora_tui.widgets.meters import MemoryBar, Numbers
from wanlora_tui.widgets.phase_bar import PhaseBar, TitleLine
from wanlora_tui.widgets.redraw_throttle import Changed, Rest, Throttle, is_seen

if TYPE_CHECKING:
    from wanlora_tui.screens.compare import CompareScreen
    from wanlora_tui.screens.contact_sheet import ContactSheet

WIDTHS = [(0, "-narrow"), (120, "-wide")]  # columns from which on a class holds
HEIGHTS = [(0, "-low"), (20, "-short"), (30, "-tall"), (44, "-high")]  # rows
SPARE = ("dashboard.change", "dashboard.sample", "dashboard.save", "dashboard.checkpoints", "dashboard.compare")
MORE = ("dashboard.fetch", "dashboard.whole_log", "dashboard.copy", "dashboard.folder")
TICK = 1.1  # seconds after which time is looked at, where no beat of the daemon's has come, one each second
CLOCK_SECONDS = 1.9  # between two drawings of figures that time alone changes: at a beat, and not at each
PANES = ("plot", "preview", "log", "files")
LIGHT_STYLES = {"good": "$text-success", "waiting": "$text-warning", "bad": "bold $text-error", "off": "$text-muted"}


class DashboardScreen(RunCommands, FirstLayout):
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
        "dashboard.play",
        "dashboard.picture",
        "dashboard.sheet",
        "dashboard.fetch",
        "dashboard.view",
        "dashboard.preview",
        "dashboard.log",
        "dashboard.files",
        "dashboard.plot",
        "dashboard.add_run",
        "dashboard.copy",
        "dashboard.folder",
        "dashboard.whole_log",
        "dashboard.back",
        "dashboard.quit",
    )
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS

    def __init__(
        self,
        run: ShownRun,
        client: Client | None,
        image: Drawer,
        *,
        host: str = "",
        link: Link = no_link,
        pictures: Pictures | None = None,
        fetch: FarRun | None = None,
        cost: CostSettings | None = None,
        files: Callable[[], Files] = HereFiles,
    ) -> None:
        super().__init__(run, client, fetch)
        self._image, self._host, self._link = image, host, link
        self._pictures, self._cost, self._files = pictures or HerePictures(), cost or FREE, files
        self._pane = "plot"
        self.add_class("-pane-plot")
        self._told_away, self._told_anew = False, 0
        self._drawing = Throttle(self, self._draw_news)
        self._ticking = Rest(self, self._tick, TICK)
        self._shown: tuple[object, ...] = ()
        self._counted_at = 0.0  # when the numbers were drawn
        self._offered: tuple[object, ...] = ()  # of what the footer shows

    def compose(self) -> ComposeResult:
        yield TitleLine(id="title")
        yield Rows(id="lights")
        yield PhaseBar(id="phase")
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield LossPlot(self._client, self.run.record.id, id="plot")
                yield EventLogView(id="log")
            with Vertical(id="right"):
                yield Numbers(id="numbers")
                with Horizontal(id="bars"):
                    yield MemoryBar(id="vram")
                    yield MemoryBar(id="ram")
                yield MachineHealth(id="health")
                yield Poster(self._image, pictures=self._pictures, id="preview")
                yield FilesList(id="files")
        yield FittingFooter(spare=SPARE, more=MORE)

    def on_mount(self) -> None:
        self.action_pane("plot")
        self._follow()

    @work(exclusive=True, group="follow")
    async def _follow(self) -> None:
        await self.run.follow(self._changed)

    def _changed(self) -> None:
        if is_seen(self):
            self.post_message(Changed())

    def on_screen_suspend(self) -> None:
        if not is_seen(self):  # below a dialog the lights go on
            self._ticking.cancel()

    def on_screen_resume(self) -> None:
        self._ticking.ask()
        self.query_one(LossPlot).rank_anew()
        self._changed()

    # --- rendering ---------------------------------------------------------------------------------------------

    @on(Changed)
    def _draw_soon(self) -> None:
        self._drawing.ask()

    def _is_news(self) -> bool:
        """Whether anything but time has changed since the last drawing: most beats say only that all goes on."""
        run, view = self.run, self.run.view
        record = msgspec.structs.replace(run.record)
        if record.state in RUNNING_STATES:  # of the steps the view tells, and before the daemon's list does
            record.revision, record.step, record.ends_at = 0, 0, None
        alive = run.beat is not None and (run.beat.state, run.beat.trainer_alive)
        words = (run.problem, run.anew, run.away, self._fetching, self.app.theme)
        shown = (record, alive, view.run, view.last_seq, words)
        if shown == self._shown:
            return False
        self._shown = shown
        return True

    def _draw_news(self) -> None:
        if self._is_news():
            self._render_all()
        else:
            self.query_one(Poster).show(self.run.view, self.run_dir)  # a picture may have come from afar
        self._tick()

    def _render_all(self) -> None:
        record, view = self.shown, self.run.view
        device = device_text(record, view) + (f" on {self._host}" if self._host else "")
        number = max(view.attempt, record.attempt)
        attempt = f"  attempt {number}" if number else ""
        self.query_one(TitleLine).show(record.name, f"  {state_text(record.state)}{attempt}  {device}")
        self.query_one(PhaseBar).show(record, view)
        self.query_one(LossPlot).show(view)
        self.query_one(EventLogView).show(view.log)
        self._render_numbers()
        self.query_one(Poster).show(view, self.run_dir)
        self.query_one(FilesList).show(
            view,
            self.run_dir,
            failure=record.outcome or view.outcome if record.state == "failed" else "",
            fetching=self._fetching,
        )
        self._render_lights()
        if self.run.anew > self._told_anew:
            self._told_anew = self.run.anew
            self.notify(f"{record.name} has begun anew: its run folder was emptied.", severity="warning", timeout=10)
        if self.run.away and not self._told_away:
            self._told_away = True
            self.notify(self.run.away, timeout=10)

    def _render_numbers(self) -> None:
        """What also changes between two events."""
        self._counted_at = time.monotonic()
        record, view, beat = self.run.record, self.run.view, self.run.beat
        machine = beat.machine if beat is not None else None
        times = run_times(record, view, beat, self.run.beat_age, cost=self._cost)
        self.query_one(Numbers).show(view, times, record.steps)
        seen = machine or RunMachine()
        vram, ram = (view.vram_gib, view.vram_total_gib), (view.ram_gib, view.ram_total_gib)
        if not view.vram_gib and len(seen.gpus) == 1 and seen.gpus[0].memory_total:
            vram = (seen.gpus[0].memory_used or 0) / 2**30, seen.gpus[0].memory_total / 2**30
        if seen.memory is not None:
            ram = seen.memory / 2**30, view.ram_total_gib or (seen.memory_total or 0) / 2**30
        self.query_one("#vram", MemoryBar).show("VRAM", *vram)
        self.query_one("#ram", MemoryBar).show("RAM of the run", *ram)
        planned = record.planned.disk if record.planned is not None else 0
        wanted = 0 if self.shown.state in ENDED_STATES else still_to_write(planned, machine)
        self.query_one(MachineHealth).show(machine, wanted, view.ranks)

    def _render_keys(self) -> None:
        """The footer follows what is possible."""
        record, view = self.run.record, self.run.view
        commands = (offer(action, record, view) for action in sorted(COMMANDS))
        offered = (len(view.samples), self.daemon_answers, *commands)
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _tick(self) -> None:
        """What time alone changes: the lights at once, figures every other beat."""
        if not is_seen(self):  # a drawing that was put off
            return
        self._render_lights()
        if not self.is_over and time.monotonic() >= self._counted_at + CLOCK_SECONDS:
            self._render_numbers()
        self._ticking.ask()

    def _render_lights(self) -> None:
        link = self._link(self.run.beat_age)
        lights: list[Light] = [
            link or daemon_light(self.run.beat_age),
            trainer_light(self.shown, self.run.view, self.run.beat, self.run.beat_age),
        ]
        parts = [part for light in lights for part in ((light.line, LIGHT_STYLES[light.level]), "   ")]
        problem = "" if link else escaped(advised(self.run.problem))
        self.query_one("#lights", Rows).put([Content.assemble(*parts, problem)])
        if link:  # whether ssh may be answered
            self.refresh_bindings()
        self._render_keys()

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
        if not super().check_action(action, parameters):
            return False
        if action == "play":
            return bool(self.run.view.samples) and all(poster.player.film for poster in self.query(Poster))
        if action in ("picture", "sheet"):
            return bool(self.run.view.samples)
        if action == "fetch":
            return self._fetch is not None
        if action == "open_folder":
            return not is_away() and can_open()
        offered = offer(action, self.run.record, self.run.view)
        return None if offered and self._client is None and action in COMMANDS else offered

    def action_add_run(self) -> None:
        self.query_one(LossPlot).add_run()

    def action_compare(self) -> None:
        from wanlora_tui.screens.compare import CompareScreen

        self._open(CompareScreen)

    @on(Poster.Opened)
    def action_picture(self) -> None:
        from wanlora_tui.screens.compare import PictureScreen

        self._open(PictureScreen)

    def action_sheet(self) -> None:
        from wanlora_tui.screens.contact_sheet import ContactSheet

        self._open(ContactSheet)

    def _open(self, screen: "type[CompareScreen | ContactSheet]") -> None:
        poster = self.query_one(Poster)
        image, playhead = drawer(self._image), poster.player.playhead
        shown = screen(self.run, self.run_dir, image, pictures=self._pictures, at=poster.at, playhead=playhead)
        self.app.push_screen(shown, poster.look_at)

    def action_play(self) -> None:
        """In its pane, which a narrow terminal shows first."""
        if self._pane != "preview":
            self.action_pane("preview")
        self.query_one(Poster).action_play()

    def action_copy_path(self) -> None:
        """Of the file under the cursor, or of the preview that has the focus."""
        chosen = self.query_one(FilesList).chosen or self.query_one(Poster).chosen
        what, path = chosen or ("Run folder", self.run_dir)
        copy_path(self, path, title=what)

    def action_open_folder(self) -> None:
        if problem := open_folder(self.run_dir):
            self.notify(problem, severity="warning")

    def action_whole_log(self) -> None:
        self.app.push_screen(LogScreen(self.run, self._files, self._link))

    def action_back(self) -> None:
        self.app.close_dashboard()  # type: ignore[attr-defined]

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, and the daemon knows."""
        return self.run.record.state in ENDED_STATES

    @property
    def shown(self) -> JobRecord:
        """The run's record, as its last word makes it."""
        return as_told(self.run.record, self.run.view)
