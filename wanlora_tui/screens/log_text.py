"""The lines of a log: walked, selected and copied, and not changed. A line that is too long goes on below its words, as
in the pane of the dashboard; what is copied is the line as it was."""

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.document._document_navigator import DocumentNavigator
from textual.document._wrapped_document import WrappedDocument
from textual.geometry import Offset
from textual.strip import Strip
from textual.widgets import TextArea

from wanlora_tui.actions import bindings
from wanlora_tui.output.hanging import breaks, indent_for

Place = tuple[int, int]  # line and column of the document


class HangingDocument(WrappedDocument):
    """Lines of which all but the first row begin `hang` columns from the left, where there is room for that. Tabs have
    been expanded."""

    def __init__(self, text: "LogText") -> None:
        self._hang, self.indent = text.hang, 0
        super().__init__(text.document)

    def wrap(self, width: int, tab_width: int | None = None) -> None:
        self._width, self.indent = width, indent_for(self._hang, width)
        self._wrap_from(0)

    def wrap_range(self, start: Place, old_end: Place, new_end: Place) -> None:
        self._wrap_from(min(start, old_end)[0])

    def _wrap_from(self, first: int) -> None:
        """Where the lines from that one on are broken."""
        rows = self._line_index_to_offsets[first][0] if first < len(self._line_index_to_offsets) else 0
        if not first:
            rows = 0
        for known in (self._wrap_offsets, self._line_index_to_offsets, self._tab_width_cache):
            del known[first:]
        del self._offset_to_line_info[rows:]
        for index, line in enumerate(self.document.lines[first:], first):
            cuts = _breaks(line, self._width, self.indent) if self._width else []
            self._wrap_offsets.append(cuts)
            self._line_index_to_offsets.append(list(range(rows, rows + len(cuts) + 1)))
            self._offset_to_line_info += [(index, section) for section in range(len(cuts) + 1)]
            self._tab_width_cache.append([])
            rows += len(cuts) + 1

    def indent_of(self, row: int) -> int:
        """Blanks that a row of the screen begins with."""
        return self.indent if row < len(self._offset_to_line_info) and self._offset_to_line_info[row][1] else 0

    def location_to_offset(self, location: Place) -> Offset:
        offset = super().location_to_offset(location)
        return Offset(offset.x + self.indent_of(offset.y), offset.y)

    def get_target_document_column(self, line_index: int, x_offset: int, y_offset: int) -> int:
        if y_offset % (len(self._wrap_offsets[line_index]) + 1):
            x_offset = max(0, x_offset - self.indent)
        return super().get_target_document_column(line_index, x_offset, y_offset)


@lru_cache(4096)
def _long_breaks(line: str, width: int, indent: int) -> list[int]:
    """The label, as wide as the indent, is no place to break."""
    first = width - cell_len(line[:indent])
    return [indent + at for at in breaks(line[indent:], first, first - (width - indent))]


def _breaks(line: str, width: int, indent: int) -> list[int]:
    """Most lines are short, and there may be thousands of them."""
    return [] if len(line) <= width and line.isascii() else _long_breaks(line, width, indent)


class LogText(TextArea):
    """`hang`: columns at which the words of a line begin, from the next text on."""

    BINDINGS = bindings("list.down", "list.up", "list.top", "list.bottom", "rows.top", "rows.bottom")
    hang = 0

    def _set_document(self, text: str, language: str | None) -> None:
        super()._set_document(text, language)
        self.wrapped_document = HangingDocument(self)
        self.navigator = DocumentNavigator(self.wrapped_document)
        self._rewrap_and_refresh_virtual_size()

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        assert isinstance(self.wrapped_document, HangingDocument)
        if not (indent := self.wrapped_document.indent_of(y + self.scroll_offset.y)):
            return strip
        blank = Segment(" " * indent, [*strip][-1].style)  # as behind the words
        return Strip.join([Strip([blank], indent), strip]).crop(0, self.scrollable_content_region.width)

    def action_first(self) -> None:
        self.move_cursor((0, 0))

    def action_last(self) -> None:
        self.move_cursor((self.document.line_count - 1, 0))

    @property
    def at_end(self) -> bool:
        """Whether the newest line has the cursor, and so will the next one."""
        return self.cursor_location[0] >= self.document.line_count - 1
