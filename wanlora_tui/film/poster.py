"""The preview in the dashboard: the newest, or the one that its user went to; it plays in its place. Always the path of
its file, for terminals that draw no pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from presets.runs.run_view import RunView
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.film.player import Player, Plays
from wanlora_tui.film.position_bar import PositionBar
from wanlora_tui.film.shots import Column, Shots
from wanlora_tui.terminal.pictures import Drawer, drawer

if TYPE_CHECKING:
    from wanlora_tui.film.pane import FilmPane, Found

KEYS = ("space", " plays  ", "z", " large  ", "c", " compare  ", "t", " all")
AGAIN_SECONDS = 2.0  # until what could not be shown is looked for again


class Poster(Plays, Vertical, can_focus=True):
    """`image` is the textual-image widget class that this terminal can show. Its pane is made when there is something
    to see: what pictures are read with takes longer to import than all else of a dashboard."""

    BINDINGS = bindings(
        "preview.back",
        "preview.on",
        "preview.first",
        "preview.last",
        "preview.left",
        "preview.right",
        "preview.up",
        "preview.down",
        "preview.open",
        "preview.stop",
    )

    class Opened(Message):
        """Its user wants the picture large."""

    def __init__(self, image: Drawer, *, pictures: "Found", id: str | None = None) -> None:
        super().__init__(id=id)
        self._image, self._pictures = image, pictures
        self._shots: Shots | None = None
        self._chosen: tuple[int, Column] | None = None  # None: the newest, whichever that is
        self._stamp: object = None
        self._drawn: object = None  # the stamp of what was drawn last
        self.border_title = "preview"
        self._pane: FilmPane | None = None
        self._asked_for_pane = False
        self.player = Player(self, lambda: [self._pane] if self._pane else [], lambda: self.query_one(PositionBar))

    def compose(self) -> ComposeResult:
        yield Static(id="poster-text")
        yield PositionBar(*KEYS)

    def on_mount(self) -> None:
        self.set_interval(AGAIN_SECONDS, self._again)

    def _again(self) -> None:
        if self.player.seen and self._lacks:
            self.player.aim()

    @property
    def _lacks(self) -> bool:
        return self._pane is not None and self._pane.lacks

    @work
    async def _make_pane(self) -> None:
        from wanlora_tui.film.pane import FilmPane

        pane = FilmPane(drawer(self._image), self._pictures, path=True)
        await self.mount(pane, before=0)
        self._pane = pane
        self._show()

    @property
    def at(self) -> tuple[int, Column] | None:
        """Prompt and step of what is shown; None when there is nothing yet."""
        if self._shots is None:
            return None
        return self._chosen if self._chosen in self._shots.table else self._shots.newest

    @property
    def chosen(self) -> tuple[str, Path] | None:
        """What its film is called and where it lies, while it has the focus."""
        if self.at is None or self._shots is None or not self.has_focus:
            return None
        shot = self._shots.get(*self.at)
        return ("Preview", shot.film) if shot is not None else None

    def show(self, view: RunView, run_dir: Path) -> None:
        """Draw what is shown by now; a picture that cannot be read is said, not hidden."""
        newest = view.samples[-1].path if view.samples else ""
        stamp = (run_dir, view.run, view.attempt, len(view.samples), newest)
        if stamp != self._stamp:
            self._stamp, self._shots = stamp, Shots(view, run_dir)
        if self._drawn != stamp:
            self._show()
        elif self.display and self._lacks:
            self.player.aim()

    def _show(self) -> None:
        if not self.display:  # hidden: nothing is fetched or decoded for it
            return
        self._drawn = self._stamp
        text = self.query_one("#poster-text", Static)
        at, shots = self.at, self._shots
        self.query_one(PositionBar).display = at is not None
        if self._pane is not None:
            self._pane.display = at is not None
        if at is None or shots is None:
            text.update("No preview yet.")
            return
        shot = shots.get(*at)
        assert shot is not None
        of = f", prompt {at[0] + 1} of {shots.prompts}" if shots.prompts > 1 else ""
        self.border_title = f"preview at {shot.column.label}{of}"
        text.update(Text(escaped(shot.prompt), "italic", overflow="fold"))
        if self._pane is not None:
            self._pane.show(shot, Text(), self._stamp)
            self.player.aim()
        elif not self._asked_for_pane:
            self._asked_for_pane = True
            self.call_after_refresh(self._make_pane)  # the numbers beside it are seen before

    def on_resize(self) -> None:
        self._show()

    def look_at(self, at: tuple[int, Column] | None) -> None:
        """Go to one; the newest is followed on."""
        self._chosen = None if self._shots is None or at == self._shots.newest else at
        self._show()
        self.screen.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.player.playhead.moved or self._chosen is not None
        if action == "prompt":
            return self._shots is not None and self._shots.prompts > 1
        return self.at is not None and super().check_action(action, parameters)

    def action_stop(self) -> None:
        self.player.stop()
        self.look_at(None)

    def action_shot(self, by: int) -> None:
        if self.at is not None and self._shots is not None:
            columns = [c for c in self._shots.columns if (self.at[0], c) in self._shots.table]
            at = columns.index(self.at[1]) + by
            self.look_at((self.at[0], columns[max(0, min(len(columns) - 1, at))]))

    def action_prompt(self, by: int) -> None:
        if self.at is not None and self._shots is not None:
            prompts = [p for p in range(self._shots.prompts) if (p, self.at[1]) in self._shots.table]
            at = prompts.index(self.at[0]) + by
            self.look_at((prompts[max(0, min(len(prompts) - 1, at))], self.at[1]))

    def action_open_picture(self) -> None:
        self.post_message(self.Opened())

    def on_film_pane_opened(self) -> None:
        self.action_open_picture()
