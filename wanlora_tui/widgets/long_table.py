"""A table of any number of rows, of which only those in view are made: a key costs the same in a folder of 5000 clips.

What the rows say is the subclass's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from wanlora_tui.actions import bindings
from wanlora_tui.terminal.drawn_text import BLANKS

HEADING = -1
MOST_KEPT = 500  # lines that are kept as they were drawn


@dataclass(frozen=True)
class Column:
    """`width` in cells; None takes what is left, at least a dozen."""

    label: str
    width: int | None
    right: bool = False  # justified


def _texts(cells: list[Text]) -> tuple[str, ...]:
    return tuple(cell.plain for cell in cells)


class LongTable(ScrollView, can_focus=True):
    """Rows with a cursor, under a heading. `set_rows` tells how many there are, `cells` what one of them says."""

    BINDINGS = bindings(
        "list.down",
        "list.up",
        "list.top",
        "list.bottom",
        "rows.down",
        "rows.up",
        "rows.page_down",
        "rows.page_up",
        "rows.top",
        "rows.bottom",
        "rows.choose",
    )
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "long-table--header",
        "long-table--odd",
        "long-table--cursor",
        "long-table--rest",
    }
    DEFAULT_CSS = """
    LongTable { height: 1fr; min-height: 4; background: $surface; overflow-x: hidden; overflow-y: auto; }
    LongTable .long-table--header { background: $panel; color: $foreground; text-style: bold; }
    LongTable .long-table--odd { background: $surface-lighten-1 50%; }
    LongTable .long-table--rest { background: $secondary 30%; }
    LongTable .long-table--cursor { background: $block-cursor-background; color: $block-cursor-foreground; }
    """

    @dataclass
    class Highlighted(Message):
        """The cursor stands on another row, or on another thing."""

        table: "LongTable"
        row: int

        @property
        def control(self) -> "LongTable":
            return self.table

    @dataclass
    class Chosen(Message):
        """Enter, or a click on the row under the cursor."""

        table: "LongTable"
        row: int

        @property
        def control(self) -> "LongTable":
            return self.table

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.columns: list[Column] = []
        self.row_count = 0
        self.cursor_row = 0
        self._said: dict[int, tuple[str, ...]] = {}  # by row, as it was drawn last
        self._made: dict[int, tuple[str, Strip]] = {}  # by row, the heading's by HEADING: what it stands on, its line
        self._made_on: tuple[Any, ...] = ()  # what all those lines depend on

    def cells(self, row: int) -> list[Text]:
        """What stands in each column; asked for the rows in view alone."""
        raise NotImplementedError

    def set_rows(self, columns: list[Column], count: int) -> None:
        """Draw anew, with so many rows; the cursor stays where it is as far as that goes."""
        self.columns, self.row_count = columns, count
        self._made.clear()
        self.virtual_size = Size(self.size.width, count + 1)
        self.cursor_row = max(0, min(self.cursor_row, count - 1))
        self.refresh()

    def draw_changed(self) -> None:
        """Draw those rows in view anew that say something else by now."""
        top = self.scroll_offset.y
        rows = range(top, min(self.row_count, top + max(0, self.size.height - 1)))
        self._said = {row: self._said.get(row, ()) for row in rows}
        others = [row for row in rows if _texts(self.cells(row)) != self._said[row]]
        kept = {HEADING, *rows}.difference(others)
        self._made = {row: made for row, made in self._made.items() if row in kept}
        self._draw_rows(others)

    def _draw_rows(self, rows: Iterable[int]) -> None:
        """The others say what they said."""
        height, top = self.size.height, self.scroll_offset.y
        for y in (row + 1 - top for row in rows):
            if 0 < y < height:
                self.refresh(Region(0, y, self.size.width, 1))

    def move_cursor(self, row: int) -> None:
        """To a row, or the nearest one there is; it scrolls into view."""
        row = max(0, min(row, self.row_count - 1))
        if row != self.cursor_row and self.row_count:
            before, self.cursor_row = self.cursor_row, row
            self._draw_rows((before, row))  # where it scrolls, all are drawn anyway
            self.post_message(self.Highlighted(self, row))
        self._bring_into_view()

    def rewind(self) -> None:
        """The cursor on the first row, as in a new table, and nobody is told."""
        if self.cursor_row or self.scroll_offset.y:
            self.cursor_row = 0
            self.scroll_to(y=0, animate=False, force=True)
            self.refresh()

    def _bring_into_view(self) -> None:
        height = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if self.cursor_row < top:
            self.scroll_to(y=self.cursor_row, animate=False, force=True)
        elif self.cursor_row >= top + height:
            self.scroll_to(y=self.cursor_row - height + 1, animate=False, force=True)

    def widths(self) -> list[int]:
        """Cells of each column, the space behind it not counted."""
        room = self.scrollable_content_region.width
        left = room - sum((c.width or 0) + 1 for c in self.columns)
        return [c.width if c.width is not None else max(12, left) for c in self.columns]

    def render_lines(self, crop: Region) -> list[Strip]:
        """A line that was made stays until its row says something else, or stands on another ground. Textual knows a
        line by its place, so that all would be made anew where a table scrolls by one; and it asks at each for borders
        and padding, of which there are none here."""
        made_on = (self.rich_style, self.size.width, *self.widths())
        if made_on != self._made_on or len(self._made) > MOST_KEPT:
            self._made_on = made_on
            self._made.clear()
        top, filters, background = self.scroll_offset.y, self.get_line_filters(), self.background_colors[1]
        strips = []
        for y in crop.line_range:
            row = top + y - 1 if y else HEADING
            ground = self._ground(row)
            known, strip = self._made.get(row, ("", None))
            if strip is None or known != ground:
                strip = self.render_line(y)
                self._made[row] = ground, strip
            for each in filters:
                strip = strip.apply_filter(each, background)
            strips.append(strip)
        left, right = crop.column_span
        return strips if (left, right) == (0, self.size.width) else [strip.crop(left, right) for strip in strips]

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._made.clear()

    def _ground(self, row: int) -> str:
        """The component class of a row, "" for a plain one."""
        if row == HEADING:
            return "long-table--header"
        if row == self.cursor_row:
            return "long-table--cursor" if self.has_focus else "long-table--rest"
        return "long-table--odd" if row % 2 else ""

    def render_line(self, y: int) -> Strip:
        style = self._made_on[0] if self._made_on else self.rich_style
        if y == 0:
            heads = [Text(c.label, justify="right" if c.right else "left") for c in self.columns]
            return self._line(heads, self.get_component_rich_style("long-table--header"), None)
        row = self.scroll_offset.y + y - 1
        if row >= self.row_count:
            return Strip.blank(self.size.width, style)
        if ground := self._ground(row):
            style += self.get_component_rich_style(ground)
        cells = self.cells(row)
        self._said[row] = _texts(cells)
        return self._line(cells, style, row)

    def _line(self, cells: list[Text], style: Style, row: int | None) -> Strip:
        base = style + Style.from_meta({"row": row}) if row is not None else style
        segments: list[Segment] = []
        plain = ""  # what is of the base alone, up to here
        for column, width, cell in zip(self.columns, self.widths(), cells, strict=True):
            if "\n" in cell.plain or "\t" in cell.plain:  # of no width when measured, of one when drawn
                cell = cell.copy()
                cell.plain = cell.plain.translate(BLANKS)
            gap = width - cell.cell_len
            room = " " * max(0, gap)
            if cell.spans or cell.style:
                cell = cell.copy()
                cell.truncate(width, overflow="ellipsis")
                cell.end = ""
                before, plain = (plain + room, " ") if column.right else (plain, room + " ")
                segments += [Segment(before, base), *Segment.apply_style(cell.render(self.app.console), base)]
            else:
                text = cell.plain if gap >= 0 else set_cell_size(cell.plain, width - 1) + "…"
                plain += (room + text if column.right else text + room) + " "
        segments.append(Segment(plain, base))
        return Strip(segments).simplify().adjust_cell_length(self.size.width, base)

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, self.row_count + 1)
        self._bring_into_view()

    def watch_has_focus(self, focused: bool) -> None:
        super().watch_has_focus(focused)
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        row = event.style.meta.get("row")
        if row is None:
            return
        if row == self.cursor_row:
            self.post_message(self.Chosen(self, row))
        self.move_cursor(row)

    def action_cursor_down(self) -> None:
        self.move_cursor(self.cursor_row + 1)

    def action_cursor_up(self) -> None:
        self.move_cursor(self.cursor_row - 1)

    def action_page(self, pages: int) -> None:
        self.move_cursor(self.cursor_row + pages * max(1, self.size.height - 2))

    def action_first(self) -> None:
        self.move_cursor(0)

    def action_last(self) -> None:
        self.move_cursor(self.row_count - 1)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.row_count > 0 if action == "choose" else super().check_action(action, parameters)

    def action_choose(self) -> None:
        self.post_message(self.Chosen(self, self.cursor_row))
