"""What has been written to a terminal, bit by bit, against what Textual makes of the screen when nothing that was drawn
before is known."""

from typing import Any

from rich.cells import get_character_cell_size
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual._styles_cache import StylesCache
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget

from wanlora_tui.widgets.long_table import LongTable

Cell = tuple[str, Any]


def cells(segments: Any) -> list[Cell]:
    """One for each column; a wide character has two."""
    out: list[Cell] = []
    for text, style, control in segments:
        assert not control
        s = style
        seen = s and (s.color, s.bgcolor, s.bold, s.dim, s.italic, s.reverse, s.underline)
        for character in text if text != "\n" else "":
            out += [(character, seen), ("", seen)][: get_character_cell_size(character)]
    return out


class Drawn:
    """What stands on the terminal."""

    def __init__(self) -> None:
        self.there: dict[tuple[int, int], Cell] = {}

    def take(self, update: Any) -> None:
        """As Textual writes it: segments, each from where the cursor is."""
        if isinstance(update, LayoutUpdate):
            update.strips = [list(line) for line in update.strips]
        if not isinstance(update, LayoutUpdate | ChopsUpdate):
            return
        x = y = 0
        for segment in update.__rich_console__(None, None):  # type: ignore[arg-type]
            if segment.control:
                (_, x, y), *_ = segment.control  # type: ignore[misc]
            elif segment.text != "\n":
                for cell in cells([segment]):
                    self.there[x, y] = cell
                    x += 1


def made_anew(screen: Screen[Any]) -> list[list[Cell]]:
    """The screen by Textual's own compositor, with nothing known of before. What is known stays for later."""
    kept: list[tuple[Any, dict[str, Any]]] = []
    for widget in (screen, *screen.walk_children(Widget)):
        fresh: dict[str, Any] = {"_styles_cache": StylesCache()}
        if isinstance(widget, LongTable):
            fresh |= {"_made": {}, "_said": {}, "_made_on": ()}
        kept.append((widget, {name: getattr(widget, name) for name in fresh}))
        vars(widget).update(fresh)
    try:
        return [cells(strip) for strip in screen._compositor.render_strips()]
    finally:
        for widget, names in kept:
            vars(widget).update(names)


def stale(drawn: Drawn, screen: Screen[Any]) -> tuple[int, str, str] | None:
    """The first row that is not as it should be: its number, what stands there, what should."""
    columns, _ = screen.app.size
    for y, wanted in enumerate(made_anew(screen)):
        there = [drawn.there.get((x, y), ("", None)) for x in range(columns)]
        if there != wanted:
            return y, "".join(text for text, _ in there), "".join(text for text, _ in wanted)
    return None


async def settled(pilot: Pilot[Any]) -> None:
    """Until nothing is to be drawn any more."""
    screen = pilot.app.screen
    for _ in range(50):
        await pilot.pause()
        if not (screen._dirty_widgets or screen._compositor._dirty_regions or screen._layout_required):
            return
    raise AssertionError("it is drawn again and again")
