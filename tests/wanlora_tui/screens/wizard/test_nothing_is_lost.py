"""Keys faster than forms, pastes of many lines, and changes taken back."""

import sys
from pathlib import Path

import pytest
from textual import events

from presets.job.toml_file import load_job
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.harness import environment
from tests.helpers.interface.wizard_pilot import (
    at_step,
    make_base,
    make_clips,
    patient,
    scanned,
    screen_of,
    screen_text,
    static,
    type_ahead,
    type_text,
    until,
    wizard,
)
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until as until_outside
from tests.wanlora_tui.screens.wizard.test_mending import at_clips
from tests.wanlora_tui.screens.wizard.test_wizard import a_draft, resumed
from wanlora_tui.draft.draft_store import DraftStore
from wanlora_tui.screens.frame.step_findings import StepFindings
from wanlora_tui.screens.wizard import reading
from wanlora_tui.widgets.field_input import FieldInput

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_clips(tmp_path / "orbit")
    make_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def key(name: str, character: str | None = None) -> events.Key:
    return events.Key(name, character)


async def test_letters_behind_the_keys_that_open_a_form_arrive_in_its_first_field(work: Path) -> None:
    async with wizard(a_draft(work, "settings", values={})) as pilot:
        await resumed(pilot, "settings")
        screen_of(pilot).query_one("#panels").focus()
        await pilot.pause()
        app = pilot.app
        with patient(app):
            for event in (key("down"), key("down"), key("enter", "\r"), key("ctrl+u")):  # to MODEL, and into its path
                app.post_message(event)
            type_ahead(app, "d1/base", "tab", "tab")
            app.post_message(key("ctrl+g"))
            await until(pilot, lambda: screen_of(pilot).step == "prompts", "the next step")
        assert screen_of(pilot).state.draft.values.get("model.path") == "d1/base"


def test_what_a_terminal_sends_at_once_is_all_there(work: Path) -> None:
    """Keys that open a form, and what is typed into it, in one piece, as a slow line or a paste of keys sends them."""
    draft = a_draft(work, "settings")
    code = (
        "from pathlib import Path; from tests.helpers.interface.wizard_pilot import WizardApp;"
        f" WizardApp(Path({str(draft)!r})).run()"
    )
    terminal = Terminal([sys.executable, "-c", code], cwd=work, env=environment())
    try:
        terminal.wait("Continue the half-filled job")
        terminal.press("enter")
        terminal.wait("step 4 of 6")
        terminal.press("j\r\x15typed_at_once\t\x07")  # to JOB, into its first field; Tab, and the next step
        terminal.wait("step 5 of 6")
        terminal.press("\r\x15a camera circles a castle, fast\t")  # two previews from clips, the first one's text
        until_outside(
            lambda: (d := DraftStore(draft).load()) and d.prompts and d.prompts[0].prompt.endswith(", fast"),
            "the prompt in the draft",
        )
        # the palette finds a field of another step; mended with an arrow, the next one typed and pasted
        terminal.press("\x10rank\r\x152\x1b[D1\x1b[B8\x1b[200~.5\x1b[201~\t")
        wanted = {"target.rank": 12, "target.alpha": 8.5}
        until_outside(
            lambda: (d := DraftStore(draft).load()) and {path: d.values.get(path) for path in wanted} == wanted,
            "what was typed behind the palette",
        )
    finally:
        terminal.close()
    kept = DraftStore(draft).load()
    assert kept is not None
    assert kept.values["job.name"] == "typed_at_once"
    assert [p.prompt for p in kept.prompts][:1] == ["a camera circles a castle, fast"]


async def test_letters_behind_the_key_that_opens_a_dialog_are_the_dialogs(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        app = pilot.app
        with patient(app):
            for event in (key("escape"), key("right"), key("enter", "\r"), key("ctrl+g")):  # leave? stay; next
                app.post_message(event)
            await until(pilot, lambda: screen_of(pilot).step == "prompts", "the step after the dialog")


async def test_a_click_behind_a_step_that_is_made_anew_is_on_what_stands_there_then(work: Path) -> None:
    """What stood there when it was drawn last is gone by then, and would take the keys with it."""
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        screen, app = screen_of(pilot), pilot.app
        before = screen.query_one("#panels")
        x, y = before.region.offset
        with patient(app):
            await screen.go_to("settings", field="training.lr")
            for kind in (events.MouseDown, events.MouseUp):  # on TRAINING
                app.post_message(kind(None, x + 1, y + 7, 0, 0, 1, False, False, False))
            app.post_message(key("ctrl+u"))
            type_ahead(app, "777", "tab")
            await until(pilot, lambda: screen.state.draft.values.get("training.steps") == 777, "the steps")
        assert not before.is_attached
        screen.set_focus(before)
        assert screen.focused is not None and screen.focused.is_attached


async def test_lines_of_a_paste_are_joined_in_prose_and_refused_where_one_line_is_wanted(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        screen, app = screen_of(pilot), pilot.app
        await screen.go_to("captions", field="datasets[0].default_caption")
        await pilot.press("ctrl+a", "ctrl+k")
        lines = "a slow orbit around it, in warm light\n" * 200
        app.post_message(events.Paste(lines))
        await until(pilot, lambda: screen.state.draft.values.get("datasets[0].default_caption"), "the paste")
        assert screen.state.draft.values["datasets[0].default_caption"] == " ".join(lines.splitlines())
        assert "200 lines pasted, joined into one" in " ".join(screen_text(app).split())
        app.post_message(events.Paste(lines * 2))  # more than a caption may have: it stays, with what is wrong with it
        await until(pilot, lambda: screen.state.draft.typed, "what was pasted")
        assert len(screen.state.draft.typed["datasets[0].default_caption"]) > 22_000
        await pilot.press("ctrl+u")
        await screen.go_to("settings", field="datasets[0].resolutions")
        await pilot.press("ctrl+a", "ctrl+k")
        app.post_message(events.Paste("256\n512\n"))
        await until(pilot, lambda: screen.state.value("datasets[0].resolutions") == [256, 512], "two sizes")
        await screen.go_to("settings", field="training.steps")
        before = screen.state.value("training.steps")
        app.post_message(events.Paste("1000\n2000\n"))
        await until(pilot, lambda: "nothing was taken" in " ".join(screen_text(app).split()), "the refusal")
        assert screen.state.value("training.steps") == before


async def test_changes_are_taken_back_and_made_again_and_told(work: Path) -> None:
    async with wizard(a_draft(work, "settings"), size=(100, 30)) as pilot:
        await resumed(pilot, "settings")
        screen, app = screen_of(pilot), pilot.app
        await screen.go_to("settings", field="target.rank")
        await pilot.press("ctrl+u", "3", "2")
        await until(pilot, lambda: screen.state.value("target.rank") == 32, "the rank")
        await pilot.press("down", "ctrl+u", "8")
        await until(pilot, lambda: screen.state.value("target.alpha") == 8, "the alpha")
        await pilot.press("ctrl+underscore")
        await until(pilot, lambda: screen.state.value("target.alpha") is None, "no alpha")
        await pilot.press("ctrl+underscore")
        await until(pilot, lambda: screen.state.value("target.rank") == 16, "the old rank")
        assert "undone: target.rank 32 -> 16" in " ".join(screen_text(app).replace("▌", " ").split())
        assert next(r for r in screen.query(FieldInput) if r.path == "target.rank").control.value == "16"
        await pilot.press("ctrl+y")
        await until(pilot, lambda: screen.state.value("target.rank") == 32, "the rank again")
        screen.query_one("#panels").focus()
        await pilot.press("u")
        await until(pilot, lambda: screen.state.value("target.rank") == 16, "the key outside a text")


@pytest.mark.parametrize("path", ["job.name", "datasets[0].caption_dropout"])
async def test_undo_in_the_settings_stays_at_a_field_of_another_step_too(work: Path, path: str) -> None:
    async with wizard(a_draft(work, "settings"), size=(100, 30)) as pilot:
        await resumed(pilot, "settings")
        screen = screen_of(pilot)
        await screen.go_to("settings", field=path)
        before = screen.state.value(path)
        await pilot.press("ctrl+u", "0")
        await until(pilot, lambda: screen.state.value(path) != before, "the change")
        await pilot.press("ctrl+underscore")
        await until(pilot, lambda: screen.state.value(path) == before, "the value as it was")
        row = next((r for r in screen.query(FieldInput) if r.path == path), None)
        assert screen.step == "settings" and row is not None and row.has_focus_within


async def test_marks_tell_what_was_found_and_lead_there(work: Path) -> None:
    (work / "orbit" / "broken.mp4").write_bytes((work / "orbit" / "clip_00.mp4").read_bytes()[:900])
    draft = a_draft(work, "settings", typed={"training.lr": "fast"})
    async with wizard(draft, size=(160, 48)) as pilot:
        await resumed(pilot, "settings")
        await until(pilot, lambda: screen_of(pilot).findings is not None, "the findings")
        text = screen_text(pilot.app)
        assert "✓ 1 Kind" in text and "✗1 2 Clips" in text and "✗1 4 Machine" in text, text
        assert "✗1 in 2" in static(pilot, "#wizard-title")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "training.lr" in screen_text(pilot.app), "its findings")
        await pilot.press("f")
        await until(pilot, lambda: not screen_of(pilot).state.draft.typed, "the fix")
        await until(pilot, lambda: "✗1 4 Machine" not in screen_text(pilot.app), "the mark gone")


@pytest.mark.parametrize(
    ("size", "said"),
    [((80, 24), "✗ 1 error here: ^S shows it"), ((40, 24), "✗ 1 error ^S")],
)
async def test_findings_of_a_step_are_told_with_their_key(work: Path, size: tuple[int, int], said: str) -> None:
    draft = a_draft(work, "settings", typed={"training.lr": "fast"})
    async with wizard(draft, size=size) as pilot:
        await resumed(pilot, "settings")
        screen = screen_of(pilot)
        await until(pilot, lambda: screen.findings is not None, "the findings")
        await until(pilot, lambda: said in screen_text(pilot.app), said)
        text = screen_text(pilot.app)
        assert "Back ^D" in text and "Next ^G" in text, text
        await pilot.click("#nav-state")
        await until(pilot, lambda: isinstance(pilot.app.screen, StepFindings), "the findings")
        await pilot.press("f")
        await until(pilot, lambda: not screen.state.draft.typed and pilot.app.screen is screen, "the fix")
        await until(pilot, lambda: "^S" not in screen_text(pilot.app), "nothing is offered")
        if size == (80, 24):  # else there is no room for words
            await pilot.click("#nav-state")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "Nothing was found" in screen_text(pilot.app), "the answer to the key")
        assert screen_text(pilot.app).count("Nothing was found") == 1 and pilot.app.screen is screen


@pytest.mark.parametrize("size", [(60, 15), pytest.param((20, 5), marks=pytest.mark.thorough)])
async def test_tab_stops_at_nothing_that_nobody_sees(work: Path, size: tuple[int, int]) -> None:
    async with wizard(a_draft(work, "clips"), size=size) as pilot:
        await resumed(pilot, "clips")
        screen = screen_of(pilot)
        for step in ("clips", "captions", "settings", "prompts", "review"):
            await screen.go_to(step)
            await pilot.pause()
            for _ in range(12):
                await pilot.press("tab")
                focused = pilot.app.focused
                assert focused is not None
                await until(
                    pilot,
                    lambda focused=focused: not focused.is_attached or screen.find_widget(focused).visible_region.area,
                    f"{step}: {focused} in sight",
                )


async def test_a_job_with_two_previews_is_launched_by_nine_keys_and_a_path(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = machine(gpu(24, name="NVIDIA GeForce RTX 4090", capability=(8, 9)), ram_gib=96)
    monkeypatch.setattr(reading, "read_machine", lambda folder: card)
    pressed = ["n"]  # which opens the wizard from the list of jobs

    async def press(*keys: str) -> None:
        pressed.extend(keys)
        await pilot.press(*keys)

    async with wizard(work / "draft.json", size=(100, 30)) as pilot:
        await press("enter")  # motion
        await at_step(pilot, "clips")
        await type_text(pilot, "orbit")
        await press("enter")
        await scanned(pilot)
        await press("ctrl+g", "ctrl+g", "ctrl+g")
        await at_step(pilot, "prompts")
        await until(pilot, lambda: "s/step" in static(pilot, "#forecast-line"), "what the job takes")
        assert "RTX 4090" in static(pilot, "#forecast-line")
        await press("ctrl+f")
        await until(pilot, lambda: len(screen_of(pilot).state.draft.prompts) == 2, "two prompts")
        await press("ctrl+g")
        await at_step(pilot, "review")
        await until(pilot, lambda: screen_of(pilot).pane.planned, "what the daemon is told")
        await press("ctrl+g")
        await until(pilot, lambda: pilot.app.result != "not dismissed", "the end of the wizard")
    assert len(pressed) == 9
    assert len(load_job(Path(pilot.app.result)).sample.prompts) == 2


async def test_the_step_that_an_undo_leads_to_is_kept(tmp_path):
    draft = tmp_path / "draft.json"
    async with wizard(draft) as pilot:
        await at_clips(pilot, make_clips(tmp_path / "clips", 1))
        await pilot.press("ctrl+g")
        await at_step(pilot, "captions")
        assert DraftStore(draft).load().step == "captions"
        await pilot.press("ctrl+underscore")  # the folder goes, without which there are no captions
        await at_step(pilot, "clips")
        await until(pilot, lambda: DraftStore(draft).load().step == "clips", "the step, kept")
        await screen_of(pilot).go_to("kind")
        assert DraftStore(draft).load().step == "kind"
    async with wizard(draft) as pilot:
        assert "left at step 1 of 6" in " ".join(screen_text(pilot.app).split())
