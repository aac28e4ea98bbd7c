"""What comes while rows, steps and pictures are being made, removed or replaced is not lost, and breaks nothing."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import OptionList, Static

from presets.clips.clip_facts import DatasetFacts, scan_dataset
from presets.job.schema import DatasetPanel
from tests.helpers.interface.wizard_pilot import (
    at_step,
    make_base,
    make_clips,
    screen_of,
    screen_text,
    static,
    until,
    wizard,
)
from tests.helpers.tiers import thorough
from tests.wanlora_tui.screens.wizard.test_wizard import a_draft, resumed, reviewed
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.draft.history import History
from wanlora_tui.screens.frame import checking
from wanlora_tui.screens.wizard import reading
from wanlora_tui.screens.wizard.pane import StepPane
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.widgets.clip_frames import ClipFrames
from wanlora_tui.widgets.field_input import FieldInput

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_clips(tmp_path / "orbit", frames=9)
    make_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def meanwhile(box: VerticalScroll, name: str, come: Any) -> None:
    """Let something come, once, when the box has begun to mount, or has taken out, what is in it."""
    real = getattr(box, name)

    def changed(*args: Any) -> Any:
        setattr(box, name, real)
        done = real(*args)
        come()
        return done

    async def changed_after() -> None:
        setattr(box, name, real)
        await real()
        come()

    setattr(box, name, changed if name == "mount_all" else changed_after)


@pytest.mark.parametrize("name", ["mount_all", *thorough("remove_children")])
async def test_a_folder_is_read_while_a_panel_of_settings_is_being_shown(work: Path, name: str) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        screen = screen_of(pilot)
        form, panels = screen.query_one("#form", VerticalScroll), screen.query_one("#panels", OptionList)

        def come() -> None:
            screen.state.draft.values["model.path"] = "another/base"
            screen.show()

        meanwhile(form, name, come)
        panels.highlighted = panels.get_option_index("model")
        await until(pilot, lambda: form.query("#field-model-path"), "the fields of the panel")
        await until(
            pilot, lambda: screen.query_one("#field-model-path", FieldInput).value == "another/base", "what came"
        )


async def test_what_is_recommended_changes_while_its_reasons_are_being_shown(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        screen = screen_of(pilot)
        form, panels = screen.query_one("#form", VerticalScroll), screen.query_one("#panels", OptionList)
        panels.highlighted = panels.get_option_index("model")
        await until(pilot, lambda: form.query("#field-model-path"), "another panel")
        before = screen.state.reasons()

        def come() -> None:
            screen.state.set_kind("style")
            screen.show()

        meanwhile(form, "mount_all", come)
        panels.highlighted = panels.get_option_index("machine")

        def shown() -> list[str]:
            return [str(fact.render()) for fact in form.query(".fact").results(Static)]

        def wanted() -> bool:
            reasons = [reason for _, _, reason in screen.state.reasons()]
            return all(any(reason in fact for fact in shown()) for reason in reasons)

        await until(pilot, lambda: screen.state.reasons() != before and wanted(), "the reasons by now")


@pytest.mark.parametrize("name", ["remove_children", *thorough("mount_all")])
async def test_a_folder_is_read_while_prompts_come_and_go(work: Path, name: str) -> None:
    async with wizard(a_draft(work, "prompts")) as pilot:
        await resumed(pilot, "prompts")
        screen = screen_of(pilot)
        box = screen.query_one("#prompts", VerticalScroll)
        meanwhile(box, name, screen.show)
        await pilot.press("f5")
        await until(pilot, lambda: screen.query("#prompt-0 .image-state"), "a prompt")
        await pilot.press("f5")
        await until(pilot, lambda: screen.query("#prompt-1 .image-state"), "another")
        await pilot.press("f9", "f9")
        await until(pilot, lambda: "No prompts" in screen_text(pilot.app), "both gone")


async def test_two_steps_at_once_are_shown_one_after_the_other(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        screen = screen_of(pilot)
        await asyncio.gather(screen.go_to("captions"), screen.go_to("prompts"))
        assert [type(pane).__name__ for pane in screen.query(StepPane)] == ["PromptsPane"]
        assert screen.step == "prompts" and screen.pane is screen.query_one(StepPane)


async def test_why_a_launch_came_to_nothing_stays_until_the_job_changes(work: Path) -> None:
    async with wizard(a_draft(work, "review")) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        pane.refuse(["the disk is full"])
        screen_of(pilot).show()  # clips that are alike were looked for meanwhile
        await until(pilot, lambda: not pane.checking, "the check")
        assert pane.refusal == ["the disk is full"] and "NOT LAUNCHED" in screen_text(pilot.app)
        screen_of(pilot).state.set_value("training.steps", 77)
        screen_of(pilot).show()
        assert pane.refusal == []


async def test_an_old_check_says_nothing_of_the_job_that_is_there_now(work: Path) -> None:
    async with wizard(a_draft(work, "review")) as pilot:
        await resumed(pilot, "review")
        pane, screen = await reviewed(pilot), screen_of(pilot)
        assert isinstance(pane, ReviewPane) and pane.facts is not None and pane.forecast is not None
        known = screen.known
        old = pane._found(pane.revision - 1, screen.state.job(), pane.facts, done=True)
        old.facts = type(old.facts)(**{f: getattr(old.facts, f) for f in old.facts.__struct_fields__})
        pane.post_message(old)
        await pilot.pause()
        assert screen.known is known


async def test_captions_of_other_names_are_read_though_the_folder_is_being_read(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clip in (work / "orbit").glob("*.mp4"):
        clip.with_suffix(".long.txt").write_text("a long caption")
    go = threading.Event()

    def slow(panel: DatasetPanel, *args: Any) -> DatasetFacts:
        found = scan_dataset(panel, *args)
        if not panel.caption_extension:
            go.wait()
        return found

    monkeypatch.setattr(reading, "scan_dataset", slow)
    async with wizard(a_draft(work, "settings")) as pilot:
        await pilot.press("enter")
        screen, folder = screen_of(pilot), str(work / "orbit")
        state = screen.state
        await until(pilot, lambda: folder in state.looks and state.ready, "the look")
        screen.history = History(state.draft)
        state.set_value("datasets[0].caption_extension", ".long.txt")
        screen.history.note(state.draft)
        go.set()
        screen._scan()
        await until(pilot, lambda: folder in state.scans and not state.looks, "the clips")
        assert {clip.caption for clip in state.scans[folder].clips} == {"a long caption"}
        await screen.action_undo()
        await until(pilot, lambda: folder in state.scans and not state.looks, "the clips, once more")
        assert "a long caption" not in {clip.caption for clip in state.scans[folder].clips}


class Alone(App[None]):
    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.parts = parts

    def compose(self) -> ComposeResult:
        yield from self.parts


async def test_a_row_shows_what_it_was_told_before_it_stood_there() -> None:
    row = FieldInput("target.alpha", None, recommended=None)

    row.show_problem("no such thing")
    app = Alone(row)
    compose = row.compose

    def told() -> ComposeResult:
        yield from compose()
        row.set_placeholder("left out: 16")
        row.set_value(8.0, recommended=4.0, reason="it suits you")

    row.compose = told  # type: ignore[method-assign]
    async with app.run_test(size=(80, 10)):
        assert "no such thing" in str(row._error_place.render()) and row._error_place.display
        assert row.control.placeholder == "left out: 16" and row.control.value == "8.0"  # type: ignore[union-attr]


async def test_a_row_shows_what_was_found_before_it_stood_there_though_nothing_else_comes() -> None:
    """Where its value changes as well, that would show it."""
    row = FieldInput("target.alpha", None, recommended=None)
    row.show_problem("no such thing")
    async with Alone(row).run_test(size=(80, 10)):
        assert "no such thing" in str(row._error_place.render()) and row._error_place.display


async def test_a_clip_that_was_to_be_shown_before_there_was_a_place_for_it_is_shown(tmp_path: Path) -> None:
    found = scan_dataset(DatasetPanel(path=str(make_clips(tmp_path / "orbit", 1))), 0, tmp_path)
    frames = ClipFrames()
    frames.show(found.clips[0], DatasetPanel(path=str(tmp_path / "orbit")), note="here it is")
    app = Alone(frames)
    async with app.run_test(size=(60, 30)) as pilot:
        assert "here it is" in str(frames.query_one(".seen", Static).render())
        await until(pilot, lambda: frames._kept, "its frames")
        key, (pictures, _) = frames._kept.popitem()
        frames._kept[key] = pictures, "it cannot be opened"
        frames.show(found.clips[0], DatasetPanel(path=str(tmp_path / "orbit")))
        assert "it cannot be opened" in str(frames.query_one(".seen", Static).render()), "said once more"


@pytest.mark.parametrize("part", ["scan_dataset", "twins_of"])
async def test_a_look_at_clips_that_dies_says_so_and_can_be_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    clips, real = make_clips(tmp_path / "clips", 2, frames=9), getattr(reading, part)

    def dies(*args: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(reading, part, dies)
    DraftStore(tmp_path / "draft.json").save(Draft(step="clips", kind="motion", folders=[str(clips)]))
    async with wizard(tmp_path / "draft.json", size=(100, 30)) as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await until(pilot, lambda: "OSError: [Errno 5] Input/output error" in screen_text(pilot.app), "what happened")
        await until(pilot, lambda: "l reads it again" in screen_text(pilot.app), "what to do")
        assert not screen_of(pilot).looking and "looking" not in screen_text(pilot.app)
        await until(pilot, lambda: screen_of(pilot).state.ready, "the machine")
        await screen_of(pilot).go_to("captions")
        await at_step(pilot, "captions")
        assert "1 folder not read to the end: l reads again" in static(pilot, "#caption-count")
        await screen_of(pilot).go_to("clips")
        await at_step(pilot, "clips")
        monkeypatch.setattr(reading, part, real)
        screen_of(pilot).query_one("#folders").focus()
        await pilot.press("l")
        await until(pilot, lambda: screen_of(pilot).state.twins, "clips that are alike")
        assert "OSError" not in screen_text(pilot.app) and "2 clips" in screen_text(pilot.app)


async def test_a_check_that_dies_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: Any, **how: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checking, "gather", dies)
    async with wizard(a_draft(work, "review")) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        assert [f.severity for f in pane.findings] == ["error"]
        await until(pilot, lambda: "Input/output error" in screen_text(pilot.app), "what happened")
        assert "checking" not in screen_text(pilot.app)
        monkeypatch.undo()
        await pilot.press("f7")
        await at_step(pilot, "prompts")
        await pilot.press("f8")
        assert "not-checked" not in {f.code for f in (await reviewed(pilot)).findings}
