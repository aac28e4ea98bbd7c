"""One preview on the screen: its label, its poster as the terminal draws pictures best, and its film in cells. What is
said of a picture is text outside it."""

from pathlib import Path
from typing import Protocol

from PIL import Image as PILImage
from rich.cells import cell_len
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from presets.text import escaped
from wanlora_tui.film.decoding import Frame, Reel, fitted
from wanlora_tui.film.projector import Projector
from wanlora_tui.film.shots import Shot
from wanlora_tui.film.stills import read_picture, still
from wanlora_tui.film.view import FilmView
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.hanging import folded
from wanlora_tui.terminal.pictures import draws_half_cells, pixel_aspect

LOW = 12  # rows of a pane; with less, the picture needs them more than the path's folders do


def _end_of(path: str, room: int) -> str:
    """A path in one line: its last folders, as many as fit, and the file's name."""
    folders = path.split("/")
    ends = ("…/" + "/".join(folders[i:]) for i in range(1, len(folders)))
    return next((end for end in ends if cell_len(end) <= room), f"…/{folders[-1]}")


class Found(Protocol):
    """Where files of the run's machine are (wanlora_tui.transfer.pictures)."""

    def find(self, path: Path, version: object = None) -> Path | str: ...


class _Frame(Container):
    """The room for the picture or the film. It has another one also where what is said below has other lines, in a pane
    that is as large as before."""

    class Resized(Message):
        pass

    def on_resize(self) -> None:
        self.post_message(self.Resized())


class FilmPane(Vertical):
    """`image` is the textual-image class that this terminal can show. `first`: it stays at the first frame. `path`: the
    film's is under it."""

    DEFAULT_CSS = """
    FilmPane { width: 1fr; height: 1fr; }
    FilmPane .film-label { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    FilmPane .film-frame { height: 1fr; align: center middle; }
    FilmPane .film-image { width: auto; height: auto; }
    FilmPane .film-words { height: auto; max-height: 6; padding: 0 1; display: none; }
    """

    class Opened(Message):
        """Somebody clicked on the picture."""

        def __init__(self, pane: "FilmPane") -> None:
            super().__init__()
            self.pane = pane

    class Stepped(Message):
        """Somebody turned the wheel on it."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    class Resized(Message):
        """It has another size: its film is to be decoded for that."""

    def __init__(
        self, image: type[Widget], pictures: Found, *, id: str | None = None, first: bool = False, path: bool = False
    ) -> None:
        super().__init__(id=id)
        self._pictures, self._first, self._path = pictures, first, path
        self._image = None if draws_half_cells(image) else image(classes="film-image")
        self._view = FilmView(classes="film-view")
        self.shot: Shot | None = None
        self.reel: Reel | None = None
        self._version: object = None
        self._poster: PILImage.Image | None = None
        self._still: tuple[PILImage.Image, tuple[int, int], Frame] | None = None
        self._said = ""  # of the poster
        self._film_said = ""
        self._lacking = ""  # of the poster or the film
        self._words = ""

    def compose(self) -> ComposeResult:
        yield Static(classes="film-label")
        with _Frame(classes="film-frame"):
            if self._image is not None:
                yield self._image
            yield self._view
        yield Static(classes="film-words")

    def show(self, shot: Shot | None, label: Text, version: object = None) -> None:
        """Be about another preview. `version`: anything that differs once its files may have been made anew."""
        if shot != self.shot:
            self.reel = None
        self.shot, self._version = shot, version
        self.query_one(".film-label", Static).update(label)
        self.query_one(".film-label").display = bool(label)

    def aim(self, projector: Projector, *, film: bool) -> None:
        """Look for the files; with `film`, have it decoded."""
        box = self._box
        self._find_poster()
        self._film_said = ""
        if self.shot is None or not (film or self._first):
            self.reel = None
        else:
            found = self._pictures.find(self.shot.film, self._version)
            if isinstance(found, str):
                self.reel, self._film_said = None, f"The film: {found[:1].lower()}{found[1:]}"
            elif min(box) >= 2:
                self.reel = projector.reel(found, box, pixel_aspect())
        self._say_what_lacks()

    def _say_what_lacks(self) -> None:
        """Of a poster nothing, while its film is seen; of a film what is known by now: it is read in a thread."""
        said = self._film_said or self._said
        if self.reel is not None and (self.reel.problem or self.reel.frames):
            said = f"The film cannot be shown: {self.reel.problem}." if self.reel.problem else ""
        self._lacking = said
        lines = [escaped(said)] if said else []
        if self.shot is not None and self._path:
            where = Text(escaped(shown_path(str(self.shot.film), short=False)))
            room = max(1, self.size.width - 2)  # its padding
            path = [line.plain for line in folded(where, room)]
            lines += path if len(path) == 1 or self.size.height >= LOW else [_end_of(where.plain, room)]
        self._say("\n".join(lines))

    @property
    def ratio(self) -> float:
        """Of the picture, height by width; 0 while it is unknown."""
        return self._poster.height / self._poster.width / pixel_aspect() if self._poster is not None else 0.0

    @property
    def reels(self) -> list[Reel]:
        return [] if self.reel is None else [self.reel]

    @property
    def _box(self) -> tuple[int, int]:
        """The pixels, two in a cell, that there is room for."""
        size = self.query_one(".film-frame").size
        return size.width, 2 * size.height

    @property
    def lacks(self) -> bool:
        """Whether something of it could not be shown, which may come later."""
        return self.shot is not None and bool(self._lacking)

    def _find_poster(self) -> None:
        self._poster, self._said = None, "There is no preview." if self.shot is None else ""
        if self.shot is not None:
            found = self._pictures.find(self.shot.poster, self._version)
            self._poster, said = read_picture(found, self.shot.poster, poster=True)
            self._said = "" if self._poster is not None else said.splitlines()[0]

    def _say(self, words: str) -> None:
        if words != self._words:
            self._words = words
            line = self.query_one(".film-words", Static)
            line.update(Text(words, overflow="fold"))
            line.display = bool(words)

    def draw(self, seconds: float) -> None:
        """The film's frame of a time; the poster while there is none."""
        self._say_what_lacks()
        frame = self.reel.at(0.0 if self._first else seconds) if self.reel is not None else None
        if self._image is not None:
            still_drawn = frame is None and self._poster is not None
            if self._poster is not None and min(self._box) >= 2:
                width, height = fitted(*self._poster.size, self._box, pixel_aspect())
                self._image.styles.width, self._image.styles.height = width, height // 2
            if self._image.image is not self._poster:  # type: ignore[attr-defined]
                self._image.image = self._poster  # type: ignore[attr-defined]  # every class of textual_image has it
            self._image.display, self._view.display = still_drawn, not still_drawn
        elif frame is None and self._poster is not None and min(self._box) >= 2:
            frame = self._still_frame(self._poster)
        self._view.show(frame)

    def _still_frame(self, poster: PILImage.Image) -> Frame:
        box = self._box
        if self._still is None or self._still[0] is not poster or self._still[1] != box:
            self._still = (poster, box, still(poster, box, pixel_aspect()))
        return self._still[2]

    def on_resize(self) -> None:
        self._say_what_lacks()
        self.call_after_refresh(self.post_message, self.Resized())

    @on(_Frame.Resized)
    def _has_other_room(self, event: _Frame.Resized) -> None:
        event.stop()
        self.post_message(self.Resized())

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Opened(self))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Stepped(-1))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Stepped(1))
