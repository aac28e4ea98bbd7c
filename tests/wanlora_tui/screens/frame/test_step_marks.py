"""The title of the wizard's steps, and their marks."""

from pathlib import Path

import pytest
from textual.widgets import OptionList

from presets.findings import Finding, Severity
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.wizard_pilot import at_step, make_clips, screen_of, static, until, wizard
from tests.wanlora_tui.screens.wizard.test_wizard import resumed
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.frame import reckoning, step_marks
from wanlora_tui.screens.frame.step_findings import StepFindings
from wanlora_tui.screens.frame.step_marks import findings_line, title_line
from wanlora_tui.screens.wizard import reading

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
    assert title_line(2, marks, 38) == "!1 in 2, ✗1 in 4 · step 3 of 6 · Trigger and captions"
    assert title_line(3, marks, 38) == "!1 in 2, ✗1 here · step 4 of 6 · Machine and settings"
    assert title_line(1, marks, 78) == "New LoRA job · step 2 of 6 · Clips !1 · ✗1 in 4"


def test_the_title_of_a_copy_says_whose_it_is_as_long_as_there_is_room() -> None:
    marks, step = ["✓", "", "", "✗1", "", ""], "step 4 of 6 · Machine and settings ✗1"
    assert title_line(3, marks, 78, "orbit_v1") == f"New LoRA job, a copy of orbit_v1 · {step}"
    assert title_line(3, marks, 58, "orbit_v1") == f"copy of orbit_v1 · {step}"
    assert title_line(3, marks, 40, "orbit_v1") == step


@pytest.mark.process  # takes seconds
async def test_marks_follow_what_is_typed_once_it_rests_and_the_key_to_findings_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "read_machine", lambda folder: machine(gpu(24), ram_gib=96))
    monkeypatch.setattr(step_marks, "REST", 3600.0)
    monkeypatch.setattr(reckoning, "PAUSE", 3600.0)
    draft = Draft(step="settings", kind="motion", folders=[str(make_clips(tmp_path / "clips", 2))])
    DraftStore(tmp_path / "draft.json").save(draft)
    async with wizard(tmp_path / "draft.json") as pilot:
        await resumed(pilot, "settings")
        await at_step(pilot, "settings")
        await screen_of(pilot).go_to("settings", field="training.steps")
        await pilot.pause()
        await pilot.press("x")
        await until(pilot, lambda: "training.steps" in screen_of(pilot).state.draft.typed, "what is typed")
        assert "✗" not in static(pilot, "#wizard-title") + static(pilot, "#nav-state")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, StepFindings), "what was found")
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen_of(pilot), "the step")
        await pilot.press("ctrl+u", "9")
        await until(pilot, lambda: screen_of(pilot).state.value("training.steps") == 9, "the value")
        panels = screen_of(pilot).query_one("#panels", OptionList)

        def said() -> str:
            return str(panels.get_option("training").prompt)

        assert "●" not in said()
        await pilot.press("tab")  # who leaves a field wants to see what came of it
        await until(pilot, lambda: "●" in said(), "the change, counted")
        await pilot.press("shift+tab")
        screen_of(pilot).resting.seconds = 0.01
        await pilot.press("x")
        await until(pilot, lambda: "✗1" in static(pilot, "#wizard-title"), "the mark")
        assert "1 error here" in static(pilot, "#nav-state")
        assert "✗1 4" in str(screen_of(pilot).query_one("#steps", OptionList).get_option_at_index(3).prompt)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "✗" not in static(pilot, "#wizard-title"), "no mark")
        assert "✗" not in str(screen_of(pilot).query_one("#steps", OptionList).get_option_at_index(3).prompt)
