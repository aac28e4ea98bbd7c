"""Clips mended where they are seen: left out, captioned, many at once, taken back; looks that are stopped."""

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.widgets import Button, Input, TextArea

from presets.errors import UserError
from presets.look import Look
from tests.helpers.interface.wizard_pilot import (
    NOTIFIED,
    at_step,
    focus_field,
    make_clips,
    scanned,
    screen_of,
    screen_text,
    static,
    type_text,
    until,
    wizard,
)
from tests.helpers.videos import write_clip
from wanlora_tui.draft.caption_history import CaptionChange
from wanlora_tui.draft.clip_captions import with_trigger
from wanlora_tui.screens.wizard import clip_dialogs, mending
from wanlora_tui.screens.wizard.clip_dialogs import CaptionDialog, CaptionsDialog, TakingBack
from wanlora_tui.widgets.clip_frames import ClipFrames
from wanlora_tui.widgets.clip_table import CaptionTable, ClipTable

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")


async def at_clips(pilot: Any, folder: Path) -> ClipTable:
    await pilot.press("enter")
    await at_step(pilot, "clips")
    return await at_clips_of(pilot, folder)


async def at_clips_of(pilot: Any, folder: Path) -> ClipTable:
    """At the step of the clips, whose field has the focus, to those of this folder."""
    await type_text(pilot, str(folder))
    await pilot.press("enter")
    await scanned(pilot)
    await until(pilot, lambda: not screen_of(pilot).looking, "clips that are alike")
    table = screen_of(pilot).query_one(ClipTable)
    table.focus()
    await pilot.pause()
    return table


async def at_captions(pilot: Any, folder: Path) -> CaptionTable:
    await at_clips(pilot, folder)
    await pilot.press("f8")
    await at_step(pilot, "captions")
    table = screen_of(pilot).query_one(CaptionTable)
    table.focus()
    await pilot.pause()
    return table


def notified(pilot: Any) -> str:
    return "\n".join(notice.message for notice in NOTIFIED.get(pilot.app._notifications, ()))


async def on_top(pilot: Any, kind: type) -> Any:
    await until(pilot, lambda: isinstance(pilot.app.screen, kind) and pilot.app.screen.is_mounted, kind.__name__)
    return pilot.app.screen


async def test_x_leaves_a_clip_out_and_takes_it_in_again(tmp_path):
    folder = make_clips(tmp_path / "clips")
    async with wizard(tmp_path / "draft.json") as pilot:
        table, state = await at_clips(pilot, folder), screen_of(pilot).state
        assert "same bytes as" in " ".join(str(c) for c in table.cells(1)) or "looks like" in screen_text(pilot.app)
        await pilot.press("j", "x")
        await pilot.pause()
        assert state.job().datasets[0].exclude == ["clip_01.mp4"]
        assert "left out" in screen_text(pilot.app) and "2 clips" in screen_text(pilot.app)
        await until(pilot, lambda: state.found(0) and len(state.found(0).clips) == 2, "the recommendation")
        await pilot.press("x")
        assert state.job().datasets[0].exclude == []
        assert {p.name for p in folder.iterdir()} == {f"clip_0{i}.{s}" for i in range(3) for s in ("mp4", "txt")}


async def test_what_can_be_done_with_clips_is_offered_where_there_are_clips(tmp_path):
    def offered() -> set[str]:
        asked = {"wizard.read_again": "read_again", "wizard.fill_captions": "fill_captions"}
        return {name for name, action in asked.items() if screen_of(pilot).pane.check_action(action, ())}

    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        assert offered() == set()
        (tmp_path / "empty").mkdir()
        await type_text(pilot, str(tmp_path / "empty"))
        await pilot.press("enter")
        await scanned(pilot)
        await until(pilot, lambda: screen_of(pilot).state.ready, "a job without clips")
        assert offered() == {"wizard.read_again"}
        await pilot.press("ctrl+x")
        await at_clips_of(pilot, make_clips(tmp_path / "clips", 1))
        assert offered() == {"wizard.read_again", "wizard.fill_captions"}


async def test_a_broken_file_is_a_row_and_x_settles_it(tmp_path):
    folder = make_clips(tmp_path / "clips", 2)
    whole = (folder / "clip_00.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    async with wizard(tmp_path / "draft.json") as pilot:
        table = await at_clips(pilot, folder)
        assert table.row_count == 3 and table.current.name == "broken.mp4"
        assert "✗ 1 problem" in screen_text(pilot.app)
        await pilot.press("x")
        await until(pilot, lambda: "✗ 1 problem" not in screen_text(pilot.app), "no problem any more")
        assert screen_of(pilot).state.job().datasets[0].exclude == ["broken.mp4"]


async def test_enter_writes_a_caption_in_place(tmp_path):
    folder = make_clips(tmp_path / "clips", 2)
    async with wizard(tmp_path / "draft.json") as pilot:
        table = await at_clips(pilot, folder)
        await pilot.press("enter")
        dialog = await on_top(pilot, CaptionDialog)
        assert dialog.query_one(TextArea).text == "orbit 90 around the subject"
        dialog.query_one(TextArea).text = "two\n lines [of] café "
        await pilot.pause()
        assert "lines become one" in screen_text(pilot.app)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: not isinstance(pilot.app.screen, CaptionDialog), "the step")
        assert (folder / "clip_00.txt").read_text("utf-8") == "two lines [of] café\n"
        assert table.entries[0].clip.caption == "two lines [of] café"
        await until(pilot, lambda: not screen_of(pilot).looking, "the folder read again")
        assert table.entries[0].clip.caption == "two lines [of] café"
        await pilot.press("z")
        await until(pilot, lambda: "orbit 90 around the subject" in notified(pilot), "what it says again")
        assert (folder / "clip_00.txt").read_text() == "orbit 90 around the subject"
        assert table.entries[0].clip.caption == "orbit 90 around the subject"


async def test_a_new_caption_dialog_is_styled_once(tmp_path, monkeypatch):
    styled = []
    monkeypatch.setattr(CaptionDialog, "update_node_styles", lambda self, animate=True: styled.append(self))
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json", size=(100, 32)) as pilot:  # a lower one has a class of its own
        await at_clips(pilot, folder)
        await pilot.press("enter")
        await on_top(pilot, CaptionDialog)
        await until(pilot, lambda: isinstance(pilot.app.focused, TextArea), "the text")
        assert not styled, "all of it once more"


async def test_a_caption_that_is_not_utf8_is_shown_to_be_mended(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    (folder / "clip_00.txt").write_bytes("a café".encode("latin-1"))
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        await pilot.press("enter")
        dialog = await on_top(pilot, CaptionDialog)
        assert dialog.query_one(TextArea).text == "a café" and "not UTF-8" in screen_text(pilot.app)
        await pilot.click("#write")
        await until(pilot, lambda: not isinstance(pilot.app.screen, CaptionDialog), "the step")
        assert (folder / "clip_00.txt").read_bytes() == "a café\n".encode()
        assert "not UTF-8" not in screen_text(pilot.app)


async def test_what_cannot_be_written_is_said_and_what_was_typed_stays(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        await pilot.press("enter")
        dialog = await on_top(pilot, CaptionDialog)
        (folder / "clip_00.txt").unlink()
        (folder / "clip_00.txt").mkdir()  # root may write into any folder, but over none
        dialog.query_one(TextArea).text = "typed for long"
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert pilot.app.screen is dialog and "cannot be written" in screen_text(pilot.app)
        assert dialog.query_one(TextArea).text == "typed for long"
        dialog.query_one(TextArea).text = "x" * 10_001
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert "at most 10,000" in screen_text(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is not dialog, "the step")


async def test_trigger_is_added_to_all_that_lack_it_after_a_look(tmp_path, monkeypatch):
    folder = make_clips(tmp_path / "clips", 4)
    (folder / "clip_01.txt").write_text("[trigger] has it")
    (folder / "clip_02.txt").write_text("Frung has it")
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_captions(pilot, folder)
        await focus_field(pilot, "job.trigger")
        await type_text(pilot, "frung")
        screen_of(pilot).query_one(CaptionTable).focus()
        await pilot.press("t")
        dialog = await on_top(pilot, CaptionsDialog)
        text = screen_text(pilot.app)
        assert "clip_00.mp4: [trigger], orbit 90" in text and "clip_01" not in str(dialog.changes)
        assert "Write 2 captions" in text
        assert {p.name: p.read_bytes() for p in folder.glob("*.txt")} == before, "nothing is written before yes"
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(pilot.app.screen, CaptionsDialog), "the step")
        assert (folder / "clip_00.txt").read_text() == "[trigger], orbit 90 around the subject\n"
        await until(pilot, lambda: "2 captions written" in screen_text(pilot.app), "the notice, which covers some")
        pilot.app.clear_notifications()
        await until(pilot, lambda: "frung, orbit 90" in screen_text(pilot.app), "how it reads now")
        await pilot.press("z")
        await pilot.pause()
        assert {p.name: p.read_bytes() for p in folder.glob("*.txt")} == before
        monkeypatch.setattr(mending, "with_trigger", lambda *args: time.sleep(0.3) or with_trigger(*args))
        pilot.app.post_message(events.Key("t", "t"))  # an answer that was typed ahead waits for what it is to
        pilot.app.post_message(events.Key("enter", "\r"))
        await until(pilot, lambda: "[trigger]" in (folder / "clip_00.txt").read_text(), "what was typed ahead")


@pytest.mark.parametrize(("key", "maker"), [("i", "filled"), ("t", "with_trigger")])
async def test_what_is_planned_is_said_at_once_and_esc_ends_it(tmp_path, monkeypatch, key, maker):
    """Neither the question whether to leave, nor the captions once they are there."""
    go, begun, real = threading.Event(), threading.Event(), getattr(mending, maker)

    def held(*args: Any) -> list[CaptionChange]:
        begun.set()
        go.wait()
        return real(*args)

    monkeypatch.setattr(mending, maker, held)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_captions(pilot, make_clips(tmp_path / "clips", captions=key == "t"))
        screen = screen_of(pilot)
        try:
            await pilot.press(key)
            dialog = await on_top(pilot, CaptionsDialog)
            await until(pilot, begun.is_set, "the plan")
            assert "… looking at the captions · Esc stops" in screen_text(pilot.app)
            assert dialog.query_one("#write", Button).disabled
            await pilot.press("escape")
            await until(pilot, lambda: pilot.app.screen is screen, "its end")
        finally:
            go.set()
        await pilot.pause()
        assert pilot.app.screen is screen
        await pilot.press(key)
        dialog = await on_top(pilot, CaptionsDialog)
        await until(pilot, lambda: "Write 3 captions" in screen_text(pilot.app), "what would be written")
        assert dialog.focused is dialog.query_one("#template" if key == "i" else "#write")


async def test_that_nothing_is_to_be_written_is_said_in_the_dialog(tmp_path):
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_captions(pilot, make_clips(tmp_path / "clips", 2))
        await pilot.press("i")
        dialog = await on_top(pilot, CaptionsDialog)
        await until(pilot, lambda: "Every clip has a caption of its own." in screen_text(pilot.app), "that none")
        dialog.query_one(Input).value = ""
        await until(pilot, lambda: "Nothing would be written." in screen_text(pilot.app), "that no text is none")
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is not dialog, "the step")
        assert not pilot.app._notifications


async def test_empty_captions_are_filled_from_a_template(tmp_path):
    folder = make_clips(tmp_path / "clips", 2, captions=False)
    (folder / "clip_01.txt").write_text("its own")
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_captions(pilot, folder)
        await pilot.press("i")
        dialog = await on_top(pilot, CaptionsDialog)
        dialog.query_one(Input).value = "[trigger] shows {name}"
        await pilot.pause()
        await pilot.press("ctrl+s")
        await until(pilot, lambda: not isinstance(pilot.app.screen, CaptionsDialog), "the step")
        assert (folder / "clip_00.txt").read_text() == "[trigger] shows clip 00\n"
        assert (folder / "clip_01.txt").read_text() == "its own"
        await pilot.click("#take-back")
        await until(pilot, lambda: "clip_00.mp4 has none again" in notified(pilot), "what was taken back")
        assert not (folder / "clip_00.txt").exists()


async def test_many_captions_are_taken_back_with_a_count_and_esc_leaves_them_as_they_were_written(
    tmp_path, monkeypatch
):
    folder, go = make_clips(tmp_path / "clips", 3, captions=False), []
    monkeypatch.setattr(clip_dialogs, "SLICE", 0.0)

    def texts() -> list[str]:
        return [file.read_text() for file in sorted(folder.glob("*.txt"))]

    async with wizard(tmp_path / "draft.json", size=(40, 24)) as pilot:
        await at_captions(pilot, folder)
        screen, captions = screen_of(pilot), screen_of(pilot).state.captions
        await pilot.press("i")
        await on_top(pilot, CaptionsDialog)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: len(texts()) == 3 and pilot.app.screen is screen, "the captions")
        written, real = texts(), captions.taking_back

        def held() -> Any:
            with closing(real()) as steps:  # Python 3.12 would close it no earlier than this is forgotten
                first = next(steps)
                while not go:  # as of thousands
                    yield first
                return (yield from steps)

        monkeypatch.setattr(captions, "taking_back", held)
        screen.query_one(CaptionTable).focus()
        await pilot.press("z")
        await on_top(pilot, TakingBack)
        await until(pilot, lambda: "Taking back 1 of 3 captions" in screen_text(pilot.app), "the count")
        assert "Stop Esc" in screen_text(pilot.app) and len(texts()) == 2
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen and "Stopped" in notified(pilot), "its end")
        assert texts() == written and len(captions) == 1
        go.append(True)
        await pilot.press("z")
        await until(
            pilot, lambda: "3 captions, of clip_00.mp4 to clip_02.mp4" in notified(pilot), "what was taken back"
        )
        assert not texts() and not len(captions)


async def test_what_was_typed_last_is_written_though_it_is_still_being_planned(tmp_path, monkeypatch):
    """And all of it or nothing, where it is given up half way."""
    folder, real, go = make_clips(tmp_path / "clips", 2, captions=False), mending.filled, threading.Event()

    def slow(entries: Any, found: Any, panel: Any, template: str) -> Any:
        if "1" in template:
            go.wait()
        return real(entries, found, panel, template)

    monkeypatch.setattr(mending, "filled", slow)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_captions(pilot, folder)
        await pilot.press("i")
        dialog = await on_top(pilot, CaptionsDialog)
        real_write, steps = dialog.write_all, []

        def stopping(changes: Any) -> Any:
            with closing(real_write(changes)) as writing:
                for number in writing:
                    steps.append(number)
                    dialog.action_cancel()
                    yield number

        dialog.write_all = stopping
        await pilot.press("a")
        await until(pilot, lambda: dialog.changes and dialog.changes[0].after.endswith("a"), "the plan")
        monkeypatch.setattr(clip_dialogs, "SLICE", 0.0)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: not isinstance(pilot.app.screen, CaptionsDialog), "the step")
        assert steps == [1] and not list(folder.glob("*.txt")), "what was written is put back"
        assert not len(screen_of(pilot).state.captions)

        await pilot.press("i")
        dialog = await on_top(pilot, CaptionsDialog)
        try:
            await pilot.press("1", "exclamation_mark", "2", "ctrl+s")
            await pilot.pause()
            assert not list(folder.glob("*.txt")), "it waits for the plan"
        finally:
            go.set()
        await until(pilot, lambda: not isinstance(pilot.app.screen, CaptionsDialog), "the step")
        assert (folder / "clip_01.txt").read_text() == "1!2\n"


@pytest.mark.parametrize("size", [(80, 24), (60, 16)])
async def test_why_many_captions_are_not_written_is_in_view_with_the_buttons(size):
    changes = [CaptionChange(f"{n}.mp4", f"{n}.mp4", Path(f"{n}.txt"), "", f"orbit {n}") for n in range(50)]

    def write(_: Any) -> Any:
        yield 1
        raise UserError("the caption cannot be written", where="/read/only/12.txt", fix="Check who may write there")

    app = App[None]()
    async with app.run_test(size=size) as pilot:
        words = "These captions name neither the trigger word nor [trigger]. They would begin with it:"
        dialog = CaptionsDialog("Add the trigger word", words, plan=lambda _: changes, none="", write=write)
        await app.push_screen(dialog)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "Check who may write" in screen_text(app), "why not")
        assert "Write 50 captions" in screen_text(app) and not dialog.query_one("#write", Button).disabled


async def test_undo_of_a_clip_left_out_stays_where_one_is(tmp_path):
    """And what is recommended for the clips that train follows each time."""
    folder = make_clips(tmp_path / "clips", 5)
    for n, caption in enumerate(("orbit right", "orbit left", "orbit right", "orbit left")):
        (folder / f"clip_0{n}.txt").write_text(caption)
    (folder / "clip_04.txt").unlink()  # it would get what the others say most often
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        screen, state = screen_of(pilot), screen_of(pilot).state
        table, pane = screen.query_one(ClipTable), screen.pane

        async def follows(caption: str) -> None:
            def said() -> str:
                return state.recommended_job().datasets[0].default_caption

            await until(pilot, lambda: said() == caption and not state.is_behind, caption)

        await follows("orbit right")
        await pilot.press("down", "down", "x", "down")
        assert state.draft.values == {"datasets[0].exclude": ["clip_02.mp4"]}
        await follows("orbit left")
        await pilot.press("u")
        await until(pilot, lambda: not state.draft.values and not table.left_out, "the clip, back in")
        assert screen.pane is pane and pilot.app.focused is table and table.cursor_row == 3
        await follows("orbit right")
        await pilot.press("U")
        await until(pilot, lambda: table.left_out == {"clip_02.mp4"}, "out again")
        await follows("orbit left")
        assert table.cursor_row == 3


async def test_a_clip_left_out_in_the_captions_is_one_row_drawn_anew(tmp_path):
    folder = make_clips(tmp_path / "clips", 3)
    async with wizard(tmp_path / "draft.json") as pilot:
        table = await at_captions(pilot, folder)
        entries = table.entries
        await pilot.press("x")
        await until(pilot, lambda: "does not train" in screen_text(pilot.app), "the row")
        assert table.entries is entries, "a list of thousands is not made anew, nor all lines of the table"


async def test_what_was_to_come_after_a_frame_finds_the_step_gone(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        pane = screen_of(pilot).pane
        await screen_of(pilot).go_to("captions")
        pane._show_clip()


async def test_frames_that_train_stand_beside_the_table_on_wide_terminals(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json", size=(160, 48)) as pilot:
        await at_clips(pilot, folder)
        frames = screen_of(pilot).query_one(ClipFrames)
        await until(pilot, lambda: all(p.image is not None for p in frames.query(".picture")), "both frames")
        assert "96x96 -> 96x96: nothing is cut off" in screen_text(pilot.app)
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "nothing is cut off" in static(pilot, "#seen"), "the words alone")


async def test_esc_stops_a_look_and_l_takes_it_up_again(tmp_path, monkeypatch):
    folder = make_clips(tmp_path / "clips", 1)
    held = Look.at_all

    def slow(self: Look, items: Any, function: Any, *, threads: int) -> Any:
        while not go:
            self.raise_if_ended()
        return held(self, items, function, threads=threads)

    go: list[bool] = []
    monkeypatch.setattr(Look, "at_all", slow)
    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await type_text(pilot, str(folder))
        await pilot.press("enter")
        await until(pilot, lambda: "Esc stops" in screen_text(pilot.app), "the look")
        await until(pilot, lambda: "esc Stop looking" in screen_text(pilot.app), "its key in the footer")
        await pilot.press("escape")
        await until(pilot, lambda: "not read" in screen_text(pilot.app), "its end")
        assert screen_of(pilot).step == "clips" and not screen_of(pilot).looking
        go.append(True)
        await pilot.press("l")  # not into the field of the folder, where the keys were
        await scanned(pilot)
        await until(pilot, lambda: "1 clip" in screen_text(pilot.app), "the clip")


async def test_all_of_it_by_mouse(tmp_path):
    folder = make_clips(tmp_path / "clips", 3)
    async with wizard(tmp_path / "draft.json", size=(100, 30)) as pilot:
        table = await at_clips(pilot, folder)
        await pilot.click(ClipTable, offset=(5, 3))
        assert table.cursor_row == 2
        await pilot.click("#leave-out")
        await pilot.pause()
        assert screen_of(pilot).state.job().datasets[0].exclude == ["clip_02.mp4"]
        await until(
            pilot, lambda: str(screen_of(pilot).query_one("#leave-out", Button).label) == "Take in x", "the way back"
        )
        await pilot.click(ClipTable, offset=(5, 3))
        await on_top(pilot, CaptionDialog)


async def test_the_dialog_fits(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    async with wizard(tmp_path / "draft.json") as pilot:
        await at_clips(pilot, folder)
        for size in ((60, 15), (80, 24), (160, 48)):
            await pilot.resize_terminal(*size)
            screen_of(pilot).query_one(ClipTable).focus()
            await pilot.press("enter")
            dialog = await on_top(pilot, CaptionDialog)
            text = dialog.query_one(TextArea)
            text.scroll_visible(animate=False)
            await pilot.pause()
            assert text.region.height > 0 and dialog.region.contains_region(text.region), size
            await pilot.press("escape")
            await until(pilot, lambda dialog=dialog: pilot.app.screen is not dialog, "the step")


async def test_down_goes_from_the_folder_to_its_clips_and_the_help_quotes_the_trigger(tmp_path):
    folder = make_clips(tmp_path / "clips", 2)
    async with wizard(tmp_path / "draft.json") as pilot:
        await pilot.press("enter")
        await at_step(pilot, "clips")
        await type_text(pilot, str(folder))
        await pilot.press("enter")
        await scanned(pilot)
        await until(pilot, lambda: screen_of(pilot).pane.has_class("-clips"), "the table")
        await pilot.press("down")
        assert isinstance(pilot.app.focused, ClipTable)
        await pilot.press("ctrl+g")
        await at_step(pilot, "captions")
        screen_of(pilot).query_one(CaptionTable).focus()
        await pilot.press("question_mark")
        await until(pilot, lambda: "with [trigger]" in screen_text(pilot.app), "the help of t")


async def test_clips_that_are_held_out_are_marked(tmp_path):
    folder = make_clips(tmp_path / "clips", 1)
    for i in range(1, 4):  # of other content each: what is the same is held out together
        write_clip(folder / f"clip_0{i}.mp4", frames=48 + i, fps=16.0, width=96, height=96)
    async with wizard(tmp_path / "draft.json", size=(120, 30)) as pilot:
        table, state = await at_clips(pilot, folder), screen_of(pilot).state

        def marked() -> list[str]:
            return [str(table.cells(row)[1]) for row in range(table.row_count) if str(table.cells(row)[0]) == "○"]

        assert not marked()
        state.set_value("validation.fraction", 0.34)
        screen_of(pilot).show()
        await until(pilot, marked, "the mark")
        (name,) = marked()
        await until(pilot, lambda: f"○ {name}" in screen_text(pilot.app), "the line drawn")
        assert "held out" in screen_text(pilot.app) and ", 1 held out" in screen_text(pilot.app)
        table.move_cursor([entry.name for entry in table.entries].index(name))
        await until(pilot, lambda: "○ held out: it" in screen_text(pilot.app), "a word on the clip")
        await pilot.press("x")  # left out is more than held out, and then another one is
        await until(pilot, lambda: marked() and marked() != [name], "another clip")
        state.set_value("validation.fraction", 0.0)
        screen_of(pilot).show()
        await until(pilot, lambda: not marked() and "held out" not in screen_text(pilot.app), "no mark any more")
