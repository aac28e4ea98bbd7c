"""Steps that were left are out of the tree and out of reach, and come back as new ones would be."""

from pathlib import Path

import pytest

from tests.helpers.interface.wizard_pilot import (
    at_step,
    make_base,
    make_clips,
    scanned,
    screen_of,
    screen_text,
    until,
    wizard,
)
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.screens.wizard.pane import StepPane
from wanlora_tui.widgets.field_input import FieldInput

pytestmark = pytest.mark.process  # takes seconds


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clips = make_clips(tmp_path / "orbit", 2, frames=9)
    values = {"model.path": str(make_base(tmp_path / "base"))}
    store = DraftStore(tmp_path / "draft.json")
    store.save(Draft(step="clips", kind="motion", folders=[str(clips)], values=values))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "draft.json"


def steps_in(pilot) -> list[StepPane]:
    return list(screen_of(pilot).query(StepPane))


async def test_a_step_that_was_left_cannot_be_reached_and_comes_back_with_what_changed(draft: Path) -> None:
    async with wizard(draft) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen = screen_of(pilot)
        await until(pilot, lambda: not screen.looking, "clips that are alike")
        await screen.go_to("captions")
        captions, name = screen.pane, screen.query_one("#field-job-name", FieldInput)
        await until(pilot, lambda: name.control.has_focus, "the first field")

        await screen.go_to("clips")
        assert steps_in(pilot) == [screen.pane] and screen.pane is not captions
        assert captions.is_running and not screen.query("#field-job-name")
        name.control.focus()  # asked for by what came too late
        await until(pilot, lambda: screen.query_one("#clips").has_focus, "the focus in the step in view")
        await pilot.pause()
        assert screen.focused is screen.query_one("#clips") and not name.control.has_focus
        assert captions not in {node for node, _ in screen._binding_chain}
        assert all(captions not in widget.ancestors for widget in screen.focus_chain)

        dropout = "datasets[0].caption_dropout"
        screen.state.set_typed(dropout, "much")
        await screen.go_to("captions")
        assert screen.pane is not captions and not captions.is_running, "text that is no value makes a new one"
        first = screen.pane
        await screen.go_to("clips")
        screen.state.set_value(dropout, 0.2)
        await screen.go_to("captions")
        assert screen.pane is not first, "text that is no value any more, too"
        kept = screen.pane
        await screen.go_to("clips")
        screen.state.set_value("job.name", "third")
        await screen.go_to("captions")
        assert screen.pane is kept
        await until(pilot, lambda: "third" in screen_text(pilot.app), "the name by now")
        name = screen.query_one("#field-job-name", FieldInput).control
        await until(pilot, lambda: name.has_focus, "the focus")


async def test_a_text_reads_as_its_value_does_when_its_step_comes_back(draft: Path) -> None:
    async with wizard(draft) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen = screen_of(pilot)
        await screen.go_to("captions", field="datasets[0].caption_dropout")
        row = screen.query_one("#field-datasets-0-caption_dropout", FieldInput)
        await until(pilot, lambda: row.control.has_focus, "the field")
        row.control.value = "0.10"
        await until(pilot, lambda: screen.state.value(row.path) == 0.1, "the value")
        kept = screen.pane
        await screen.go_to("clips")
        await screen.go_to("captions")
        assert screen.pane is kept and row.control.value == "0.1"


async def test_a_theme_makes_steps_that_were_left_anew_and_leaving_the_wizard_ends_them(draft: Path) -> None:
    async with wizard(draft) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen = screen_of(pilot)
        clips = screen.pane
        await screen.go_to("captions")
        captions = screen.pane
        pilot.app.theme = "textual-light"
        await screen.go_to("clips")
        assert screen.pane is not clips and not clips.is_running
        await screen.go_to("settings")
        left = [captions, screen.pane]
        await screen.go_to("kind")
        assert all(pane.is_running for pane in left)
    assert not any(pane.is_running for pane in left)


async def test_a_step_that_comes_back_is_drawn_before_its_focus_and_whole_at_the_end(draft: Path) -> None:
    async with wizard(draft) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen = screen_of(pilot)
        await until(pilot, lambda: not screen.looking, "clips that are alike")
        await screen.go_to("captions")
        await screen.go_to("clips")
        await until(pilot, lambda: screen.query_one("#clips").has_focus, "the table")
        await pilot.pause()
        frames: list[tuple[str, object]] = []
        drawn = screen._compositor_refresh
        screen._compositor_refresh = lambda: (drawn(), frames.append((screen_text(pilot.app), screen.focused)))[0]
        await pilot.press("ctrl+g", "z")
        name = screen.query_one("#field-job-name", FieldInput).control
        assert name.has_focus and name.value.endswith("z"), "a key typed at once goes where the focus will be"
        focused = next(focus for text, focus in frames if "Caption dropout" in text)
        assert focused is None, "the step has a frame of its own, the first"
        await until(pilot, lambda: "step 3 of 6" in screen_text(pilot.app), "the title")
        last = screen_text(pilot.app)
        screen.refresh(layout=True)
        await pilot.pause()
        assert screen_text(pilot.app) == last


async def test_settings_that_come_back_say_in_which_panels_values_were_changed(draft: Path) -> None:
    async with wizard(draft, size=(100, 30)) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await scanned(pilot)
        screen = screen_of(pilot)
        await screen.go_to("settings")
        kept = screen.pane
        assert "TRAINING ●" not in screen_text(pilot.app)
        await screen.go_to("captions")
        screen.state.set_value("training.weight_decay", 0.5)
        await screen.go_to("settings")
        assert screen.pane is kept
        await until(pilot, lambda: "TRAINING ●1" in screen_text(pilot.app), "the mark of the panel")
