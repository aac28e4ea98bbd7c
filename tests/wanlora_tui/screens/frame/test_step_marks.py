"""The title of the wizard's steps."""

from presets.findings import Finding, Severity
from wanlora_tui.screens.frame.step_marks import findings_line, title_line

SEVERITIES_FOUND: tuple[Severity, ...] = ("warning", "error", "warning", "advice")


def test_what_was_found_is_counted_in_the_words_there_is_room_for() -> None:
    found = [
        Finding(code="code", severity=severity, field="training.lr", message="wrong", fix="mend it")
        for severity in SEVERITIES_FOUND
    ]
    assert findings_line(found, 60) == "✗ 1 error, ! 2 warnings, i 1 hint here: ^S shows them"
    assert findings_line(found, 50) == "✗ 1 error, ! 2 warnings, i 1 hint ^S"
    assert findings_line(found, 16) == "✗1 !2 i1 ^S"
    assert findings_line(found[:1], 50) == "! 1 warning here: ^S shows it"


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
