"""The canvas of dots."""

from wanlora_tui.plot.braille import EMPTY, Canvas


def text(canvas: Canvas) -> list[str]:
    return ["".join(canvas.row(row)[0]) for row in range(canvas.rows)]


def test_each_dot_has_its_place_and_what_lies_outside_is_not_drawn():
    canvas = Canvas(2, 1)
    for x, y in [(0, 0), (3, 3), (-1, 0), (4, 0), (0, -1), (0, 4)]:
        canvas.dots([(x, y)], 1)
    assert text(canvas) == [chr(EMPTY + 0x01) + chr(EMPTY + 0x80)]


def test_a_line_has_no_gap_however_steep():
    canvas = Canvas(4, 4)
    canvas.line([(0, 15), (1, 15), (2, 0), (7, 0)], 1)
    drawn = {(x, y) for y in range(16) for x in range(8) if canvas._bits[(y // 4) * 4 + x // 2] & DOT[y % 4][x % 2]}
    assert {(2, y) for y in range(15)} <= drawn and {(x, 0) for x in range(2, 8)} <= drawn


DOT = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def test_a_line_far_beyond_the_edges_costs_nothing_and_comes_back():
    canvas = Canvas(4, 1)
    canvas.line([(0, 0), (3, 10**9), (7, 0)], 1)
    assert text(canvas)[0][0] != " " and text(canvas)[0][-1] != " "


def test_a_cell_shows_the_higher_layer_alone():
    canvas = Canvas(1, 1)
    canvas.dots([(0, 0)], 100)
    canvas.dots([(1, 3)], 300)
    canvas.dots([(0, 1)], 100)
    assert canvas.row(0) == ([chr(EMPTY + 0x80)], [300])


def test_dashes_leave_columns_out():
    canvas = Canvas(6, 1)
    canvas.line([(0, 0), (11, 0)], 1, (True, True, False, False))
    assert text(canvas) == [(chr(EMPTY + 0x09) + " ") * 3]
