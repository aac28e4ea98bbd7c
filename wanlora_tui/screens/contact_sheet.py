"""All previews of a run, small: a row for each prompt, a column for each step. They play together, too.

Some of one prompt, large, are wanlora_tui.screens.compare's.
"""

from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.widget import Widget
from textual.widgets import Static

from wanlora_tui.actions import bindings
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.film.player import Player, Plays
from wanlora_tui.film.playhead import Playhead
from wanlora_tui.film.position_bar import PositionBar
from wanlora_tui.film.sheet_view import SheetView
from wanlora_tui.film.shots import Shots
from wanlora_tui.output.formatting import count
from wanlora_tui.screens.compare import FILM_KEYS, SECONDS, At, CompareScreen, PictureScreen
from wanlora_tui.screens.copying import copy_path
from wanlora_tui.transfer.pictures import Pictures
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Changed, SparingScreen

SPARE = ("film.on", "sheet.smaller", "sheet.larger", "sheet.compare")  # of the footer, where there is little room


class ContactSheet(Plays, SparingScreen[At | None]):
    """Keys move the cursor and scroll; Enter or a click opens the one under it."""

    HELP_GROUP = "sheet"
    BINDINGS = bindings(
        "sheet.left",
        "sheet.right",
        "sheet.up",
        "sheet.down",
        *FILM_KEYS,
        "sheet.larger",
        "sheet.smaller",
        "sheet.open",
        "sheet.compare",
        "sheet.copy",
        "sheet.close",
    )

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
        self._begin = at
        self.player = Player(self, lambda: [self._view], lambda: self.query_one(PositionBar), playhead)

    def compose(self) -> ComposeResult:
        yield Static(id="sheet-title")
        yield SheetView(self._pictures)
        yield PositionBar()
        yield FittingFooter(spare=SPARE, more=("film.back", "sheet.copy"))

    def on_mount(self) -> None:
        self.set_interval(SECONDS, self._show)
        self._show()
        self._view.focus()
        self.call_after_refresh(self._go, self._begin or Shots(self._run.view, self._run_dir).newest)

    @property
    def _view(self) -> SheetView:
        return self.query_one(SheetView)

    @on(Changed)
    def _show(self) -> None:
        if not self.display:  # it is being taken down
            return
        shots = Shots(self._run.view, self._run_dir)
        self._view.show(shots, len(self._run.view.samples))
        words = f"{count(shots.prompts, 'prompt')}, {count(len(shots.columns), 'step')}"
        title = Text.assemble((words if shots.columns else "No preview yet.", "bold"), no_wrap=True)
        self.query_one("#sheet-title", Static).update(title)
        self.player.aim()

    @on(SheetView.Moved)
    def _moved(self) -> None:
        self.player.aim()

    def _go(self, at: At | None) -> None:
        if not self.display:
            return
        shots = self._view.shots
        if at is not None and shots is not None and at[1] in shots.columns:
            self._view.go(at[0], shots.columns.index(at[1]))

    @property
    def _at(self) -> At | None:
        column = self._view.column()
        return None if column is None else (self._view.cursor[0], column)

    def action_move(self, x: int, y: int) -> None:
        prompt, column = self._view.cursor
        self._view.go(prompt + y, column + x)

    def action_larger(self, by: int) -> None:
        self._view.resize_pictures(by)

    @on(SheetView.Opened)
    def action_open(self) -> None:
        self._open(PictureScreen)

    def action_compare(self) -> None:
        self._open(CompareScreen)

    def _open(self, screen: type[CompareScreen]) -> None:
        if self._at is None:
            return
        self.app.push_screen(
            screen(
                self._run,
                self._run_dir,
                self._image,
                pictures=self._pictures,
                at=self._at,
                playhead=self.player.playhead,
            ),
            self._go,
        )

    def action_copy_path(self) -> None:
        shots, at = self._view.shots, self._at
        shot = shots.get(*at) if shots is not None and at is not None else None
        copy_path(self, shot.film if shot is not None else self._run_dir, title="Preview")

    def action_close(self) -> None:
        self.dismiss(self._at)
