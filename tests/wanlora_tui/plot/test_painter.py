"""A row of a figure in segments, each of which takes as long to draw as many cells."""

from rich.style import Style
from textual.theme import BUILTIN_THEMES

from wanlora_tui.plot.curves import LINE, NOTHING, RAW
from wanlora_tui.plot.painter import Painter


def test_blanks_between_points_make_no_segments():
    painter = Painter(BUILTIN_THEMES["textual-dark"].to_color_system().generate(), Style())
    signs, inks = list("⠁ ⠂ ● ⠁ "), [RAW, NOTHING, RAW, NOTHING, LINE, NOTHING, RAW, NOTHING]
    row = painter.row(signs, inks)
    assert [segment.text for segment in row] == ["⠁ ⠂ ", "● ", "⠁ "]
    first, line, last = (segment.style for segment in row)
    assert first == last != line


def test_the_cursor_has_one_colour_between_points():
    painter = Painter(BUILTIN_THEMES["textual-dark"].to_color_system().generate(), Style())
    behind_a_point, alone = (
        next(segment for segment in painter.with_cursor(painter.row(list(signs), inks), 1) if segment.text == "│")
        for signs, inks in (("⠁ ⠂", [RAW, NOTHING, RAW]), ("   ", [NOTHING] * 3))
    )
    assert behind_a_point.style == alone.style
