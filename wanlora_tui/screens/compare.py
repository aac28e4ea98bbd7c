"""One prompt across the steps, side by side: previews to judge a run by, played and scrubbed together. And one of them
alone, full screen.

Left and right go through the steps, those of branches that were left among them; up and down through the prompts. What
is said of a picture is text outside it. All of them small are wanlora_tui.screens.contact_sheet's.
"""

from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.film.pane import FilmPane
from wanlora_tui.film.player import Player, Plays
from wanlora_tui.film.playhead import Playhead
from wanlora_tui.film.position_bar import PositionBar
from wanlora_tui.film.shots import Column, Shot, Shots
from wanlora_tui.screens.copying import copy_path
from wanlora_tui.transfer.pictures import Pictures
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Changed, SparingScreen

SECONDS = 2.0  # between two looks for new files
MOST = 6  # side by side
PANE_COLUMNS = 38  # as many panes as have so much room, unless the user says another number
At = tuple[int, Column]  # prompt and step
FILM_KEYS = ("film.play", "film.back", "film.on", "film.first", "film.last")
SPARE = ("film.on", "compare.pin", "compare.more", "compare.up", "compare.right", "compare.left")
MORE = ("compare.fewer", "film.back", "compare.start", "compare.sheet", "compare.copy")
STEP_KEYS = ("compare.left", "compare.right", "compare.up", "compare.down")


class Panes(Container):
    """Those of the compared steps. A screen is told its new size before its widgets have theirs."""

    class Resized(Message):
        """They have another size: they may fit better in other rows."""

    def on_resize(self) -> None:
        self.post_message(self.Resized())


class CompareScreen(Plays, SparingScreen[At | None]):
    """Answers with what was chosen last. `at`: what to begin with, the newest when left out; `playhead`: another
    screen's, to go on with."""

    HELP_GROUP = "compare"
    BINDINGS = bindings(
        "film.play",
        *STEP_KEYS,
        *FILM_KEYS[1:],
        "compare.more",
        "compare.fewer",
        "compare.pin",
        "compare.start",
        "compare.open",
        "compare.sheet",
        "compare.copy",
        "compare.close",
    )
    beside: int | None = None  # so many steps; None: as many as there is room for

    def __init__(
        self,
        run: ShownRun,
        run_dir: Path,
        image: type[Widget],
        *,
        pictures: Pictures,
        at: At | None = None,
        playhead: Playhead | None = None,
    ) -> None:
        super().__init__()
        self._run, self._run_dir, self._image, self._pictures = run, run_dir, image, pictures
        self._shots = Shots(run.view, run_dir)
        self._at = at or self._shots.newest
        self._first = 0  # the first column in sight
        self._pinned: Column | None = None
        self._start = False
        self.player = Player(self, self._shown, self._bar, playhead)

    def compose(self) -> ComposeResult:
        yield Static(id="compare-title")
        with Panes(id="compare-panes"):
            yield FilmPane(self._image, self._pictures, id="compare-start", first=True)
            for i in range(MOST):
                yield FilmPane(self._image, self._pictures, id=f"compare-{i}")
        yield Static(id="compare-text")
        yield PositionBar()
        yield FittingFooter(spare=SPARE, more=MORE)

    def on_mount(self) -> None:
        self.set_interval(SECONDS, self._show)
        self._show()

    def on_resize(self) -> None:
        self._show()

    # --- what is shown -----------------------------------------------------------------------------------------

    def _panes(self) -> list[FilmPane]:
        return [self.query_one(f"#compare-{i}", FilmPane) for i in range(MOST)]

    def _shown(self) -> list[FilmPane]:
        return [pane for pane in self.query(FilmPane) if pane.display]

    def _bar(self) -> PositionBar:
        return self.query_one(PositionBar)

    @property
    def _count(self) -> int:
        room = self.beside or max(2, min(4, self.size.width // PANE_COLUMNS))
        return max(1, min(room, MOST, len(self._shots.columns)))

    @property
    def _columns(self) -> list[Column]:
        """Those side by side, the chosen one among them."""
        columns, count = self._shots.columns, self._count
        if self._at is None:
            return []
        pinned = self._pinned if self._pinned in columns and count > 1 else None
        if pinned is not None:
            columns, count = [c for c in columns if c != pinned], count - 1
        if self._at[1] in columns:
            chosen = columns.index(self._at[1])
            self._first = max(chosen - count + 1, min(self._first, chosen))
        self._first = max(0, min(self._first, len(columns) - count))
        return ([] if pinned is None else [pinned]) + columns[self._first : self._first + count]

    @on(Changed)
    def _show(self) -> None:
        if not self.display:  # it is being taken down
            return
        self._shots = Shots(self._run.view, self._run_dir)
        if self._at is None or self._at[1] not in self._shots.columns:  # rolled back, or the first one
            self._at = self._shots.newest
        shown = self._columns
        version = len(self._run.view.samples)
        for pane, column in zip(self._panes(), [*shown, *[None] * MOST], strict=False):
            pane.display = column is not None
            shot = self._shots.get(self._at[0], column) if column is not None and self._at else None
            pane.show(shot, self._label(shot, column), version)
        start = self.query_one("#compare-start", FilmPane)
        start.display = self._start and self._at is not None
        start.show(self.shot, Text("start: the control image", no_wrap=True, overflow="ellipsis"), version)
        self._say()
        self._lay_out()
        self.call_after_refresh(self._aim)

    def _aim(self) -> None:
        self.player.aim()
        self._lay_out()  # the first poster says how high a picture is

    @on(Panes.Resized)
    def _lay_out(self) -> None:
        """In the rows that leave most room for each picture."""
        if not self.display:
            return
        panes, count = self.query_one(Panes), len(self._shown())
        ratio = next((pane.ratio for pane in self._shown() if pane.ratio), 1.0)

        def width(rows: int) -> int:
            across = -(-count // rows)
            return min(panes.outer_size.width // across, int((panes.outer_size.height // rows - 1) * 2 / ratio))

        rows = max(range(1, count + 1), key=width, default=1)
        columns = max(1, -(-count // rows))
        panes.styles.grid_size_columns = columns
        # all of one size, so that pictures are too: what is left over stays empty
        panes.styles.padding = (0, (panes.outer_size.width - columns + 1) % columns, panes.outer_size.height % rows, 0)

    def _label(self, shot: Shot | None, column: Column | None) -> Text:
        if column is None or self._at is None:
            return Text()
        chosen = column == self._at[1] and self._count > 1
        mark = "▸ " if chosen else "⊢ " if column == self._pinned else ""
        words = f"{mark}{column.label}" + (f"  seed {shot.seed}" if shot is not None else "")
        return Text(words, "bold" if chosen else "", no_wrap=True, overflow="ellipsis")

    def _say(self) -> None:
        title = Text("No preview yet.", "bold")
        words = ""
        if self._at is not None:
            prompt, column = self._at
            title = Text.assemble((f"prompt {prompt + 1} of {self._shots.prompts}, {column.label}", "bold"))
            title.append(f"   ◀ {self._axis(self._shots.columns, column, self.size.width - len(title) - 9)} ▶")
            words = self._shots.text(prompt)
            left = next((c for c in self._columns if c.left), None)
            if left is not None:
                words += (
                    f"\n~{left.left} abandoned: attempt {left.left} made it, before the run went back to step"
                    f" {left.after}."
                )
        title.no_wrap, title.overflow = True, "ellipsis"
        self.query_one("#compare-title", Static).update(title)
        self.query_one("#compare-text", Static).update(Text(escaped(words), "italic", overflow="fold"))

    @staticmethod
    def _axis(columns: list[Column], at: Column, room: int) -> str:
        """The steps near the present one, as many as there is room for."""
        words = [f"[{c.short}]" if c == at else c.short for c in columns]
        begin = columns.index(at)
        end = begin + 1
        for i in sorted(range(len(words)), key=lambda i: abs(i - columns.index(at))):
            low, high = min(begin, i), max(end, i + 1)
            if len("  ".join(words[low:high])) > room:
                break
            begin, end = low, high
        return "  ".join(words[begin:end])

    @property
    def shot(self) -> Shot | None:
        """The chosen preview."""
        return self._shots.get(*self._at) if self._at is not None else None

    # --- keys and mouse ----------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "prompt":
            return self._shots.prompts > 1
        if action in ("pin", "beside", "step"):
            return len(self._shots.columns) > 1
        return super().check_action(action, parameters)

    def action_step(self, by: int) -> None:
        if self._at is not None:
            columns = self._shots.columns
            at = columns.index(self._at[1]) + by
            self._at = self._at[0], columns[max(0, min(len(columns) - 1, at))]
        self._show()

    def action_prompt(self, by: int) -> None:
        if self._at is not None:
            self._at = max(0, min(self._shots.prompts - 1, self._at[0] + by)), self._at[1]
        self._show()

    def action_beside(self, by: int) -> None:
        self.beside = max(1, min(MOST, self._count + by))
        self._show()

    def action_pin(self) -> None:
        self._pinned = None if self._at is None or self._pinned is not None else self._at[1]
        self._show()

    def action_start_frame(self) -> None:
        self._start = not self._start
        self._show()

    @on(FilmPane.Opened)
    def _clicked(self, event: FilmPane.Opened) -> None:
        if event.pane.shot is not None and self._at is not None:
            self._at = self._at[0], event.pane.shot.column
        self.action_open()

    def action_open(self) -> None:
        if self._at is not None:
            screen = PictureScreen(
                self._run,
                self._run_dir,
                self._image,
                pictures=self._pictures,
                at=self._at,
                playhead=self.player.playhead,
            )
            self.app.push_screen(screen, self._back)

    def _back(self, at: At | None) -> None:
        self._at = at or self._at
        self._show()

    def action_sheet(self) -> None:
        from wanlora_tui.screens.contact_sheet import ContactSheet

        self.app.switch_screen(
            ContactSheet(
                self._run,
                self._run_dir,
                self._image,
                pictures=self._pictures,
                at=self._at,
                playhead=self.player.playhead,
            )
        )

    def action_copy_path(self) -> None:
        copy_path(self, self.shot.film if self.shot is not None else self._run_dir, title="Preview")

    def action_close(self) -> None:
        self.dismiss(self._at)


class PictureScreen(CompareScreen, inherit_bindings=False):
    """One preview, as large as the terminal and as well as it can draw."""

    HELP_GROUP = "picture"
    BINDINGS = bindings("film.play", *STEP_KEYS, *FILM_KEYS[1:], "compare.start", "compare.copy", "picture.close")
    beside = 1

    @on(FilmPane.Opened)
    def _clicked(self, event: FilmPane.Opened) -> None:
        event.stop()
        self.player.toggle()
