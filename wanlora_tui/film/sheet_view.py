"""The contact sheet: a row for each prompt, a column for each step, as many as scroll by. Only what is in sight is
fetched, decoded and drawn."""

from collections.abc import Iterable
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from presets.text import escaped
from wanlora_tui.film.cells import depth_of, inked, pairs
from wanlora_tui.film.decoding import Frame, Reel
from wanlora_tui.film.film_line import FilmLine, Pair, in_the_middle, joined
from wanlora_tui.film.pane import Found
from wanlora_tui.film.projector import Projector
from wanlora_tui.film.shots import Column, Shots
from wanlora_tui.terminal.pictures import pixel_aspect

LEAST, USUAL, MOST = 10, 24, 80  # columns of one picture
FITTED = 14  # as many at least while all are to be in sight
LARGER = 1.4
USUAL_RATIO = 1.0  # height by width, until a picture has come
GAP = 1
HEAD = 2  # rows above the pictures of a prompt: its text, and the steps
MOST_PICTURES = 200  # that are kept as characters


class SheetView(ScrollView, can_focus=True, inherit_bindings=False):
    """`cursor` is (prompt, column of the table)."""

    DEFAULT_CSS = "SheetView { width: 1fr; height: 1fr; }"

    class Opened(Message):
        """Somebody clicked on the picture under the cursor."""

    class Moved(Message):
        """Other pictures are in sight, or the cursor is elsewhere."""

    def __init__(self, pictures: Found) -> None:
        super().__init__()
        self.shots: Shots | None = None
        self.cursor: tuple[int, int] = (0, 0)
        self._width = USUAL  # of one picture
        self._fitted = False  # whether that is the user's own, or the largest that all have room at
        self._pictures = pictures
        self._version: object = None
        self._ratio = 0.0
        self._posters: dict[tuple[int, int], Reel] = {}
        self._films: dict[tuple[int, int], Reel] = {}
        self._words: dict[tuple[int, int], str] = {}
        self._frames: dict[tuple[int, int], Frame] = {}
        self._drawn: LRUCache[int, tuple[Frame, list[Pair]]] = LRUCache(MOST_PICTURES)

    # --- where things are --------------------------------------------------------------------------------------

    @property
    def _cell(self) -> tuple[int, int]:
        """Columns and rows of one picture."""
        width = self._width
        ratio = (self._ratio or USUAL_RATIO) * pixel_aspect()
        return width, max(1, min(width, round(width * ratio / 2)))

    def _place(self, prompt: int, column: int) -> Region:
        """Of a picture with its label, on the whole sheet."""
        width, height = self._cell
        return Region(column * (width + GAP), prompt * (height + HEAD + GAP) + 1, width, height + 1)

    def _lay_out(self) -> None:
        if self.shots is not None:
            width, height = self._cell
            columns, rows = max(1, len(self.shots.columns)), max(1, self.shots.prompts)
            self.virtual_size = Size(columns * (width + GAP), rows * (height + HEAD + GAP))

    def _fit(self) -> None:
        """Take the largest pictures that leave room for all, if there is one."""
        if not self._fitted and self.shots is not None:
            for self._width in [*range(MOST, FITTED, -1), USUAL]:
                self._lay_out()
                if self.virtual_size.width <= self.size.width and self.virtual_size.height <= self.size.height:
                    break
            self._frames = {}
        self._fitted = True
        self._lay_out()

    @property
    def _in_sight(self) -> list[tuple[int, int]]:
        if self.shots is None or not self.size:
            return []
        height, y = self._cell[1], self.scroll_offset.y
        rows = range(y // (height + HEAD + GAP), (y + self.size.height - 1) // (height + HEAD + GAP) + 1)
        return [(r, c) for r in rows if r < self.shots.prompts for c in self._columns_in_sight]

    @property
    def _columns_in_sight(self) -> range:
        x, step = self.scroll_offset.x, self._cell[0] + GAP
        most = len(self.shots.columns) if self.shots is not None else 0
        return range(min(x // step, most), min((x + self.size.width - 1) // step + 1, most))

    # --- what is shown -----------------------------------------------------------------------------------------

    def show(self, shots: Shots, version: object) -> None:
        self.shots, self._version = shots, version
        prompts, columns = max(1, shots.prompts), max(1, len(shots.columns))
        self.cursor = min(self.cursor[0], prompts - 1), min(self.cursor[1], columns - 1)
        self._lay_out()

    @property
    def reels(self) -> Iterable[Reel]:
        return [*self._posters.values(), *self._films.values()]

    def column(self) -> Column | None:
        return self.shots.columns[self.cursor[1]] if self.shots is not None and self.shots.columns else None

    def aim(self, projector: Projector, *, film: bool) -> None:
        self._posters, self._films, self._words = {}, {}, {}
        width = self._width
        for at in self._in_sight:
            assert self.shots is not None
            shot = self.shots.get(at[0], self.shots.columns[at[1]])
            if shot is None:
                self._words[at] = "no preview"
                continue
            for path, reels in ((shot.poster, self._posters), (shot.film, self._films))[: 1 + film]:
                found = self._pictures.find(path, self._version)
                if isinstance(found, Path):
                    reels[at] = projector.reel(found, (width, 2 * width), pixel_aspect())
                else:
                    self._words[at] = found

    def draw(self, seconds: float) -> None:
        """The frames of a time; of a film that has none yet its poster."""
        frames = {}
        for reels in (self._posters, self._films):
            for at, reel in reels.items():
                if (frame := reel.at(seconds)) is not None:
                    frames[at] = frame
                elif reel.problem:
                    self._words[at] = reel.problem
        if frames and not self._ratio:
            height, width, _ = next(iter(frames.values())).shape
            self._ratio = height / width / pixel_aspect()
            self._fit()
            self.post_message(self.Moved())
        other = [at for at in frames.keys() | self._frames.keys() if frames.get(at) is not self._frames.get(at)]
        self._frames = frames
        x, y = self.scroll_offset
        if len(other) > len(frames) // 2 or not frames:
            self.refresh()
        else:
            self.refresh(*(self._place(*at).translate((-x, -y)) for at in other))

    def render_line(self, y: int) -> Strip:
        x, width, style = self.scroll_offset.x, self.size.width, self.rich_style
        _, height = self._cell
        if self.shots is None:
            return Strip.blank(width, style)
        prompt, row = divmod(y + self.scroll_offset.y, height + HEAD + GAP)
        if prompt >= self.shots.prompts or row >= height + HEAD:
            return Strip.blank(width, style)
        if row == 0:  # it does not scroll sideways
            words = escaped(self.shots.text(prompt)).replace("\n", " ")
            bold = Style(bold=True) if prompt == self.cursor[0] else Style()
            return Strip([Segment(f"{prompt + 1}  {words}", style + bold)]).adjust_cell_length(width, style)
        columns = range(len(self.shots.columns))
        if (
            row > 1
            and depth_of(self.app) != "none"
            and all((prompt, c) in self._frames for c in self._columns_in_sight)
        ):
            return self._film_line(prompt, row - 2, style)
        segments: list[Segment] = []
        for column in columns:
            segments += self._part(prompt, column, row - 1, style)
            segments.append(Segment(" " * GAP, style))
        return Strip(segments).crop_extend(x, x + width, style)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Lines of pictures go past the filters of texts."""
        lines = super().render_lines(crop) if depth_of(self.app) == "none" else None
        if lines is None:
            lines = []
            for y in crop.line_range:
                line = self.render_line(y)
                pictures = isinstance(line, FilmLine)
                whole = Region(0, y, self.size.width, 1)
                lines.append((line if pictures else super().render_lines(whole)[0]).crop(crop.x, crop.right))
        return lines

    def _film_line(self, prompt: int, row: int, style: Style) -> Strip:
        width, x = self._cell[0], self.scroll_offset.x
        parts: list[tuple[int, Pair | None]] = []
        for column in self._columns_in_sight:
            rows = self._pairs_of(self._frames[prompt, column])
            pair = in_the_middle(rows[row], width) if row < len(rows) else None
            parts += [(width, pair), (GAP, None)]
        parts.append((self.size.width, None))
        upper, lower = joined(parts)
        begin = x - self._columns_in_sight[0] * (width + GAP)
        end = begin + self.size.width
        return FilmLine((upper[begin:end], lower[begin:end]), depth_of(self.app), style)

    def _part(self, prompt: int, column: int, row: int, style: Style) -> list[Segment]:
        """One row of one picture, with row 0 for its label."""
        at, width = (prompt, column), self._cell[0]
        assert self.shots is not None
        if row == 0:
            chosen = at == self.cursor
            label = self.shots.columns[column].label
            label = label if len(label) + 2 <= width else self.shots.columns[column].short
            label = f"{'▸' if chosen else ' '} {label}"[:width].ljust(width)
            return [Segment(label, style + Style(reverse=chosen, bold=chosen))]
        frame, blank = self._frames.get(at), Segment(" " * width, style)
        if frame is None:
            words = self._words.get(at, "…")
            begin = (row - 1) * width
            return [Segment(escaped(words)[begin : begin + width].ljust(width), style + Style(dim=True))]
        if row > len(frame) // 2:
            return [blank]
        depth = depth_of(self.app)
        if depth == "none":
            return [Segment(inked(frame, self.app.current_theme.dark)[row - 1].center(width), style)]
        return list(FilmLine(in_the_middle(self._pairs_of(frame)[row - 1], width), depth, style))

    def _pairs_of(self, frame: Frame) -> list[Pair]:
        kept = self._drawn.get(id(frame))
        if kept is None or kept[0] is not frame:
            kept = frame, pairs(frame, depth_of(self.app))
            self._drawn[id(frame)] = kept
        return kept[1]

    # --- moving ------------------------------------------------------------------------------------------------

    def go(self, prompt: int, column: int) -> None:
        """Put the cursor there, and have it in sight."""
        if self.shots is None or not self.shots.columns:
            return
        self.cursor = (
            max(0, min(self.shots.prompts - 1, prompt)),
            max(0, min(len(self.shots.columns) - 1, column)),
        )
        place = self._place(*self.cursor)
        height = min(place.height + 1, self.size.height)  # its top, where it is higher than the sheet
        self.scroll_to_region(Region(place.x, place.y - 1, place.width, height), animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved())

    def resize_pictures(self, by: int) -> None:
        self._width = max(LEAST, min(MOST, round(self._width * LARGER**by)))
        self._frames, self._fitted = {}, True
        self._lay_out()
        self.call_after_refresh(self.go, *self.cursor)

    def watch_scroll_x(self, old: float, new: float) -> None:
        super().watch_scroll_x(old, new)
        self.post_message(self.Moved())

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        self.post_message(self.Moved())

    def on_resize(self) -> None:
        """The cursor stays in sight; it may have been put somewhere before there was any size."""
        self.post_message(self.Moved())
        self.call_after_refresh(lambda: self.go(*self.cursor))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        x, y = event.x + self.scroll_offset.x, event.y + self.scroll_offset.y
        width, height = self._cell
        at = y // (height + HEAD + GAP), x // (width + GAP)
        if self.shots is None or at[0] >= self.shots.prompts or at[1] >= len(self.shots.columns):
            return
        self.go(*at)
        self.post_message(self.Opened())
