"""What happened, line by line. It follows the newest line until the user scrolls up; End or G follows again.

How an event reads is wanlora_tui.output.plain_lines's.
"""

from rich.text import Text
from textual.events import Resize
from textual.geometry import Size
from textual.widgets import RichLog

from presets.runs.run_view import LogLine
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import clock

GLYPHS = {
    "started": "►",
    "sample": "▣",
    "checkpoint": "◆",
    "finding": "!",
    "changed": "~",
    "replanned": "~",
    "stopped": "■",
    "failed": "✗",
    "done": "✓",
}


class EventLogView(RichLog):
    """The fold's log. New lines are appended; the place of a reader who scrolled up is kept."""

    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, max_lines=2000, wrap=True, min_width=20, auto_scroll=False)
        self.border_title = "events"
        self._shown: list[LogLine] = []
        self._size_shown = Size()
        self._follow = True

    @property
    def following(self) -> bool:
        """Whether the newest line is in view, and so will the next one be."""
        return self.scroll_offset.y >= self.max_scroll_y

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """A reader's scrolling. What moves because the log has another size now is nobody's wish."""
        super().watch_scroll_y(old_value, new_value)
        if self.size == self._size_shown:
            self._follow = self.following

    def show(self, lines: list[LogLine]) -> None:
        resized, follow = self.size != self._size_shown, self._follow
        fresh = self._fresh(lines)
        if fresh is None or self.size.width != self._size_shown.width:
            self.clear()
            fresh = lines
        self._size_shown = self.size
        for line in fresh:
            glyph = GLYPHS.get(line.kind, " ")
            style = "bold" if line.kind in ("failed", "finding", "done", "stopped") else ""
            self.write(Text.assemble((clock(line.time), "dim"), f" {glyph} ", (line.text, style)), scroll_end=follow)
        self._shown = list(lines)
        if resized and follow:
            self.scroll_end(animate=False, immediate=True)
        self.border_subtitle = "" if follow else "End: follow again"

    def _fresh(self, lines: list[LogLine]) -> list[LogLine] | None:
        """The lines that came since the last `show`; None when it is another log. The oldest lines may have been
        dropped."""
        if not self._shown:
            return lines
        last = self._shown[-1]
        for i in range(len(lines) - 1, -1, -1):
            if lines[i] is last or lines[i] == last:
                return lines[i + 1 :]
        return None

    def on_resize(self, event: Resize) -> None:
        if self._shown:
            self.show(self._shown)
