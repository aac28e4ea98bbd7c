"""Texts put together from parts."""

import pytest

from presets.errors import UserError
from presets.text import human, sentences


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("ImportError: no name x", "This is a bug"), "ImportError: no name x. This is a bug."),
        (
            ("the folder /nonexist does not exist", "Choose the folder that holds the clips"),
            "the folder /nonexist does not exist. Choose the folder that holds the clips.",
        ),
        (("out of memory.", "Lower num_frames."), "out of memory. Lower num_frames."),
        (("is the disk full?", "", "  Look! "), "is the disk full? Look!"),
        (('it said "no."', "Ask again (now)"), 'it said "no." Ask again (now).'),
        (
            ("no daemon is running", "Start it with: wanlora daemon start"),
            "no daemon is running. Start it with: wanlora daemon start",
        ),
        (("Start it with: wanlora daemon start", "Then look"), "Start it with: wanlora daemon start. Then look."),
        (("one", "one"), "one. one."),
        (("", " "), ""),
    ],
)
def test_every_part_is_a_sentence(parts: tuple[str, ...], text: str):
    assert sentences(*parts) == text


def test_an_error_has_one_full_stop_before_its_fix():
    assert str(UserError("is no video.", where="a.mp4", fix="Leave it out")) == "a.mp4: is no video. Leave it out"
    assert str(UserError("is no video", fix="Leave it out")) == "is no video. Leave it out"
    assert str(UserError("is no video", where="a.mp4")) == "a.mp4: is no video"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (12.4 * 1024, "12 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (310.4 * 2**20, "310 MiB"),
        (1.84 * 2**30, "1.8 GiB"),
        (139.8 * 2**30, "140 GiB"),
        (3.25 * 2**40, "3.2 TiB"),
        (2000 * 2**40, "2000 TiB"),
    ],
)
def test_bytes_for_a_person(size: float, text: str):
    assert human(size) == text
