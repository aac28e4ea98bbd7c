"""Words behind a label, in a column of their own."""

import pytest
from rich.text import Text

from wanlora_tui.output.hanging import folded, hanging, titled

PATH = "/data/runs/orbit_v1/samples/step_000002400/01.mp4"
TEXTS = [
    PATH,
    f"12 previews, newest {PATH}",
    "one\ntwo  \n  three is longer",
    "日本語" * 20,
    "x" * 70,
    "",
    " ",
    "a\n\n\nb",
    "👩‍🚀 🎬 " * 9,
]


def lines(text: Text) -> list[str]:
    return text.plain.split("\n")


def test_what_follows_a_lines_end_stands_under_the_first_word():
    assert lines(hanging(Text("Plan       "), Text("float8, 26 of 40 blocks resident"), 30)) == [
        "Plan       float8, 26 of 40",
        "           blocks resident",
    ]


def test_a_path_is_broken_at_a_slash_and_its_file_stays_whole():
    assert lines(hanging(Text("Saved  "), Text(PATH), 52)) == [
        "Saved  /data/runs/orbit_v1/samples/step_000002400/",
        "       01.mp4",
    ]
    assert [line.plain for line in folded(Text("see noisy_v1_high_noise.safetensors"), 24)] == [
        "see noisy_v1_high_noise.",
        "safetensors",
    ]


def test_a_word_that_fits_into_a_line_is_not_broken():
    assert [line.plain for line in folded(Text("newest samples/00.mp4 of all"), 15)] == [
        "newest",
        "samples/00.mp4",
        "of all",
    ]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", [3, 8, 13, 24, 52])
@pytest.mark.parametrize("indent", [None, 2])
def test_no_line_is_too_long_and_no_sign_is_lost(text: str, width: int, indent: int | None):
    found = hanging(Text("Label      "), Text(text, "bold"), width, indent)
    assert all(Text(line).cell_len <= width for line in lines(found))
    assert "".join(found.plain.split()) == "".join(f"Label{text}".split())
    assert all(span.style == "bold" for span in found.spans)


def test_in_a_very_narrow_place_the_words_begin_near_the_edge():
    assert lines(hanging(Text("Run folder "), Text("the words of it"), 16)) == ["Run folder the", "  words of it"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_long_name_leaves_room_for_what_is_said_of_it(width: int):
    title = titled("n" * 64, "  ► running  GPU 0", width)
    assert str(title).endswith("  ► running  GPU 0") and title.cell_len <= width
    assert ("n" * 64 in str(title)) == (width == 200)
