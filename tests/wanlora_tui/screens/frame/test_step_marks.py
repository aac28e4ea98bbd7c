"""The title of the wizard's steps."""

from wanlora_tui.screens.frame.step_marks import title_line


def test_the_title_keeps_what_was_found_where_there_is_little_room() -> None:
    marks = ["✓", "!1", "", "✗1", "", ""]
    found = "step 3 of 6 · Trigger and captions · !1 in 2, ✗1 in 4"
    assert title_line(2, marks, 78) == f"New LoRA job · {found}"
    assert title_line(2, marks, 58) == found
    assert title_line(1, marks, 78) == "New LoRA job · step 2 of 6 · Clips !1 · ✗1 in 4"


def test_the_title_of_a_copy_says_whose_it_is_as_long_as_there_is_room() -> None:
    marks, step = ["✓", "", "", "✗1", "", ""], "step 4 of 6 · Machine and settings ✗1"
    assert title_line(3, marks, 78, "orbit_v1") == f"New LoRA job, a copy of orbit_v1 · {step}"
    assert title_line(3, marks, 58, "orbit_v1") == f"copy of orbit_v1 · {step}"
    assert title_line(3, marks, 40, "orbit_v1") == step
