"""The wizard by keyboard, on a small terminal, with real clips."""

import os
import re
import signal
import subprocess
import sys
from inspect import isawaitable
from pathlib import Path

import pytest
from textual import events
from textual.widgets import Button, Input

from presets.job.fields import FIELDS
from presets.job.schema import PromptPanel
from presets.job.toml_file import absolute_paths, load_job, save_job
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment
from tests.helpers.interface.harness import until as until_outside
from tests.helpers.interface.wizard_pilot import (
    at_step,
    focus_field,
    make_base,
    make_clips,
    make_image,
    scanned,
    screen_of,
    screen_text,
    static,
    type_ahead,
    type_text,
    until,
    wizard,
)
from tests.helpers.loras import pair, write_lora_file
from tests.helpers.tiers import thorough
from tests.helpers.videos import write_clip
from tests.helpers.waiting import PATIENCE, until_async
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.draft.job_draft import PANELS
from wanlora_tui.screens.wizard.captions import CaptionsPane
from wanlora_tui.screens.wizard.clips import ClipsPane
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.widgets.clip_table import ClipTable
from wanlora_tui.widgets.field_input import FieldInput, FieldText, field_id
from wanlora_tui.widgets.folder_picker import PathInput, PathPicker

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that wanlora is started in: clips, an image, and a base model small enough for this machine."""
    make_clips(tmp_path / "orbit")
    make_image(tmp_path / "control" / "castle.png")
    make_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_draft(work: Path, step: str, **more: object) -> Path:
    """A draft that was left at a step, over the clips and the small base model."""
    path = work / "draft.json"
    plain: dict[str, object] = {
        "step": step,
        "kind": "motion",
        "folders": [str(work / "orbit")],
        "values": {"model.path": str(work / "base")},
    }
    DraftStore(path).save(Draft(**plain | more))  # type: ignore[arg-type]
    return path


async def resumed(pilot, step: str) -> None:  # type: ignore[no-untyped-def]
    """Take the offer to continue."""
    await pilot.press("enter")
    await at_step(pilot, step)
    await scanned(pilot)


async def at_field(pilot, path: str) -> FieldInput:  # type: ignore[no-untyped-def]
    """Go there as a finding leads there, without the panels between."""
    await screen_of(pilot).go_to_field(path)
    row = screen_of(pilot).query_one(f"#{field_id(path)}", FieldInput)
    await until(pilot, lambda: row.has_focus_within, f"the focus in {path}")
    return row


async def reviewed(pilot) -> ReviewPane:  # type: ignore[no-untyped-def]
    """Wait until everything is checked."""
    await at_step(pilot, "review")
    pane = screen_of(pilot).pane
    assert isinstance(pane, ReviewPane)
    await until(pilot, lambda: not pane.checking and not pane.watching, "the findings")
    return pane


async def test_from_the_first_key_to_the_job_file_by_keyboard_at_80x24(work: Path) -> None:
    async with wizard(work / "draft.json") as pilot:
        assert "step 1 of 6" in screen_text(pilot.app)
        await pilot.press("j", "enter")  # style
        await at_step(pilot, "clips")
        await type_text(pilot, "or")
        await pilot.press("tab", "enter")
        await scanned(pilot)
        text = screen_text(pilot.app)
        assert all(word in text for word in ("clip_00.mp4", "3.0 s", "48", "16", "96x96", "3 clips", "✓")), text
        await pilot.press("f8")
        await at_step(pilot, "captions")
        row = await focus_field(pilot, "job.name")
        await pilot.press("ctrl+u")
        await type_text(pilot, "neon_v1")
        await focus_field(pilot, "job.trigger")
        await pilot.press("ctrl+u")
        await type_text(pilot, "neonlook")
        assert row.error == ""
        await pilot.press("f8")
        await at_step(pilot, "settings")
        assert "RAM" in screen_text(pilot.app)
        await pilot.press("j", "j", "enter")  # MODEL
        await focus_field(pilot, "model.path")
        await pilot.press("ctrl+u")
        await type_text(pilot, "ba")
        await pilot.press("tab")
        assert "● yours" in screen_text(pilot.app)
        await pilot.press("f8")
        await at_step(pilot, "prompts")
        assert "makes no previews" in screen_text(pilot.app)
        await pilot.press("f5")
        await until(pilot, lambda: screen_of(pilot).query("#prompt-0"), "the prompt")
        assert screen_of(pilot).state.draft.prompts[0].prompt == "orbit 90 around the subject"
        await pilot.press("down")
        await type_text(pilot, "con")
        await pilot.press("tab")
        await type_text(pilot, "cas")
        await pilot.press("tab")
        await until(pilot, lambda: "✓ the image opens" in screen_text(pilot.app), "the image")
        await pilot.press("f8")
        pane = await reviewed(pilot)
        await pilot.press("F")
        await until(pilot, lambda: not pane.checking, "the second check")
        errors = [f for f in pane.findings if f.severity == "error"]
        assert errors == [], errors
        assert "neon_v1" in screen_text(pilot.app)
        await pilot.press("f8")
        await until(pilot, lambda: pilot.app.result != "not dismissed", "the end of the wizard")
        assert pilot.app.result == str(work / "neon_v1.toml")
    job = load_job(work / "neon_v1.toml")
    assert (job.job.name, job.job.kind, job.job.trigger) == ("neon_v1", "style", "neonlook")
    assert (job.datasets[0].path, job.model.path) == ("orbit", "base/")
    assert [(p.prompt, p.ctrl_img) for p in job.sample.prompts] == [
        ("orbit 90 around the subject", "control/castle.png")
    ]
    assert not (work / "draft.json").exists()


async def test_next_says_what_is_missing(work: Path) -> None:
    async with wizard(work / "draft.json") as pilot:
        await pilot.press("f8")
        assert screen_of(pilot).step == "kind" and "Choose what" in screen_text(pilot.app)
        await pilot.press("enter", "f8")
        await at_step(pilot, "clips")
        await until(pilot, lambda: "Add a folder" in screen_text(pilot.app), "the notice")
        await pilot.press("shift+tab", "left_square_bracket")  # out of the text input, brackets walk as well
        await at_step(pilot, "kind")
        assert "(chosen)" in screen_text(pilot.app)
        await pilot.press("right_square_bracket")
        await at_step(pilot, "clips")


async def test_problems_of_clips_are_told_and_the_rest_is_usable(work: Path) -> None:
    (work / "orbit" / "broken.mp4").write_bytes((work / "orbit" / "clip_00.mp4").read_bytes()[:900])
    (work / "orbit" / "anim.gif").write_bytes(b"GIF89a")
    async with wizard(a_draft(work, "clips")) as pilot:
        await resumed(pilot, "clips")
        text = " ".join(screen_text(pilot.app).split())
        assert "✗ 2 problems" in text and "broken.mp4" in text and "anim.gif" in text
        table = screen_of(pilot).query_one("#clips", ClipTable)
        assert [entry.name for entry in table.entries if entry.clip is None] == ["anim.gif", "broken.mp4"]
        assert table.row_count == 5


async def test_folders_come_and_go_by_typing_and_by_browsing(work: Path) -> None:
    make_clips(work / "more", 1)
    async with wizard(a_draft(work, "clips")) as pilot:
        await resumed(pilot, "clips")
        screen_of(pilot).query_one("#folder").focus()
        await type_text(pilot, "nowhere")
        await pilot.press("enter")
        assert "No such folder" in screen_text(pilot.app)
        await pilot.press("ctrl+u", "f4")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathPicker), "the picker")
        await pilot.press("backspace")
        picker = pilot.app.screen
        tree = picker.query_one("DirectoryTree")
        await until(pilot, lambda: any("more" in str(n.label) for n in tree.root.children), "the folders")
        for _ in range(10):
            if picker.query_one("#picker-path", Input).value.endswith("/more"):
                break
            await pilot.press("j")
        await pilot.press("enter")
        await until(pilot, lambda: len(screen_of(pilot).state.draft.folders) == 2, "the second folder")
        await scanned(pilot)
        assert "2 " in screen_text(pilot.app) and screen_of(pilot).query_one("#clips", ClipTable).row_count == 1
        await pilot.press("f9")
        assert screen_of(pilot).state.draft.folders == [str(work / "orbit")]
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathPicker), "the picker")
        await pilot.press("escape")
        assert screen_of(pilot).state.draft.folders == [str(work / "orbit")]


async def test_keys_work_while_forty_clips_are_read(work: Path) -> None:
    folder = work / "many"
    folder.mkdir()
    write_clip(folder / "clip_00.mp4", frames=48, fps=16.0, width=96, height=96)
    for i in range(1, 40):
        os.link(folder / "clip_00.mp4", folder / f"clip_{i:02}.mp4")
    async with wizard(work / "draft.json") as pilot:
        await pilot.press("enter")
        await type_text(pilot, "many")
        await pilot.press("enter")
        screen_of(pilot).query_one("#folder").focus()
        await pilot.pause()
        await type_text(pilot, "abc")  # answered before the worker's message is
        assert screen_of(pilot).query_one("#folder", Input).value == "abc"
        await scanned(pilot)
        assert screen_of(pilot).query_one("#clips", ClipTable).row_count == 40


@pytest.mark.parametrize("step", ["clips", "captions"])
async def test_what_is_read_while_a_step_is_being_made_is_shown_there(
    work: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A busy machine has read the folder before the step that was drawn without it takes messages."""
    kind = {"clips": ClipsPane, "captions": CaptionsPane}[step]
    draw = kind.on_mount

    async def slow(pane: ClipsPane) -> None:
        answer = draw(pane)
        if isawaitable(answer):
            await answer
        await until_async(lambda: pane.state.ready and not pane.state.looks, "the clips")

    async with wizard(a_draft(work, step)) as pilot:
        with monkeypatch.context() as patch:
            patch.setattr(kind, "on_mount", slow)
            await resumed(pilot, step)
        await until(pilot, lambda: "3 clips" in screen_text(pilot.app), "the folder's line")
        assert "looking at" not in screen_text(pilot.app)


async def test_captions_show_as_they_will_be_read(work: Path) -> None:
    (work / "orbit" / "clip_00.txt").write_text("[trigger], a slow orbit")
    (work / "orbit" / "clip_02.txt").unlink()
    async with wizard(a_draft(work, "captions")) as pilot:
        await resumed(pilot, "captions")
        await focus_field(pilot, "job.trigger")
        await pilot.press("ctrl+u")
        await type_text(pilot, "frung")
        await until(pilot, lambda: "frung, a slow orbit" in screen_text(pilot.app), "how it reads, once typing rests")
        assert "2 of 3 clips have their own caption" in screen_text(pilot.app)
        row = await focus_field(pilot, "datasets[0].default_caption")
        row.control.value = ""
        await pilot.pause()
        await until(
            pilot,
            lambda: "✗ 1 have none" in screen_text(pilot.app) and "✗ none" in screen_text(pilot.app),
            "the complaint",
        )
        await type_text(pilot, "a [trigger] turns")
        await until(pilot, lambda: "a frung turns" in screen_text(pilot.app), "the new caption")


@pytest.mark.process  # for its length
@pytest.mark.parametrize("panels", [PANELS[::6], *thorough(PANELS)], ids=["some panels", "all panels"])
async def test_every_field_is_reached_by_keyboard(work: Path, panels: tuple[str, ...]) -> None:
    reached: set[str] = set()
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        screen_of(pilot).state.add_layers()
        screen_of(pilot).state.set_value("model.merge[0].path", "style.safetensors")
        for panel in PANELS:
            screen_of(pilot).query_one("#panels").focus()
            await pilot.press("down")
            await until(
                pilot,
                lambda panel=panel: (
                    screen_of(pilot).query(FieldInput)
                    and screen_of(pilot).query(FieldInput).first().path.startswith(panel)
                ),
                f"the form {panel}",
            )
            if panel not in panels:
                continue
            await pilot.press("enter")
            wanted = [row.path for row in screen_of(pilot).query(FieldInput)]
            for path in wanted:
                row = pilot.app.focused.parent.parent  # type: ignore[union-attr]
                assert isinstance(row, FieldInput) and row.path == path
                region = row.control.region
                assert region in screen_of(pilot).region and region.width >= 10, f"{path} cannot be seen: {region}"
                general = re.sub(r"\[\d\]", "", path)
                assert isinstance(row.control, PathInput) or not general.endswith(".path"), f"{path} does not complete"
                assert FIELDS[general].label in str(screen_of(pilot).query_one("#help-area").border_title)
                reached.add(general)
                await pilot.press("down")
        await pilot.press("f8")
        await at_step(pilot, "prompts")
        await pilot.press("f5")
        await until(pilot, lambda: screen_of(pilot).query("#prompt-0"), "the prompt")
        own = screen_of(pilot).query_one("#prompt-0 .more", Button)
        for path in screen_of(pilot).state.prompt_fields(0):
            if path.endswith(".end_img"):
                own.focus()
                await pilot.press("enter")
                await pilot.pause()
            row = await focus_field(pilot, path)
            assert row.control.region in screen_of(pilot).region, f"{path} cannot be seen"
            reached.add(path.replace("[0]", ""))
    assert reached == {path for path in FIELDS if path.startswith("sample.prompts.") or path.split(".")[0] in panels}
    assert panels != PANELS or reached == set(FIELDS)


async def test_a_lora_of_another_model_is_told_at_its_field_and_a_merge_makes_room_for_the_next(work: Path) -> None:
    write_lora_file(work / "other.safetensors", pair(width=48))
    write_lora_file(work / "mine.safetensors", pair(width=32, rank=2))
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        state = screen_of(pilot).state
        row = await at_field(pilot, "target.start_high")
        row.control.value = "other.safetensors"
        await until(pilot, lambda: "of another model" in screen_text(pilot.app), "the finding")
        row.control.value = "mine.safetensors"
        await until(pilot, lambda: state.value("target.rank") == 2, "its rank")
        await until(pilot, lambda: "of another model" not in screen_text(pilot.app), "no finding")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathPicker), "the picker")
        await pilot.press("escape")
        row = await at_field(pilot, "model.merge[0].path")
        row.control.value = "mine.safetensors"
        await until(pilot, lambda: screen_of(pilot).query("#field-model-merge-1-path"), "room for the next")
        strength = await focus_field(pilot, "model.merge[0].strength")
        strength.control.value = "0.5"
        await until(pilot, lambda: [m.strength for m in state.job().model.merge] == [0.5], "its strength")


async def test_some_layers_get_a_rank_of_their_own(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        state = screen_of(pilot).state
        await at_field(pilot, "target.rank")
        await pilot.press("f5")
        await until(pilot, lambda: len(state.draft.layers) == 1, "the table")
        await until(pilot, lambda: isinstance(pilot.app.focused, FieldText), "the focus in it")
        await pilot.press("ctrl+u")
        await type_text(pilot, "ffn")
        row = await focus_field(pilot, "target.layers[0].rank")
        await type_text(pilot, "32")
        await until(
            pilot, lambda: [(t.match, t.rank) for t in state.job().target.layers] == [("ffn", 32)], "the layers"
        )
        assert row.placeholder == "left out: 16"
        await pilot.press("f9")
        await until(pilot, lambda: not state.job().target.layers, "no table")
        await until(pilot, lambda: not screen_of(pilot).query(".field-error.-wrong"), "the form again")


async def test_the_values_of_one_expert_follow_the_common_ones_and_its_stage(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        state = screen_of(pilot).state
        state.set_value("training.steps", 1000)
        state.set_value("training.lr", 2e-4)
        await at_field(pilot, "multistage.high.share")
        assert "High noise alone: 500 of 1000 steps" in screen_text(pilot.app) and "left out: 2e-4" in screen_text(
            pilot.app
        )
        row = await focus_field(pilot, "multistage.high.share")
        row.control.value = "3"
        await until(pilot, lambda: "alone: 750 of 1000 steps" in static(pilot, "#heading-high_noise"), "the share")
        row = await focus_field(pilot, "multistage.high.rank")
        await type_text(pilot, "32")
        await until(pilot, lambda: state.job().multistage.high.rank == 32, "the rank")
        await pilot.press("ctrl+u")
        await until(pilot, lambda: state.job().multistage.high.rank is None, "no rank")
        assert "multistage.high.rank" not in state.draft.values, "left out again is as recommended"
        state.set_value("multistage.high_noise", False)
        screen_of(pilot).pane.bring_up_to_date()  # type: ignore[union-attr]
        assert "not trained" in static(pilot, "#heading-high_noise") and "1000 of 1000" in static(
            pilot, "#heading-low_noise"
        )


async def test_bad_input_is_shown_kept_and_blocks_the_launch(work: Path) -> None:
    draft = a_draft(work, "settings")
    async with wizard(draft) as pilot:
        await resumed(pilot, "settings")
        await at_field(pilot, "training.lr")
        await pilot.press("ctrl+u")
        await type_text(pilot, "quick")
        await until(pilot, lambda: "✗ Expected number" in screen_text(pilot.app), "what is wrong")
    async with wizard(draft) as pilot:
        await resumed(pilot, "settings")
        await pilot.press("f8", "f8")
        review = await reviewed(pilot)
        assert "training.lr" in [f.field for f in review.findings if f.severity == "error"]
        await pilot.press("f8")
        await until(pilot, lambda: "Fix first" in screen_text(pilot.app), "the refusal")
        assert "training.lr" in screen_text(pilot.app)
        await pilot.press("enter")  # the highlighted finding leads to its field
        await at_step(pilot, "settings")
        await until(
            pilot,
            lambda: (
                screen_of(pilot).query("#field-training-lr")
                and screen_of(pilot).query_one("#field-training-lr", FieldInput).has_focus_within
            ),
            "the field",
        )
        assert screen_of(pilot).query_one("#field-training-lr", FieldInput).control.value == "quick"
        await pilot.press("f6")
        assert "✗" not in static(pilot, "#field-training-lr .field-error")
        assert screen_of(pilot).state.draft.typed == {}


async def test_one_key_fixes_a_finding_and_one_key_all(work: Path) -> None:
    draft = a_draft(
        work,
        "review",
        values={
            "model.path": str(work / "base"),
            "datasets[0].num_frames": 40,
            "datasets[0].cache_latents": True,
            "sample.width": 250,
        },
    )
    async with wizard(draft) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        codes = {f.code for f in pane.findings if f.severity == "error"}
        assert {"frames-4n-plus-1", "latent-cache-multi-frame"} <= codes, codes
        assert "✗ ERRORS" in screen_text(pilot.app)
        finding = pane.current()
        assert finding is not None and finding.set
        path, value = next(iter(finding.set.items()))
        await pilot.press("f")
        await until(pilot, lambda: not pane.checking, "the second check")
        assert screen_of(pilot).state.value(path) == value
        assert finding.code not in {f.code for f in pane.findings}
        await pilot.press("F")
        await until(pilot, lambda: not pane.checking, "the third check")
        assert not [f for f in pane.findings if f.severity == "error" and f.set]
        assert screen_of(pilot).state.job().datasets[0].num_frames % 4 == 1
        await pilot.press("t")
        assert "[job]" in screen_text(pilot.app) and 'kind = "motion"' in screen_text(pilot.app)
        await pilot.press("t")
        assert "[job]" not in screen_text(pilot.app)


async def test_clips_that_are_left_out_in_the_review_are_looked_for_anew(work: Path) -> None:
    async with wizard(a_draft(work, "review")) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        await until(pilot, lambda: not pane.checking and not pane.watching, "all of the check")
        screen_of(pilot).state.set_value("datasets[0].exclude", ["clip_01.mp4"])
        pane.bring_up_to_date()
        await until(pilot, lambda: not pane.checking and not pane.watching, "the second check")
        assert pane.facts.datasets[0].left_out == ["clip_01.mp4"]
        assert "exclude-unknown" not in {f.code for f in pane.findings}


async def test_a_job_file_is_never_replaced_without_asking(work: Path) -> None:
    mine = work / "mine.toml"
    mine.write_text("# somebody else's job\nbroken = [")
    async with wizard(a_draft(work, "review")) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        pane.query_one("#job-path", Input).focus()
        await pilot.pause()
        pane.query_one("#job-path", Input).post_message(events.Paste(f"'{mine}' \n"))
        await until(pilot, lambda: screen_of(pilot).state.job_path() == mine, "the file that was dragged there")
        await until(pilot, lambda: not pane.checking, "the check for it")
        pane.query_one("#findings").focus()
        await pilot.press("F")
        await until(pilot, lambda: not pane.checking, "the second check")
        assert "asks before replacing" in screen_text(pilot.app)
        await pilot.press("f8")
        await until(pilot, lambda: "Replace this file?" in screen_text(pilot.app), "the question")
        await pilot.press("right", "enter")
        await until(
            pilot,
            lambda: screen_of(pilot).focused is not None and screen_of(pilot).focused.id == "job-path",
            "the path",
        )
        assert mine.read_text().startswith("# somebody")
        await pilot.press("f8")
        await until(pilot, lambda: "Replace this file?" in screen_text(pilot.app), "the question")
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.result != "not dismissed", "the end of the wizard")
    assert load_job(mine).job.kind == "motion"


async def test_a_run_of_the_same_job_stops_the_launch_and_one_key_renames_it(work: Path) -> None:
    async with wizard(a_draft(work, "review", job_path="mine.toml")) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        await pilot.press("F")
        await until(pilot, lambda: not pane.checking, "the second check")
        assert not [f for f in pane.findings if f.severity == "error"]
        run = work / "runs" / screen_of(pilot).state.job().job.name
        run.mkdir(parents=True)
        save_job(absolute_paths(screen_of(pilot).state.job(), work), run / "job.toml")
        pane.bring_up_to_date()
        await until(pilot, lambda: "run-folder-same-job" in screen_text(pilot.app), "the finding")
        save_job(screen_of(pilot).state.written_job(), work / "mine.toml")
        pane.bring_up_to_date()
        await until(
            pilot,
            lambda: "this very job stands there; launching writes it again" in screen_text(pilot.app),
            "what stands there, though this wizard has launched nothing",
        )
        (work / "mine.toml").unlink()
        await pilot.press("f8")
        await until(pilot, lambda: "Fix first: job.name" in " ".join(screen_text(pilot.app).split()), "the refusal")
        assert not (work / "mine.toml").exists()
        await pilot.press("f")
        await until(
            pilot,
            lambda: not pane.checking and not [f for f in pane.findings if f.severity == "error"],
            "the third check",
        )
        assert screen_of(pilot).state.job().job.name == f"{run.name}_2"


async def test_a_place_that_cannot_be_written_stops_the_launch(work: Path) -> None:
    async with wizard(a_draft(work, "review", job_path=str(work / "orbit" / "clip_00.mp4" / "job.toml"))) as pilot:
        await resumed(pilot, "review")
        await reviewed(pilot)
        await until(pilot, lambda: "is a file, not a folder" in " ".join(screen_text(pilot.app).split()), "the finding")
        await pilot.press("f8")
        await until(pilot, lambda: "Not launched" in screen_text(pilot.app), "the refusal")
        assert pilot.app.result == "not dismissed"


async def test_previews_are_made_of_clips_on_one_key(work: Path) -> None:
    async with wizard(a_draft(work, "prompts")) as pilot:
        await resumed(pilot, "prompts")
        await scanned(pilot)
        await until(pilot, lambda: "^F adds two" in " ".join(screen_text(pilot.app).split()), "the offer")
        await pilot.press("f3")
        await until(pilot, lambda: screen_of(pilot).query("#prompt-1"), "two prompts")
        await until(pilot, lambda: screen_of(pilot).query_one("#prompt-0").has_focus_within, "the cursor in the first")
        await until(
            pilot, lambda: screen_text(pilot.app).count("✓ a clip that trains as well") >= 1, "the first frames"
        )
        state = screen_of(pilot).state
        names = [Path(p.ctrl_img).name for p in state.draft.prompts]
        assert len(set(names)) == 2 and all(p.prompt for p in state.draft.prompts)
        await pilot.press("f2")
        await until(pilot, lambda: state.job().datasets[0].exclude == names[:1], "the clip left out")
        await until(pilot, lambda: "✓ a clip that does not train" in screen_text(pilot.app), "the word of it")
        await pilot.press("f7", "f7", "f7")
        await at_step(pilot, "clips")
        await until(pilot, lambda: "left out" in screen_text(pilot.app), "the table of clips")


async def test_control_images_are_opened(work: Path) -> None:
    (work / "control" / "fake.png").write_text("no image")
    async with wizard(a_draft(work, "prompts")) as pilot:
        await resumed(pilot, "prompts")
        await pilot.press("f5")
        await until(pilot, lambda: "✗ needs an image" in screen_text(pilot.app), "the complaint")
        await focus_field(pilot, "sample.prompts[0].ctrl_img")
        await type_text(pilot, "control/fake.png")
        await until(
            pilot,
            lambda: "✗ the control image is a text file, not an image" in " ".join(screen_text(pilot.app).split()),
            "the refusal",
        )
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathPicker), "the picker")
        picker = pilot.app.screen
        picker.query_one("#picker-path", Input).value = str(work / "control" / "castle.png")
        picker.query_one("#picker-take", Button).press()
        await until(pilot, lambda: "✓ the image opens" in screen_text(pilot.app), "the image")
        screen_of(pilot).query_one("#prompt-0 .more", Button).press()
        await pilot.pause()
        await focus_field(pilot, "sample.prompts[0].end_img")
        await pilot.press("f4")
        await until(pilot, lambda: isinstance(pilot.app.screen, PathPicker), "the picker of the end image")
        pilot.app.screen.query_one("#picker-path", Input).value = str(work / "control" / "castle.png")
        pilot.app.screen.query_one("#picker-take", Button).press()
        await until(pilot, lambda: screen_of(pilot).state.draft.prompts[0].end_img.endswith("castle.png"), "its path")
        await pilot.press("f9")
        await until(pilot, lambda: "makes no previews" in screen_text(pilot.app), "the empty list")


async def test_escape_asks_and_the_draft_is_offered_again(work: Path) -> None:
    draft = work / "draft.json"
    async with wizard(draft) as pilot:
        await pilot.press("j", "j", "enter")
        await at_step(pilot, "clips")
        await pilot.press("escape")
        await until(
            pilot,
            lambda: "kept" in screen_text(pilot.app) and "Leave the wizard?" in screen_text(pilot.app),
            "the question",
        )
        await pilot.press("escape")
        await pilot.pause()
        assert pilot.app.result == "not dismissed"
        await pilot.press("escape", "enter")
        await until(pilot, lambda: pilot.app.result is None, "the end")
    async with wizard(draft) as pilot:
        assert "moments ago" in screen_text(pilot.app) and "character" in screen_text(pilot.app)
        await pilot.press("enter")
        await at_step(pilot, "clips")
        assert screen_of(pilot).state.draft.kind == "character"
        await pilot.press("escape", "right", "right", "enter")  # throw it away
        await until(pilot, lambda: pilot.app.result is None, "the end")
    assert not draft.exists()


async def test_escape_at_the_offer_goes_back_and_keeps_the_draft(work: Path) -> None:
    draft = a_draft(work, "settings")
    before = draft.read_bytes()
    async with wizard(draft) as pilot:
        assert "Continue the half-filled job" in screen_text(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.result != "not dismissed", "the way back")
        assert pilot.app.result is None
    assert draft.read_bytes() == before


TYPED_AHEAD: list[tuple[tuple[str, ...], str, str]] = [
    (("def", "tab", "/tmp/y.png"), "def", "/tmp/y.png"),
    (("def", "down", "/tmp/y.png"), "def", "/tmp/y.png"),
    (("abc", "backspace", "d", "tab", "y"), "abd", "y"),
    (("def", "tab", "control/ca", "tab"), "def", "control/castle.png"),
    (("a", "tab", "y", "shift+tab", "b"), "b", "y"),  # a field entered by a key is selected whole
]


async def test_keys_typed_ahead_go_where_they_were_meant_to(work: Path) -> None:
    async with wizard(a_draft(work, "prompts", prompts=[PromptPanel(prompt="")])) as pilot:
        await resumed(pilot, "prompts")
        rows = list(pilot.app.screen.query(FieldInput))
        pilot.app.patience = PATIENCE
        for keys, prompt, image in TYPED_AHEAD:
            for row in rows[:2]:
                row.control.value = ""
            rows[0].control.focus()
            await until(pilot, lambda: rows[0].control.has_focus, "the first field")
            await pilot.press("end")
            type_ahead(pilot.app, *keys)
            await until(
                pilot,
                lambda wanted=(prompt, image): (rows[0].control.value, rows[1].control.value) == wanted,
                f"{prompt!r} and {image!r} of {keys}",
            )
            await until(pilot, lambda: not pilot.app.is_taking, f"the end of {keys}")


async def test_a_prompt_can_be_typed_right_behind_the_key_that_adds_it(work: Path) -> None:
    async with wizard(a_draft(work, "prompts")) as pilot:
        await resumed(pilot, "prompts")
        pilot.app.patience = PATIENCE
        type_ahead(pilot.app, "f5", "backspace", "orbit")
        await until(
            pilot,
            lambda: (
                [r.control.value[-5:] for r in list(pilot.app.screen.query(FieldInput))[:1] if r.is_mounted]
                == ["orbit"]
            ),
            "the prompt",
        )


async def test_starting_afresh_forgets_the_draft_at_the_first_choice(work: Path) -> None:
    draft = a_draft(work, "settings")
    async with wizard(draft) as pilot:
        await pilot.press("right", "enter")
        await at_step(pilot, "kind")
        assert screen_of(pilot).state.draft.is_empty
        await pilot.press("enter")
        await at_step(pilot, "clips")
    kept = DraftStore(draft).load()
    assert kept is not None and kept.folders == []


async def test_a_damaged_draft_is_said_and_set_aside(work: Path) -> None:
    draft = work / "draft.json"
    draft.write_text('{"kind": ')
    async with wizard(draft, size=(160, 48)) as pilot:
        await at_step(pilot, "kind")
        await until(
            pilot,
            lambda: "draft.json.unread" in " ".join(screen_text(pilot.app).split()).replace(" ", ""),
            "the notice",
        )
    assert (work / "draft.json.unread").exists()


@pytest.mark.process
def test_kill_9_keeps_what_was_typed(work: Path) -> None:
    """A real terminal program, killed without warning in the middle of a word."""
    pexpect = pytest.importorskip("pexpect", reason="pexpect drives the terminal")
    draft = work / "draft.json"
    code = (
        "from pathlib import Path; from tests.helpers.interface.wizard_pilot import WizardApp;"
        f" WizardApp(Path({str(draft)!r})).run()"
    )
    child = pexpect.spawn(
        sys.executable, ["-c", code], cwd=str(work), env=environment(), dimensions=(24, 80), timeout=PATIENCE
    )
    child.expect("Motion or camera")
    child.send("\r")
    child.expect("Folder")
    child.send("orbit\r")
    until_outside(lambda: draft.exists() and (d := DraftStore(draft).load()) and d.folders, "the folder in the draft")
    child.expect("clip_00")
    child.send("\x1b[19~")  # F8
    child.expect("Trigger word")
    child.send("\x15wip_na")
    until_outside(
        lambda: (d := DraftStore(draft).load()) and d.values.get("job.name") == "wip_na", "the typed name in the draft"
    )
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.close()
    kept = DraftStore(draft).load()
    assert kept is not None and (kept.step, kept.kind, kept.values["job.name"]) == ("captions", "motion", "wip_na")


async def test_help_tells_the_step_and_the_keys(work: Path) -> None:
    async with wizard(work / "draft.json") as pilot:
        await pilot.press("f1")
        await until(pilot, lambda: "Help · Kind" in screen_text(pilot.app), "the help")
        assert "two experts" in screen_text(pilot.app)
        await pilot.press("G")
        await until(pilot, lambda: "Go up one line" in screen_text(pilot.app), "the end of the help")
        text = screen_text(pilot.app)
        assert "Enter Space" in text and "ENTER" not in text
        assert all(line.split("│")[1].startswith("  ") for line in text.splitlines() if line.count("│") == 2), text
        await pilot.press("escape")
        await pilot.pause()
        assert screen_of(pilot) is pilot.app.screen


async def test_the_mouse_alone_walks_the_steps(work: Path) -> None:
    async with wizard(a_draft(work, "clips"), size=(160, 48)) as pilot:
        await pilot.click("#answer-continue")
        await at_step(pilot, "clips")
        await scanned(pilot)
        await pilot.click("#next")
        await at_step(pilot, "captions")
        await pilot.click("#back")
        await at_step(pilot, "clips")
        assert isinstance(screen_of(pilot).pane, ClipsPane)
        await pilot.click("#steps", offset=(5, 4))
        await at_step(pilot, "settings")


def test_the_wizard_imports_no_torch(work: Path) -> None:
    code = (
        "import sys, wanlora_tui.screens.wizard; bad = {'torch', 'diffusers', 'transformers', 'peft', 'engine'} &"
        " set(sys.modules); sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
