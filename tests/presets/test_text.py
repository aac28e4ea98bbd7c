"""Texts put together from parts."""

import pytest

from presets.errors import UserError
from presets.text import sentences


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
