"""The bar that says and sets where a film is."""

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from wanlora_tui.film.playhead import Playhead

NO_FILM = "no film to play"


class PositionBar(Widget):
    """`► ━━━━●──── 12/41 0.7/2.5 s`. A click or a drag on the line goes there; the wheel steps. It has its row from the
    beginning, so that nothing jumps when a film begins: `before` is what stands there, keys and words by turns. Where
    the film is missing or broken, it says so: nothing plays."""

    DEFAULT_CSS = "PositionBar { height: 1; width: 1fr; }"

    class Sought(Message):
        """Somebody pointed at a frame."""

        def __init__(self, frame: int) -> None:
            super().__init__()
            self.frame = frame

    class Stepped(Message):
        """Somebody turned the wheel: this many frames on."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    class Toggled(Message):
        """Somebody clicked on the sign for playing."""

    def __init__(self, *before: str) -> None:
        super().__init__()
        self._before = before
        self._playhead: Playhead | None = None
        self._film = True
        self._shown: tuple[bool, bool, bool, int, int, float] | None = None
        self._dragged = False

    def show(self, playhead: Playhead, *, film: bool) -> None:
        """`film`: whether there is one to play."""
        self._playhead, self._film = playhead, film
        shown = (film, playhead.moved, playhead.playing, playhead.frame, playhead.frames, playhead.duration)
        if shown != self._shown:
            self._shown = shown
            self.refresh()

    @property
    def _line(self) -> tuple[int, int]:
        """Where the line begins, and its columns."""
        return 2, max(0, self.size.width - 3 - len(self._words))

    @property
    def _words(self) -> str:
        if self._playhead is None or not self._playhead.duration:
            return ""
        p = self._playhead
        total = f"{p.duration:.1f}"
        frames = f"{p.frame + 1:>{len(str(p.frames))}}/{p.frames}"
        return frames if self.size.width < 36 else f"{frames}  {p.seconds:>{len(total)}.1f}/{total} s"

    def render_line(self, y: int) -> Strip:
        p, style = self._playhead, self.rich_style
        if p is None or not p.moved:
            words = [Segment(w, style + Style(bold=i % 2 == 0, dim=i % 2 == 1)) for i, w in enumerate(self._before)]
            return Strip([Segment(" ", style), *words]).adjust_cell_length(self.size.width, style)
        if not self._film:
            return Strip([Segment(f" {NO_FILM}", style + Style(dim=True))]).adjust_cell_length(self.size.width, style)
        _, columns = self._line
        at = round((columns - 1) * p.frame / max(1, p.frames - 1)) if columns else 0
        line = "━" * at + "●" + "─" * (columns - at - 1) if columns else ""
        sign = "►" if p.playing else "‖"
        strip = Strip([Segment(f"{sign} ", style), Segment(line, style), Segment(f" {self._words}", style)])
        return strip.adjust_cell_length(self.size.width, style)

    def _seek(self, x: int) -> None:
        begin, columns = self._line
        if self._playhead is not None and columns > 1:
            share = min(1.0, max(0.0, (x - begin) / (columns - 1)))
            self.post_message(self.Sought(round(share * (self._playhead.frames - 1))))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        event.stop()
        if event.x < self._line[0] or self._playhead is None or not (self._playhead.moved and self._film):
            self.post_message(self.Toggled())
            return
        self._dragged = True
        self.capture_mouse()
        self._seek(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragged:
            self._seek(event.x)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        self._dragged = False
        self.release_mouse()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.post_message(self.Stepped(-1))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.post_message(self.Stepped(1))
