"""What happened, line by line. It follows the newest line until the user scrolls up; End or G follows again.

How days and kinds read is wanlora_tui.output.log_lines's; the log on the whole screen wanlora_tui.screens.log's.
"""

from rich.text import Text
from textual.events import Resize
from textual.geometry import Size
from textual.widgets import RichLog

from presets.runs.run_view import LogLine
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import clock
from wanlora_tui.output.hanging import hanging
from wanlora_tui.output.log_lines import GLYPHS, LOUD, day_line, day_of


class EventLogView(RichLog):
    """The fold's log. New lines are appended; the place of a reader who scrolled up is kept."""

    BINDINGS = bindings("text.down", "text.up", "text.top", "text.bottom")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, max_lines=2000, wrap=True, min_width=20, auto_scroll=False)
        self.border_title = "events"
        self._shown: list[LogLine] = []
        self._size_shown = Size()
        self._follow = True
        self._day = ""  # of the newest line

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
            fresh, self._day = lines, ""
        self._size_shown = self.size
        for line in fresh:
            if (day := day_of(line.time)) != self._day:
                self.write(Text(day_line(line.time, zone=not self._day), "dim"), scroll_end=follow)
                self._day = day
            glyph = GLYPHS.get(line.kind, " ")
            head = Text.assemble((clock(line.time), "dim"), f" {glyph} ")
            words = Text(escaped(advised(line.text)), "bold" if line.kind in LOUD else "")
            width = max(1, self.content_size.width - self.styles.scrollbar_size_vertical)
            # RichLog's own width of a line is at most that of Rich's console, which knows no terminal
            self.write(hanging(head, words, width), width=width, scroll_end=follow)
        self._shown = list(lines)
        if resized and follow:
            self.scroll_end(animate=False, immediate=True)
        subtitle = "" if follow else "End: follow again"
        if subtitle != self.border_subtitle:  # else all of the log would be drawn anew
            self.border_subtitle = subtitle

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
