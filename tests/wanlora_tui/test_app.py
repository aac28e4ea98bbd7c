"""The whole interface against a real daemon with a real (small) trainer process."""

import gc
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.command import CommandList, CommandPalette
from textual.pilot import Pilot
from textual.widgets import Input, TextArea
from textual_image.widget import HalfcellImage

from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from daemon.wire.stop import stop_daemon
from tests.helpers.interface.dialogs import one_of_each
from tests.helpers.interface.harness import answers, own_daemon, short_dir, write_job
from tests.helpers.interface.wizard_pilot import patient, type_ahead, until
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE, until_async
from tests.wanlora_tui.screens.test_dashboard import outside, shown
from wanlora_tui.actions import all_actions
from wanlora_tui.app import WanloraApp
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.help import HelpScreen
from wanlora_tui.screens.jobs import JobsScreen, JobTable
from wanlora_tui.screens.wizard import WizardScreen
from wanlora_tui.screens.wizard.clip_dialogs import CaptionDialog
from wanlora_tui.widgets.folder_picker import PathInput

pytestmark = pytest.mark.usefixtures("drawn_when_looked_at")


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def says(pilot: Pilot[None], *words: str) -> Callable[[], bool]:
    return lambda: all(word in shown(pilot.app.screen) for word in words)


@asynccontextmanager
async def interface(
    folder: Path, size: tuple[int, int] = (80, 24), **options: Any
) -> AsyncIterator[tuple[WanloraApp, Pilot[None]]]:
    app = WanloraApp(folder, folder / "seen", image=HalfcellImage, **options)
    async with app.run_test(size=size, notifications=True) as pilot:
        yield app, pilot


async def submit(folder: Path, tmp_path: Path, name: str = "orbit_v1", **options: int) -> JobRecord:
    async with Client(folder) as client:
        return await client.submit(write_job(tmp_path, name, **options))


@pytest.mark.parametrize("size", [(80, 24), *thorough((100, 30), (160, 48))])
async def test_the_empty_screen_says_what_to_do(folder: Path, size: tuple[int, int]):
    async with interface(folder, size) as (app, pilot):
        await until(
            pilot,
            says(
                pilot, "No jobs yet", "Press n for the wizard", "wanlora demo", "● daemon alive", "New", "Quit", "Help"
            ),
            "the empty screen",
        )
        assert not list(outside(app.screen))


async def test_it_starts_the_daemon_and_says_so():
    folder = short_dir()
    try:
        async with interface(folder) as (_, pilot):
            await until(pilot, says(pilot, "Started the daemon"), "the word of it, which goes after a few seconds")
            await until(pilot, says(pilot, "● daemon alive"), "the daemon")
        assert answers(folder)  # and it goes on
    finally:
        stop_daemon(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("size", [(80, 24), *thorough((160, 48))])
async def test_jobs_are_listed_with_their_pace_and_their_place(folder: Path, tmp_path: Path, size: tuple[int, int]):
    await submit(folder, tmp_path, "orbit_v1", steps=5000, pace_ms=500)
    await submit(folder, tmp_path, "style_v1")
    async with interface(folder, size) as (app, pilot):
        await until(
            pilot,
            says(
                pilot,
                "orbit_v1",
                "► running",
                "/5000",
                "high",
                "0.31",
                "style_v1",
                "… queued (1)",
                "2 jobs, 1 running, 1 queued",
            ),
            "the table",
        )
        assert not list(outside(app.screen))


async def test_the_table_of_a_long_run_is_whole_in_80_columns(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, "wan_i2v_motion_orbit_around", steps=5000, pace_ms=500)
    await submit(folder, tmp_path, "style_v1")
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "► running", "/5000", "0.31", "… queued (1)"), "the table")
        job_list = app._job_list
        job_list.records[record.id] = msgspec.structs.replace(job_list.records[record.id], revision=10**6)
        job_list.views[record.id].step, job_list.views[record.id].seconds_per_step = 4000, 12.5
        app.screen._render_all()
        await pilot.pause()
        assert app.screen.query_one(JobTable).virtual_size.width <= 80 and " GPU" in shown(app.screen)


async def test_open_watch_and_leave_stops_nothing(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, steps=5000, pace_ms=500)
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "orbit_v1", "► running"), "the job")
        await pilot.press("enter")
        await until(pilot, says(pilot, "● high noise", "trainer progressing", "/5000"), "the dashboard")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen), "the jobs screen")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await pilot.press("q")
    assert app.farewell == ["orbit_v1 keeps training. Come back with: wanlora attach orbit_v1"]
    async with Client(folder) as client:
        assert (await client.show(record.id)).state == "running"


async def test_coming_back_says_what_happened_meanwhile(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, steps=100_000, pace_ms=20)
    async with interface(folder, job=record) as (_, pilot):
        await until(pilot, says(pilot, "trainer progressing"), "the dashboard")
        assert "Since you left" not in shown(pilot.app.screen)
        await pilot.press("q")
    async with Client(folder) as client:
        left_at = (await client.show(record.id)).step

        async def went_on() -> bool:
            return (await client.show(record.id)).step >= left_at + 50

        await until_async(went_on, "50 more steps")
    async with interface(folder, job=record) as (_, pilot):
        await until(pilot, says(pilot, "Since you left:", "steps", "preview"), "the summary")


async def test_stop_asks_first_then_the_job_can_be_resumed(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, steps=100_000, pace_ms=200)
    async with interface(folder, job=record) as (app, pilot):
        await until(pilot, says(pilot, "trainer progressing"), "the dashboard")
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        async with Client(folder) as client:
            assert (await client.show(record.id)).state == "running"
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")
        await pilot.press("y")
        await until(pilot, says(pilot, "■ stopped", "trainer stopped"), "the stop")
        await pilot.press("r")
        await until(pilot, says(pilot, "attempt 2", "► running", "trainer progressing"), "the second attempt")


async def test_cancel_from_the_jobs_screen(folder: Path, tmp_path: Path):
    await submit(folder, tmp_path, "orbit_v1", steps=100_000, pace_ms=1000)
    await submit(folder, tmp_path, "style_v1")
    async with interface(folder) as (_, pilot):
        await until(pilot, says(pilot, "… queued (1)"), "the queue")
        await pilot.press("j", "C")
        await until(pilot, says(pilot, "Cancel style_v1?"), "the question")
        await pilot.press("y")
        await until(pilot, says(pilot, "⊘ cancelled"), "the end of the queued job")
        assert says(pilot, "► running")()


async def test_a_failed_job_says_why(folder: Path, tmp_path: Path):
    await submit(folder, tmp_path, "broken_v1")
    async with interface(folder) as (_, pilot):
        await until(pilot, says(pilot, "✗ failed", "out of memory. Lower datasets.resolutions."), "the cause")


async def test_the_daemon_dies_and_comes_back_while_we_watch(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, steps=100_000, pace_ms=50)
    async with interface(folder, job=record) as (app, pilot):
        await until(pilot, says(pilot, "trainer progressing"), "the dashboard")
        async with Client(folder) as client:
            await client.shutdown()
        await until(
            pilot, says(pilot, "✗ daemon not answering, training continues", "trainer not seen"), "the dead light"
        )
        before = app.screen.run.view.step
        await pilot.press("d")
        await until(pilot, says(pilot, "● daemon alive", "● trainer progressing"), "the light")
        await until(pilot, lambda: app.screen.run.view.step > before + 10, "the steps taken meanwhile")
        points = [p.step for line in app.screen.run.view.losses.values() for p in line]
        assert sorted(points) == list(range(1, len(points) + 1))  # none lost, none twice


async def test_it_closes_by_itself_after_the_end_unless_a_key_is_pressed(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, steps=20)
    async with interface(folder, job=record, close_when_done=0.5) as (app, pilot):
        await until(pilot, lambda: not app.is_running or app.farewell, "the end")
    assert app.farewell == ["orbit_v1: done."]
    async with interface(folder, job=record, close_when_done=600.0) as (app, pilot):
        await until(pilot, lambda: app._close_at is not None, "the count")
        await pilot.press("p")
        assert app._close_at is None and not app._close_when_done


async def test_help_lists_every_key_of_the_screen_and_the_palette_runs_them(folder: Path, tmp_path: Path):
    record = await submit(folder, tmp_path, steps=100_000, pace_ms=1000)
    async with interface(folder, (160, 120), job=record) as (app, pilot):
        await until(pilot, says(pilot, "trainer progressing"), "the dashboard")
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "the help")
        inside = [max(line.split("│"), key=len) for line in shown(app.screen).splitlines()]
        text = " ".join(" ".join(inside).split())
        known = [a for a in all_actions() if a.id.startswith(("dashboard.", "app."))]
        # a list of keys that is broken goes on between the lines of what they do
        words = {a.id: r" (?:\S{1,12} ){0,2}".join(map(re.escape, a.help.split())) for a in known}
        assert not [name for name, found in words.items() if not re.search(found, text)]
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "the dashboard")
        await pilot.press("colon")
        await until(pilot, lambda: isinstance(app.focused, Input), "the palette")
        await pilot.press(*"preview")
        found = app.screen.query_one(CommandList)
        await until(
            pilot,
            lambda: (
                found.option_count
                and str(found.get_option_at_index(0).hit.text) == "Preview"
                and not app.screen._show_busy
            ),
            "the action, before all others",
        )
        found.highlighted = 0
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.has_class("-pane-preview"), "the preview")


async def test_keys_typed_ahead_are_taken_in_order_and_the_palette_has_no_key_of_a_widget(folder: Path, tmp_path: Path):
    await submit(folder, tmp_path)
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "orbit_v1"), "the job")
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.focused, Input), "the palette")
        with patient(app):
            type_ahead(app, "abc", "backspace", "d")
            await until(pilot, lambda: app.focused.value == "abd", "the letters, and what was taken back")
        await pilot.press("escape")
        await app.push_screen(WizardScreen(folder / "draft.json"))
        await until(pilot, lambda: app.screen.pane is not None, "the wizard")
        await pilot.press("enter")
        await until(
            pilot, lambda: app.screen.step == "clips" and isinstance(app.focused, PathInput), "the folder's input"
        )
        offered = {b.binding.id for b in app.screen.active_bindings.values()}
        told = {c.help for c in app.get_system_commands(app.screen)}
        assert {
            "form.next",
            "form.complete",
            "wizard.browse",
        } <= offered and "Pick a folder or a file from a tree." in told
        widgets_own = {
            a.help
            for a in all_actions()
            if a.id.startswith(("form.", "list.", "table.", "text.", "picker.", "dialog."))
        }
        assert not widgets_own & told


async def test_n_opens_the_wizard_and_escape_comes_back(folder: Path):
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "No jobs yet"), "the empty screen")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, WizardScreen), "the wizard")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen), "the jobs screen")


async def test_ctrl_c_asks_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wanlora_tui.app.TWICE_SECONDS", PATIENCE)
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "● daemon alive"), "the screen")
        await pilot.press("ctrl+c")
        await until(pilot, says(pilot, "Press Ctrl+C again to leave"), "the warning")
        assert app.return_code is None
        await pilot.press("ctrl+c")
        assert app.return_code == 0


async def test_ctrl_c_copies_what_is_selected_and_is_heard_over_dialogs_and_in_text_fields(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wanlora_tui.app.TWICE_SECONDS", 600.0)
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "● daemon alive"), "the screen")
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, WizardScreen) and app.screen.pane is not None, "the wizard")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.focused, PathInput), "the folder's input")
        await pilot.press(*"abc", "shift+home", "ctrl+c")
        await until(pilot, lambda: app.clipboard == "abc", "the copy")
        assert app.return_code is None and not says(pilot, "Press Ctrl+C again")()
        await pilot.press("shift+tab", "tab")  # the focus alone has selected it
        await until(
            pilot, lambda: app.focused is not None and getattr(app.focused, "selected_text", "") == "abc", "abc"
        )
        app.copy_to_clipboard("before")
        await pilot.press("ctrl+c")
        await until(pilot, says(pilot, "Press Ctrl+C again to leave"), "the warning")
        assert app.clipboard == "before"
        app.clear_notifications()
        app._interrupted_at = float("-inf")
        await pilot.press("end", "ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette), "the palette")
        await pilot.press("ctrl+c")
        await until(pilot, says(pilot, "Press Ctrl+C again to leave"), "the warning, that no palette covers")
        app.clear_notifications()
        app._interrupted_at = float("-inf")
        await pilot.press("escape")
        await until(pilot, says(pilot, "Leave the wizard?"), "the question")
        await pilot.press("ctrl+c")
        await until(pilot, says(pilot, "Press Ctrl+C again to leave"), "the warning")
        await pilot.press("escape", "ctrl+c")  # with the cursor in the text field again
        assert app.return_code == 0


async def test_in_a_caption_ctrl_c_and_ctrl_x_take_what_is_selected_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("wanlora_tui.app.TWICE_SECONDS", 600.0)
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "● daemon alive"), "the screen")
        await app.push_screen(one_of_each(tmp_path)[CaptionDialog]())
        await until(pilot, lambda: isinstance(app.focused, TextArea), "the caption")
        text = app.focused
        assert isinstance(text, TextArea)
        app.copy_to_clipboard("before")
        whole = text.text
        await pilot.press("ctrl+x", "ctrl+c")
        await until(pilot, says(pilot, "Press Ctrl+C again to leave"), "the warning")
        assert (app.clipboard, text.text) == ("before", whole)
        await pilot.press("shift+home", "ctrl+c")
        await until(pilot, lambda: app.clipboard == whole, "the copy")
        assert app.return_code is None
        await pilot.press("ctrl+x")
        await until(pilot, lambda: not text.text, "the cut")


async def test_the_theme_is_remembered(folder: Path):
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "● daemon alive"), "the screen")
        app.theme = "textual-light"
        await pilot.press("q")
    async with interface(folder) as (app, _):
        assert app.theme == "textual-light"


async def test_a_remembered_theme_that_is_no_more_gives_way(folder: Path):
    (folder / "seen").mkdir()
    (folder / "seen/tui.json").write_bytes(msgspec.json.encode({"theme": "ansi-light"}))
    async with interface(folder) as (app, pilot):
        await until(pilot, says(pilot, "No jobs yet"), "the empty screen")
        assert app.theme == "textual-light"


def test_every_binding_has_an_id_and_keys_that_survive_tmux():
    for action in all_actions():
        assert action.id and action.help.endswith("."), action
        assert not {"ctrl+enter", "ctrl+a", "ctrl+b"} & set(action.keys.split(",")), action
        assert "ctrl+shift" not in action.keys, action


async def test_once_it_has_started_garbage_is_collected_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gc, "freeze", lambda: None)  # other tests go on in this process
    gc.disable()  # as the command does
    try:
        async with interface(folder) as (_, pilot):
            await until(pilot, gc.isenabled, "the end of the start")
    finally:
        gc.enable()
