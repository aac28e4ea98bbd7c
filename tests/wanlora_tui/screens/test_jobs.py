"""The jobs screen with a real daemon: what arranges the queue and the list, and how other jobs come into it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual import events
from textual._compositor import Compositor
from textual.widgets import Button, Input, Static

from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, Beat, JobRecord, RunBeat
from presets.runs.run_view import RunView, apply_event
from tests.helpers.interface.harness import own_daemon, write_job
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import patient, type_ahead, until
from tests.helpers.waiting import until_async
from tests.wanlora_tui.screens.test_dashboard import outside, settle, shown
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp
from tests.wanlora_tui.test_app import interface, says
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.screens.wizard import WizardScreen
from wanlora_tui.widgets.files_list import FilesList


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


async def test_a_queued_job_is_held_moved_and_removed(folder: Path, tmp_path: Path):
    async with Client(folder) as client, interface(folder) as (app, pilot):
        for name in ("first_v1", "a_v1", "b_v1", "c_v1"):
            await client.submit(write_job(tmp_path, name, steps=100_000, pace_ms=20))

        def listed(*names: str) -> Callable[[], bool]:
            def are() -> bool:
                rows = [line for line in shown(app.screen).splitlines() if "_v1 " in line and "… queued" in line]
                return [row.split()[0] for row in rows] == list(names)

            return are

        await until(pilot, listed("a_v1", "b_v1", "c_v1"), "the queue")
        await pilot.press("G", "K")  # the last job goes before the one above it
        await until(pilot, listed("a_v1", "c_v1", "b_v1"), "c before b")
        await pilot.press("J")
        await until(pilot, listed("a_v1", "b_v1", "c_v1"), "c after b")
        await pilot.press("H")
        await until(pilot, says(pilot, "‖ held", "On hold."), "c held")
        assert (await client.show("c_v1")).held
        await pilot.press("H")
        await until(pilot, listed("a_v1", "b_v1", "c_v1"), "c released")
        await pilot.press("X")
        await until(pilot, says(pilot, "Remove c_v1 from the list?"), "the question")
        await pilot.press("y")
        await until(pilot, says(pilot, "3 jobs, 1 running, 2 queued"), "the list without it")
        assert [r.name for r in await client.jobs()] == ["first_v1", "a_v1", "b_v1"]
        for name in ("a_v1", "b_v1", "first_v1"):
            await client.cancel(name)


async def ended(client: Client, name: str) -> None:
    async def is_over() -> bool:
        return (await client.show(name)).state in ENDED_STATES

    await until_async(is_over, f"the end of {name}")


async def test_the_list_is_sorted_filtered_and_tidied(folder: Path, tmp_path: Path):
    async with Client(folder) as client, interface(folder, (160, 48)) as (app, pilot):
        for name in ("b_v1", "broken_v1", "a_v10", "a_v9"):
            await client.submit(write_job(tmp_path, name, steps=5))
            await ended(client, name)

        def rows() -> list[str]:
            records = app._job_list.records
            return [records[job].name if job in records else "" for job in app.screen._rows.order]

        await until(pilot, lambda: rows() == ["a_v9", "a_v10", "broken_v1", "b_v1"], "newest first")
        await pilot.press("g", "j", "o", "o")
        await until(pilot, lambda: rows() == ["a_v9", "a_v10", "b_v1", "broken_v1"], "by name, numbers as numbers")
        assert app.screen._current().name == "a_v10" and says(pilot, "by name")()  # the cursor stays on its job
        await pilot.press("slash", *"fail", "enter")
        await until(pilot, says(pilot, "1 of 4 jobs"), "the filter")
        assert rows() == ["broken_v1"]
        await until(pilot, says(pilot, "out of memory", "Finished", "high noise"), "the run beside the list")
        assert not list(outside(app.screen))
        await pilot.press("escape")
        await until(pilot, lambda: len(rows()) == 4, "all jobs")
        await pilot.press("R")
        await until(pilot, says(pilot, "Rename broken_v1"), "the question")
        await pilot.press("ctrl+u", *"a b", "enter")
        await until(pilot, says(pilot, "✗"), "the refusal")
        await pilot.press("ctrl+u", *"mended", "enter")
        await until(pilot, lambda: "mended" in rows(), "the new name")
        await pilot.press("E")
        await until(pilot, says(pilot, "✓ done: 3 jobs", "✗ failed: 1 job", "Remove 3 jobs"), "what may go")
        await pilot.press("tab", "enter")
        await until(pilot, lambda: rows() == ["mended"], "the list without them")
        assert [r.name for r in await client.jobs()] == ["mended"]


async def test_the_job_whose_dashboard_was_left_is_under_the_cursor(folder: Path, tmp_path: Path):
    """Also the one that has just been submitted: what is pressed next is about it."""
    async with Client(folder) as client, interface(folder) as (app, pilot):
        for name in ("first_v1", "a_v1"):
            await client.submit(write_job(tmp_path, name, steps=100_000, pace_ms=20))
        await until(pilot, says(pilot, "2 jobs"), "the list")
        jobs = app.screen
        assert isinstance(jobs, JobsScreen)
        assert jobs._current() is not None and jobs._current().name == "first_v1"
        app.open_dashboard(await client.submit(write_job(tmp_path, "new_v1")))  # as the wizard does
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen), "its dashboard")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is jobs and "new_v1" in shown(jobs), "the list again")
        await until(pilot, lambda: jobs._current() is not None and jobs._current().name == "new_v1", "the new job")


async def test_a_copy_of_an_ended_job_opens_in_the_wizard_with_all_its_values(folder: Path, tmp_path: Path):
    async with Client(folder) as client, interface(folder, (100, 30)) as (app, pilot):
        file = write_job(tmp_path, steps=7)
        await client.submit(file)
        await ended(client, "orbit_v1")
        file.unlink()  # its run folder holds the job
        await until(pilot, says(pilot, "✓ done"), "the job")
        await pilot.press("D")
        await until(pilot, lambda: isinstance(app.screen, WizardScreen) and app.screen.step == "settings", "the wizard")
        await until(pilot, lambda: app.screen.state.ready, "what is recommended")
        state = app.screen.state
        assert (state.value("job.name"), state.value("training.steps")) == ("orbit_v2", 7)
        assert state.job_path() == tmp_path / "orbit_v2.toml"
        title = app.screen.query_one("#wizard-title", Static)
        await until(pilot, lambda: "a copy of orbit_v1 · step 4 of 6" in str(title.render()), "whose copy it is")
        help_text = app.screen.query_one("#help-text", Static)
        await until(pilot, lambda: "Every value is the copied job's" in str(help_text.render()), "what is so of a copy")
        await pilot.press("escape")
        await until(pilot, says(pilot, "Leave the wizard?"), "the question")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, JobsScreen), "the list")
        await pilot.press("n")
        await until(pilot, says(pilot, "Continue the half-filled job", "a copy of orbit_v1"), "the offer of its draft")


async def test_what_is_typed_behind_the_key_that_copies_a_job_is_for_the_wizard(folder: Path, tmp_path: Path):
    """The job is read first; keys would move in the list meanwhile, and open another job."""
    async with Client(folder) as client, interface(folder, (100, 30)) as (app, pilot):
        await client.submit(write_job(tmp_path, steps=7))
        await ended(client, "orbit_v1")
        await until(pilot, says(pilot, "✓ done"), "the job")
        with patient(app):
            type_ahead(app, "Dj")
            for name, character in (("enter", "\r"), ("ctrl+u", None)):
                app.post_message(events.Key(name, character))
            type_ahead(app, "typed_v1", "tab")
            await until(pilot, lambda: isinstance(app.screen, WizardScreen) and not app.is_taking, "the wizard")
        assert app.screen.state.draft.values["job.name"] == "typed_v1"


async def test_a_job_file_is_looked_over_and_then_opened_or_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_job(tmp_path)
    (tmp_path / "wrong.toml").write_text("[job]\nnaem = 'x'\n")
    monkeypatch.chdir(tmp_path)
    async with interface(folder, (80, 24)) as (app, pilot):
        await until(pilot, says(pilot, "No jobs yet"), "the screen")
        for name, words in (("wrong.toml", "naem"), ("orbit_v1.toml", "datasets[0]")):
            await pilot.press("S")
            await until(pilot, says(pilot, "Job file to submit"), "the picker")
            app.screen.query_one("#picker-path", Input).value = name
            app.screen.query_one("#picker-path", Input).focus()
            await pilot.press("enter")
            await until(pilot, says(pilot, words, "ERROR", "cannot be trained as it is"), "the findings")
            assert app.screen.query_one("#submit", Button).disabled and not list(outside(app.screen))
            if name == "wrong.toml":
                await pilot.press("escape")
                await until(pilot, lambda: isinstance(app.screen, JobsScreen), "the list")
        await pilot.click("#wizard")
        await until(pilot, lambda: isinstance(app.screen, WizardScreen) and app.screen.step == "settings", "the wizard")
        await until(pilot, lambda: app.screen.state.ready, "what is recommended")
        assert app.screen.state.value("training.steps") == 60


async def test_the_path_that_is_copied_is_that_of_the_file_under_the_cursor(folder: Path, tmp_path: Path):
    async with Client(folder) as client, interface(folder) as (app, pilot):
        record = await client.submit(write_job(tmp_path, steps=25))
        await ended(client, "orbit_v1")
        await until(pilot, says(pilot, "✓ done"), "the job")
        await pilot.press("y")
        assert app.clipboard == record.run_dir
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen) and app.screen.is_over, "the dashboard")
        await pilot.press("y")
        assert app.clipboard == record.run_dir
        await pilot.press("f")
        lines = app.screen.query_one(FilesList)
        await until(pilot, lambda: lines.has_focus and "LoRA" in lines.text, "the files")
        at = next(i for i, line in enumerate(lines.text.splitlines()) if "LoRA" in line)
        lines.highlighted = at
        await pilot.press("y")
        assert app.clipboard == f"{record.run_dir}/orbit_v1_high_noise.safetensors"
        await pilot.press("j", "j", "y")
        assert app.clipboard == f"{record.run_dir}/report.html"
        await pilot.press("j", "y")
        assert app.clipboard == f"{record.run_dir}/checkpoints/step_000000020"


@pytest.mark.parametrize("jobs", [3, 300])
async def test_a_beat_that_tells_nothing_new_draws_nothing(jobs: int, monkeypatch: pytest.MonkeyPatch):
    """What costs is laying out and drawing; the list of jobs is open all day."""
    now = time.time()
    records = [
        JobRecord(id=i, name=f"job_{i}", job_path="/j", out="/o", gpus=[0], state="queued", position=i, steps=9)
        for i in range(2, jobs + 1)
    ]
    running = msgspec.structs.replace(records[0], id=1, name="runs", state="running", pid=7, started_at=1.0, position=0)
    app = JobsApp([running, *records], {})
    view = RunView()
    for event in usual(until=60).events:
        apply_event(view, event)
    app.jobs.views[1] = view
    monkeypatch.setattr("time.time", lambda: now)
    drawn: list[int] = []
    async with app.run_test(size=(160, 48)) as pilot:
        await until(pilot, says(pilot, "► running", "job_2"), "the list")
        await settle(pilot)
        update = Compositor.render_update

        def counted(self: Compositor, *given: Any, **more: Any) -> Any:
            drawn.append(1)
            return update(self, *given, **more)

        monkeypatch.setattr(Compositor, "render_update", counted)
        beat = Beat("e", [RunBeat(1, "running", view.last_seq, trainer_alive=True, seconds_since_step=1.0)])
        for _ in range(5):
            app.jobs.apply(beat)
            app.screen._render_all()
            app.screen._tick()
            await settle(pilot)
        assert not drawn
        app.jobs.records[1] = msgspec.structs.replace(running, revision=1, step=8)
        view.step, view.last_seq = 61, view.last_seq + 1
        app.screen._render_all()
        await until(pilot, says(pilot, "61/9"), "the row that changed, on the screen")


async def test_a_title_that_has_no_room_says_that_it_is_cut():
    app = JobsApp([], {})
    async with app.run_test(size=(40, 10)) as pilot:
        await settle(pilot)
        assert shown(app.screen).splitlines()[0].rstrip().endswith("…")


async def test_the_title_names_the_machine_whose_jobs_it_counts():
    app = JobsApp([], {}, host="box")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert shown(app.screen).splitlines()[0].startswith(" wanlora on box  ")
