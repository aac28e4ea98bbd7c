"""What a sheet shows, and that its words fit."""

import numpy as np
from PIL import Image

from engine.preview.contact_sheets import EARLIEST, LATEST, Row, side_by_side, steps_shown, write_sheet
from engine.preview.video_files import SIDE


def test_a_comparison_shows_the_first_and_the_last_steps():
    assert steps_shown([4, 0, 2, 2]) == [0, 2, 4]
    many = steps_shown(range(0, 2000, 50))
    assert many == [0, 1600, 1650, 1700, 1750, 1800, 1850, 1900, 1950] and len(many) == EARLIEST + LATEST


def test_words_fit_the_sheet(tmp_path):
    picture = np.full((9, 300, 500, 3), 90, np.uint8)
    rows = [
        Row("a very long prompt without an end " * 20, "seed 1", picture[:, :SIDE, :SIDE]),
        Row("x" * 400, "", picture[:1, :20, :20]),
    ]
    write_sheet(tmp_path / "sheet.png", "name, step 5", rows)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 8 + 5 * (SIDE + 8)
    assert (sheet[:, -7:] == sheet[0, 0]).all() and (sheet[:, :7] == sheet[0, 0]).all(), (
        "nothing reaches into the margin"
    )
    assert (sheet == 235).any() and (sheet == 90).any()


def test_side_by_side_holds_the_shorter_ones():
    tiles = [
        (f"step {i}", np.full((frames_, 40, 60, 3), 20 * i, np.uint8)) for i, frames_ in enumerate((1, 5, 5, 5, 3), 1)
    ]
    out = side_by_side(tiles)
    assert len(out) == 5 and out.shape[1] % 2 == out.shape[2] % 2 == 0
    assert all((out[t] == 100).sum() >= 40 * 60 * 3 for t in range(5)), "the shorter one stays"
