"""Pictures of the main screens, at the smallest size that is supported and at a large one.

A change of a screen makes its picture differ; when that was wanted, `make snapshots` draws them anew, and the diff of
the SVG files shows what changed. All that a picture shows is fixed here: clock, folders, machine, runs.
"""

import fcntl
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from textual.pilot import Pilot
from textual.widgets import Input
from textual_image.widget import HalfcellImage

from daemon.wire.protocol import JobRecord
from presets.job.resume_check import check_resume
from presets.job.schema import DatasetPanel, Job, JobPanel, PromptPanel
from presets.job.toml_file import with_value
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.run_view import RunView, apply_event
from tests.helpers import ROOT
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import (
    WizardApp,
    at_step,
    make_base,
    make_clips,
    make_image,
    scanned,
    screen_of,
    until,
)
from wanlora_tui.draft.draft_store import Draft, DraftStore
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.compare import CompareScreen
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.help import HelpScreen
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.screens.resume import question_text
from wanlora_tui.screens.wizard import reading
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.screenshot import RecordedApp, load_run
from wanlora_tui.themes import ReadableThemes

pytestmark = pytest.mark.process  # takes seconds
SMALL, LARGE = (80, 24), (160, 48)
both_sizes = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "160x48"])
Size = tuple[int, int]
Compare = Callable[..., bool]
Act = Callable[[Pilot[None]], Awaitable[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One whose path is the same in every picture, so it is one test's at a time."""
    with Path("/tmp/wanlora-snapshots.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = Path("/tmp/wanlora-snapshots")
        shutil.rmtree(found, ignore_errors=True)
        found.mkdir()
        yield found
        shutil.rmtree(found)


@pytest.fixture(autouse=True)
def fixed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same home folder, time zone and colours everywhere."""
    for name in ("NO_COLOR", "TEXTUAL_THEME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def still(act: Act) -> Act:
    """What is done before the picture is taken, without a blinking cursor in it."""

    async def run(pilot: Pilot[None]) -> None:
        await act(pilot)
        for field in pilot.app.screen.query(Input):
            field.cursor_blink = False
        for _ in range(4):
            await pilot.pause()

    return run


async def nothing(pilot: Pilot[None]) -> None:
    """The screen as it opens."""


def recorded(folder: Path) -> RecordedApp:
    """The dashboard of a run at step 120 of 300, with a flat picture for each preview."""
    tape = usual()
    file = tape.write(folder / "runs" / tape.name)
    for event in tape.events:
        if event.kind == "sample":
            Image.new("RGB", (96, 64), "#406080").save(file.parent / event.data["poster"])
    for sheet in ("compare_00.png", *(f"step_{step:09d}/sheet.png" for step in (0, 50, 100))):
        Image.new("RGB", (96, 64), "#806040").save(file.parent / "samples" / sheet)
    return RecordedApp(load_run(file), HalfcellImage)


class JobsApp(ReadableThemes):
    """The list of jobs, over a daemon that has just been heard."""

    CSS_PATH = ROOT / "wanlora_tui" / "app.tcss"

    def __init__(self, records: list[JobRecord], views: dict[int, RunView]) -> None:
        super().__init__()
        self.jobs = JobList(clock=lambda: 0.0)
        self.jobs.load(records)
        self.jobs.views |= views

    def on_mount(self) -> None:
        self.push_screen(JobsScreen(None, self.jobs))  # type: ignore[arg-type]  # no command is sent


def jobs_app() -> JobsApp:
    """A job in every state."""
    running = RunView()
    for event in usual("orbit_v1").events:
        apply_event(running, event)
    paused = RunView()
    tape = usual("castle_dolly_in_with_a_long_name", steps=2000, until=1200)
    tape.phase("paused", text="the disk is full: 1.2 GiB are needed, 0.3 GiB are free; trying again every 15 s")
    for event in tape.events:
        apply_event(paused, event)
    about: list[tuple[str, str, int, int, str]] = [
        ("orbit_v1", "running", 120, 300, ""),
        ("castle_dolly_in_with_a_long_name", "running", 1200, 2000, ""),
        ("neon_style_v2", "queued", 0, 1500, ""),
        ("hero_v3", "starting", 0, 2500, ""),
        ("walk_v1", "stopping", 410, 1000, ""),
        ("rain_v1", "stopped", 250, 1000, "Asked to stop."),
        (
            "crane_v4",
            "failed",
            17,
            1000,
            "Out of GPU memory. Lower datasets[0].resolution, then: wanlora resume crane_v4",
        ),
        ("tilt_v1", "cancelled", 90, 1000, "Cancelled. Its checkpoints stay in the run folder."),
        ("pan_v1", "done", 1000, 1000, ""),
    ]
    records = [
        JobRecord(
            id=i,
            name=name,
            job_path=f"/data/{name}.toml",
            out="/data/runs",
            gpus=[i % 2],
            state=state,  # type: ignore[arg-type]
            position=1 if state == "queued" else 0,
            step=step,
            steps=steps,
            outcome=outcome,
        )
        for i, (name, state, step, steps, outcome) in enumerate(about, 1)
    ]
    return JobsApp(records, {1: running, 2: paused})


@both_sizes
def test_jobs(snap_compare: Compare, size: Size) -> None:
    async def act(pilot: Pilot[None]) -> None:
        await pilot.press("j")

    assert snap_compare(jobs_app(), terminal_size=size, run_before=still(act))


@both_sizes
def test_dashboard(snap_compare: Compare, size: Size, folder: Path) -> None:
    assert snap_compare(recorded(folder), terminal_size=size, run_before=still(nothing))


def test_findings_and_files(snap_compare: Compare, folder: Path) -> None:
    """In a large terminal they stand beside the plot."""

    async def act(pilot: Pilot[None]) -> None:
        await pilot.press("f")

    assert snap_compare(recorded(folder), terminal_size=SMALL, run_before=still(act))


@both_sizes
def test_compare(snap_compare: Compare, size: Size, folder: Path) -> None:
    async def act(pilot: Pilot[None]) -> None:
        shown = pilot.app.screen
        assert isinstance(shown, DashboardScreen)
        await pilot.app.push_screen(CompareScreen(shown.run, shown.run_dir, HalfcellImage))

    assert snap_compare(recorded(folder), terminal_size=size, run_before=still(act))


@both_sizes
def test_help(snap_compare: Compare, size: Size, folder: Path) -> None:
    async def act(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(HelpScreen("dashboard"))

    assert snap_compare(recorded(folder), terminal_size=size, run_before=still(act))


@both_sizes
def test_checkpoints(snap_compare: Compare, size: Size, folder: Path) -> None:
    found = [
        StoredCheckpoint(
            step=step,
            time=1.79e9 + 10 * step,
            path=f"checkpoints/step_{step:09d}",
            size=150_000_000,
            losses={"high_noise": 0.1834 - step / 1e4, "low_noise": 0.0911},
            previews=[f"samples/step_{step:09d}/00.mp4"] if step % 100 == 0 else [],
        )
        for step in range(50, 650, 50)
    ]

    async def act(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(CheckpointsScreen("orbit_v1", Path("/data/runs/orbit_v1"), found))

    assert snap_compare(recorded(folder), terminal_size=size, run_before=still(act))


@both_sizes
def test_change(snap_compare: Compare, size: Size, folder: Path) -> None:
    now = {"training.lr": 1e-4, "training.steps": 300, "save.every": 50, "save.keep": 4, "sample.every": 0}

    async def act(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(ChangeScreen("orbit_v1", now))
        await pilot.press(*"5e", "minus", "5", "down", *"ten")

    assert snap_compare(recorded(folder), terminal_size=size, run_before=still(act))


@both_sizes
def test_resume_question(snap_compare: Compare, size: Size) -> None:
    before = Job(job=JobPanel(name="rain_v1"), datasets=[DatasetPanel(path="clips")])
    now = before
    for field, value in {"training.lr": 5e-5, "target.rank": 32, "training.batch_size": 2}.items():
        now = with_value(now, field, value)
    question = question_text("rain_v1", check_resume(before, now, trained=True))

    async def act(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(Confirm(question, "Go on", "Leave it"))

    assert snap_compare(jobs_app(), terminal_size=size, run_before=still(act))


@pytest.fixture
def left_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WizardApp]:
    """A wizard whose draft was left at a step, over real clips, on a machine that is always the same."""
    make_clips(folder / "orbit")
    make_image(folder / "control" / "castle.png")
    make_base(folder / "base")
    here = machine(gpu(80))
    monkeypatch.setattr(reading, "read_machine", lambda folder: here)

    def app(step: str) -> WizardApp:
        draft = Draft(
            step=step,
            kind="motion",
            folders=["orbit"],
            values={"model.path": "base", "job.name": "orbit_v1"},
            prompts=[PromptPanel(prompt="orbit 360 around the castle", ctrl_img="control/castle.png")],
        )
        if step != "kind":
            DraftStore(folder / "draft.json").save(draft)
        return WizardApp(folder / "draft.json")

    return app


@both_sizes
@pytest.mark.parametrize("step", ["kind", "clips", "settings", "review"])
def test_wizard(snap_compare: Compare, size: Size, step: str, left_at: Callable[[str], WizardApp]) -> None:
    async def act(pilot: Pilot[None]) -> None:
        if step != "kind":
            await pilot.pause()
            await pilot.press("enter")  # continue the draft
        await at_step(pilot, step)
        if step == "kind":
            return
        await scanned(pilot)
        pane = screen_of(pilot).pane
        if isinstance(pane, ReviewPane):
            await until(pilot, lambda: not pane.checking and not pane.watching, "the findings")

    assert snap_compare(left_at(step), terminal_size=size, run_before=still(act))
