"""Frames as cells: exact colours, exact characters."""

import io

import numpy as np
import pytest
from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from wanlora_tui.film.cells import Depth, inked, pairs
from wanlora_tui.film.film_line import FilmLine, in_the_middle, joined


def frame(*rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, np.uint8)


RED, GREEN, BLUE, WHITE, BLACK = (252, 0, 0), (0, 252, 0), (0, 0, 252), (255, 255, 255), (0, 0, 0)


def cells(frame: np.ndarray, depth: Depth = "true") -> list[list[Segment]]:
    return [list(FilmLine(pair, depth, Style())) for pair in pairs(frame, depth)]


def colours(row: list) -> list[tuple[str, str, str]]:
    return [(s.text, s.style.color.name, s.style.bgcolor.name) for s in row]


def test_two_pixels_in_each_cell():
    drawn = cells(frame([RED, GREEN], [BLUE, RED], [BLACK, BLACK], [WHITE, WHITE]))
    assert [colours(row) for row in drawn] == [
        [("▀", "#fc0000", "#0000fc"), ("▀", "#00fc00", "#fc0000")],
        [("▀▀", "#000000", "#fcfcfc")],
    ]


def test_neighbours_of_the_same_colours_are_one_segment():
    near = (253, 1, 2)  # nobody sees the difference
    assert colours(cells(frame([RED, near, GREEN], [BLUE, BLUE, BLUE]))[0]) == [
        ("▀▀", "#fc0000", "#0000fc"),
        ("▀", "#00fc00", "#0000fc"),
    ]


@pytest.mark.parametrize(
    ("colour", "number"),
    [((0, 0, 0), 16), ((255, 255, 255), 231), ((255, 0, 0), 196), ((95, 135, 175), 67)],
)
def test_the_nearest_of_256(colour: tuple[int, int, int], number: int):
    found = [n for pair in pairs(np.full((4, 4, 3), colour, np.uint8), "256") for half in pair for n in half.tolist()]
    assert max(set(found), key=found.count) == number
    assert FilmLine(pairs(frame([RED], [RED]), "256")[0], "256", Style())._segments[0].style.color == Color.from_ansi(
        196
    )


def test_neighbours_make_up_a_colour_that_256_lack():
    """Between red 95 and red 135: both, in equal parts."""
    found = np.concatenate([half for pair in pairs(np.full((8, 8, 3), (115, 0, 0), np.uint8), "256") for half in pair])
    numbers, counts = np.unique(found, return_counts=True)
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == {52: 32, 88: 32}


def test_without_colour_brightness_is_ink():
    grey = [tuple([v] * 3) for v in (0, 60, 128, 255)]
    assert (inked(frame(grey, grey), True), inked(frame(grey, grey), False)) == ([" :+@"], ["@#= "])
    assert inked(frame([BLACK], [WHITE]), True) == ["="]


@pytest.mark.parametrize("depth", ["true", "256"])
def test_the_terminal_gets_what_the_segments_say(depth: Depth):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    background = Style(bgcolor="#102030")
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    picture[:, 2:4] = 77
    for pair in pairs(picture, depth):
        line = FilmLine(in_the_middle(pair, 11), depth, background)
        assert line.cell_length == 11 and [s.text for s in line][:2] == ["  ", "▀"]
        assert line.render(console) == Strip(list(line)).render(console)
        assert line.crop(3, 7).text == "▀▀▀▀" and line.crop(0, 11) is line


def test_pictures_side_by_side():
    pair = pairs(frame([RED, GREEN, BLUE], [RED, GREEN, BLUE]), "true")[0]
    line = FilmLine(joined([(2, pair), (1, None), (4, pair)]), "true", Style())
    assert line.text == "▀▀ ▀▀▀ "
