"""The plot of a run: it draws what wanlora_tui.plot.figure makes of it, and takes keys and the mouse."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.style import Style
from textual import events, on, work
from textual.content import Content
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.runs.run_view import RunView
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import count
from wanlora_tui.plot.curves import MOST_RUNS
from wanlora_tui.plot.figure import SMOOTHING, Figure, Options, draw
from wanlora_tui.plot.marks import Best, best_of
from wanlora_tui.plot.other_runs import OtherCame, OtherRuns, follow, key_of, read_folder
from wanlora_tui.plot.painter import Painter
from wanlora_tui.plot.reading import in_lines, legend, lines_below, lines_for, read
from wanlora_tui.plot.series import PlottedRun, plotted
from wanlora_tui.plot.title import EMPTY, title, with_keys
from wanlora_tui.plot.window import Window, panned, zoomed
from wanlora_tui.widgets.redraw_throttle import Throttle

WHEEL = 0.8  # times as wide with each notch
# between two drawings for steps, whose numbers are told elsewhere at once; and for those that move nothing by a dot
STEP_SECONDS, UNSEEN_SECONDS = 5.0, 10.0


def _about(view: RunView) -> tuple[object, ...]:
    """What a plot shows besides steps."""
    marks = len(view.checkpoints), len(view.samples), len(view.measured), len(view.changes), len(view.findings)
    return view.run, view.attempt, view.state, len(view.losses), len(view.resumed), len(view.abandoned), marks


class LossPlot(Widget, can_focus=True):
    """Loss and rate over steps. `show` draws a fold; `own` is its job, which is not offered to be compared with."""

    ALLOW_SELECT = False
    BINDINGS = bindings(
        "plot.zoom_in",
        "plot.zoom_out",
        "plot.reset",
        "plot.left",
        "plot.right",
        "plot.pan_left",
        "plot.pan_right",
        "plot.next_mark",
        "plot.previous_mark",
        "plot.less",
        "plot.more",
        "plot.log",
        "plot.panels",
        "plot.range",
    )

    def __init__(self, client: Client | None = None, own: int = 0, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._client, self._own = client, own
        self._view = RunView()
        self._others: dict[str, tuple[str, RunView]] = {}  # by key: the name shown, and what is known
        self._made: dict[str, PlottedRun] = {}  # of the views by the same keys, the own one's "", until they change
        self._options = Options()
        self._window: Window | None = None  # all steps, also those to come
        self._cursor: float | None = None  # a step
        self._read_lines = 0  # that the cursor has needed since it is there: so many stay, and the plot with them
        self._hovering = False
        self._dragged: tuple[int, Window] | None = None  # from which column, and what was shown then
        self._figure: Figure | None = None
        self._size_drawn = Size()
        self._strips: dict[int, Strip] = {}  # of the rows drawn so far
        self._painter = Painter({}, Style())
        self._redraw = Throttle(self, self._draw_anew)
        self._shown: tuple[object, ...] = ()  # of the view
        self._title = Content()
        self._best: Best | None = None
        self._ranked: tuple[object, ...] = ()  # what the best checkpoint was asked for

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self._restyle())
        self._say()

    def show(self, view: RunView) -> None:
        """A view that holds nothing new draws nothing; steps alone draw now and then, and later where no eye could see
        them."""
        before, about = self._shown, _about(view)
        if view is self._view and (view.last_seq, *about) == before:
            return
        self._view, self._shown = view, (view.last_seq, *about)
        self._made.pop("", None)
        if self._figure is not None and about == before[1:] and self._size_drawn == self.size:
            self._redraw.ask(UNSEEN_SECONDS if self._moves_little(self._figure, view.step) else STEP_SECONDS)
        else:
            self._draw_anew()
        known = view.run, len(view.checkpoints), len(view.measured), view.state
        if known != self._ranked:
            self._ranked = known
            self.rank_anew()

    @staticmethod
    def _moves_little(figure: Figure, step: int) -> bool:
        """Whether a drawing up to a step would look like the present one."""
        beyond = figure.window.high < figure.whole.high  # zoomed to what came before
        return beyond or step - figure.window.high < figure.window.width / max(1, 2 * figure.columns)

    def rank_anew(self) -> None:
        """Ask which checkpoint is best: there may be others, or previews may have been measured."""
        if self._view.measured and self._client is not None:
            self._ask_for_best(self._client)

    @work(exclusive=True, group="best", exit_on_error=False)
    async def _ask_for_best(self, client: Client) -> None:
        with suppress(DaemonError):  # the best held-out loss is marked
            best = best_of((await client.checkpoints(self._own))[1])
            if best != self._best:
                self._best = best
                self._made.pop("", None)
                self._draw_anew()

    # --- drawing: what is not seen is not computed -------------------------------------------------------------

    def _draw_anew(self) -> None:
        """Of what is seen already, the rows that differ."""
        self._say()
        before, size = self._figure, self._size_drawn
        self._figure = None
        rows = self.figure.rows if before is not None and size == self.size and self.is_on_screen else []
        if before is None or len(rows) != len(before.rows):
            self.refresh()
            return
        changed = [y for y, row in enumerate(rows) if row != before.rows[y]]
        if self._cursor is not None or legend(self.figure) != legend(before):
            changed += range(len(rows), self.size.height)
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def _restyle(self) -> None:
        self._painter = Painter(self.app.theme_variables, self.rich_style)
        self._figure = None
        self._draw_anew()

    def on_resize(self) -> None:
        self._draw_anew()

    def _runs(self) -> list[PlottedRun]:
        views = {"": self._view} | {key: view for key, (_, view) in self._others.items()}
        self._made = {
            key: self._made.get(key) or plotted(view, None if key else self._best) for key, view in views.items()
        }
        return list(self._made.values())

    @property
    def figure(self) -> Figure:
        """As it is drawn at the present size."""
        if self._figure is None or self._size_drawn != self.size:
            columns, rows = self._size_drawn = self.size
            foot = self._foot_rows()
            self._figure = draw(self._runs(), self._options, self._window, columns, rows - foot)
            self._read_lines = self._lines_to_read(self._figure)
            if self._foot_rows() != foot:
                self._figure = draw(self._runs(), self._options, self._window, columns, rows - self._foot_rows())
            self._strips = {}
            if (ground := self.rich_style) != self._painter.ground:
                self._painter = Painter(self.app.theme_variables, ground)
        return self._figure

    def _foot_rows(self) -> int:
        return lines_below(self.size.height, max(self._read_lines, 2 if self._others else 1))

    def _lines_to_read(self, figure: Figure) -> int:
        needed = 0 if self._cursor is None else lines_for(read(figure, self._cursor), self.size.width)
        return max(self._read_lines, needed) if needed else 0

    def render_line(self, y: int) -> Strip:
        figure = self.figure
        if y >= len(figure.rows):
            return self._foot(y - len(figure.rows))
        if y not in self._strips:
            self._strips[y] = self._painter.row(*figure.rows[y])
        at = self._cursor_column()
        return self._strips[y] if at is None else self._painter.with_cursor(self._strips[y], at)

    def _cursor_column(self) -> int | None:
        if self._cursor is None:
            return None
        figure = self.figure
        if not figure.columns or not figure.window.low <= self._cursor <= figure.window.high:
            return None
        return figure.left + figure.column_of(self._cursor)

    def _foot(self, row: int) -> Strip:
        pieces = legend(self.figure) if self._cursor is None else read(self.figure, self._cursor)
        width, height = self._size_drawn
        return self._painter.line(in_lines(pieces, width, height - len(self.figure.rows))[row], width)

    def _say(self) -> None:
        """The border: what is drawn, and while the plot has the focus, its keys."""
        experts = [expert for expert, points in self._view.losses.items() if points]
        others = [(name, any(view.losses.values())) for name, view in self._others.values()]
        said = title(experts, others, self._options, self._window) if experts else Content(EMPTY)
        if experts and self.has_focus:
            said = with_keys(said, self.size.width)
        if not said.is_same(self._title):  # another one draws all of the plot
            self._title = self.border_title = said

    def watch_has_focus(self, has_focus: bool) -> None:  # Textual sets it only after `on_focus`
        super().watch_has_focus(has_focus)
        if not has_focus:
            self._set_cursor(None)
        self._say()

    # --- zoom, pan, cursor -------------------------------------------------------------------------------------

    def _set_window(self, window: Window | None) -> None:
        if window != self._window:
            self._window = window
            self._draw_anew()

    def _zoom(self, at: float, factor: float) -> None:
        figure = self.figure
        self._set_window(zoomed(figure.window, figure.whole, at, factor))

    def _set_cursor(self, step: float | None) -> None:
        before = self._cursor_column()
        self._cursor = step
        if self._figure is None:
            return
        if self._lines_to_read(self._figure) != self._read_lines:
            self._draw_anew()
            return
        height = len(self._figure.rows)
        for column in {before, self._cursor_column()} - {None}:
            self.refresh(Region(column or 0, 0, 1, height))
        self.refresh(Region(0, height, self.size.width, self.size.height - height))

    def action_zoom(self, factor: float) -> None:
        window = self.figure.window
        self._zoom((window.low + window.high) / 2 if self._cursor is None else self._cursor, factor)

    def action_reset(self) -> None:
        self._set_window(None)

    def action_pan(self, part: float) -> None:
        if self._window is not None:
            self._set_window(panned(self._window, self.figure.whole, part * self._window.width))

    def action_move(self, columns: int) -> None:
        figure = self.figure
        if not figure.columns:
            return
        self._hovering = False
        by = max(1.0, figure.window.width / figure.columns)
        begin = figure.window.high if columns < 0 else figure.window.low - by
        step = (begin + by if columns < 0 else begin) if self._cursor is None else self._cursor
        self._go(max(figure.whole.low, min(round(step + columns * by), figure.whole.high)))

    def _go(self, step: float) -> None:
        """Put the cursor on a step, and bring that into what is shown."""
        figure = self.figure
        if self._window is not None and not self._window.low <= step <= self._window.high:
            by = step - (self._window.low if step < self._window.low else self._window.high)
            self._set_window(panned(self._window, figure.whole, by))
        self._set_cursor(step)

    def action_next_mark(self, way: int) -> None:
        whole = self.figure.whole
        steps = sorted({m.step for m in self._runs()[0].marks if whole.low <= m.step <= whole.high})
        at = self._cursor if self._cursor is not None else (-1 if way > 0 else float("inf"))
        further = [s for s in steps if (s > at if way > 0 else s < at)]
        if further:
            self._hovering = False
            self._go(further[0] if way > 0 else further[-1])

    def action_smooth(self, by: int) -> None:
        level = max(0, min(self._options.smoothing + by, len(SMOOTHING) - 1))
        self._set_options(replace(self._options, smoothing=level))

    def action_log(self) -> None:
        self._set_options(replace(self._options, log=not self._options.log))

    def action_range(self) -> None:
        self._set_options(replace(self._options, everything=not self._options.everything))

    def action_panels(self) -> None:
        self._set_options(replace(self._options, apart=not self.figure.apart))

    def _set_options(self, options: Options) -> None:
        self._options = options
        self._draw_anew()

    # --- mouse -------------------------------------------------------------------------------------------------

    def _step_under(self, event: events.MouseEvent) -> float | None:
        at = event.get_content_offset_capture(self).x - self.figure.left
        return self.figure.step_at(at) if 0 <= at < self.figure.columns else None

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, 1 / WHEEL)

    def _wheel(self, event: events.MouseEvent, factor: float) -> None:
        event.stop()
        step = self._step_under(event)
        if step is not None:
            self._zoom(step, factor)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        if event.button == 1:
            self._dragged = event.screen_x, self.figure.window
            self.capture_mouse()

    def on_mouse_up(self) -> None:
        self._dragged = None
        self.release_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragged is not None and self._window is not None and self.figure.columns:
            begin, window = self._dragged
            by = (begin - event.screen_x) / self.figure.columns * window.width
            self._set_window(panned(window, self.figure.whole, by))
            return
        step = self._step_under(event)
        if step is not None:
            self._hovering = True
            self._set_cursor(step)

    def on_leave(self) -> None:
        if self._hovering:
            self._hovering = False
            self._set_cursor(None)

    def on_click(self, event: events.Click) -> None:
        if event.chain == 2:
            self.action_reset()

    # --- runs to compare with ----------------------------------------------------------------------------------

    @work(exclusive=True, group="add run")
    async def add_run(self) -> None:
        """Ask for another run; draw it, or take it away."""
        records: list[JobRecord] = []
        try:
            records = [r for r in await self._client.jobs() if r.id != self._own][::-1] if self._client else []
        except DaemonError as e:
            self.notify(str(e), severity="warning")
        folders = [Path(key) for key in self._others if not key.startswith("#")]
        choice = await self.app.push_screen_wait(OtherRuns(records, folders, set(self._others)))
        if choice is None:
            return
        key = key_of(choice)
        if self._others.pop(key, None) is not None:
            self.workers.cancel_group(self, key)
            self._draw_anew()
        elif len(self._others) + 1 >= MOST_RUNS:
            self.notify(f"{count(MOST_RUNS, 'run')} are drawn already: take one away first.", severity="warning")
        else:
            name = choice.name
            self._others[key] = name, RunView(name=name)
            self._draw_anew()
            if isinstance(choice, Path):
                self.run_worker(lambda: self._read(key, choice), thread=True, group=key)
            else:
                self.run_worker(self._follow(key, choice), group=key)

    async def _follow(self, key: str, record: JobRecord) -> None:
        assert self._client is not None
        try:
            await follow(self._client, record, lambda view: self._tell(OtherCame(key, record.name, view)))
        except DaemonError as e:
            self._tell(OtherCame(key, record.name, None, str(e)))

    def _read(self, key: str, folder: Path) -> None:
        try:
            view = read_folder(folder)
            self._tell(OtherCame(key, view.name or folder.name, view))
        except UserError as e:
            self._tell(OtherCame(key, folder.name, None, str(e)))

    def _tell(self, message: OtherCame) -> None:
        self.post_message(message)

    @on(OtherCame)
    def _other_came(self, message: OtherCame) -> None:
        if message.key not in self._others:  # taken away meanwhile
            return
        if message.view is None:
            del self._others[message.key]
            self.notify(message.problem, severity="error", timeout=10)
        else:
            self._others[message.key] = message.name, message.view
            self._made.pop(message.key, None)
        self._redraw.ask()
