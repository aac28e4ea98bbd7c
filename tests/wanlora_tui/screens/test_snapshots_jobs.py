"""Pictures of the list of jobs in its states, with what opens over it."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from daemon.settings import CostSettings
from daemon.wire.protocol import JobRecord
from presets.facts import gather
from presets.job.resume_check import check_resume
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel
from presets.job.toml_file import save_job, with_value
from presets.runs.run_view import RunView, apply_event
from tests.helpers import ROOT
from tests.helpers.facts import gpu, machine
from tests.helpers.interface.runs import Tape, usual
from tests.helpers.interface.wizard_pilot import make_base, make_clips, screen_text, until
from tests.wanlora_tui.screens.conftest import NOW, SIZES, Picture, Sizes, at_sizes, still
from wanlora_tui.actions.own_actions import OwnActions
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.help import HelpScreen, of_screen
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.screens.jobs.job_file import JobFileScreen
from wanlora_tui.screens.resume import question_text
from wanlora_tui.themes import ReadableThemes

pytestmark = pytest.mark.process  # takes seconds
LONG = "castle_dolly_in_with_a_long_name"
FULL_DISK = "the disk is full: 1.2 GiB are needed, 0.3 GiB are free; trying again every 15 s"
NO_MEMORY = "Out of GPU memory. Lower datasets[0].resolution, then: wanlora resume crane_v4"


class JobsApp(OwnActions, ReadableThemes):
    """The list of jobs, over a daemon that has just been heard."""

    CSS_PATH = ROOT / "wanlora_tui" / "app.tcss"

    def __init__(
        self,
        records: list[JobRecord],
        views: dict[int, RunView] | None = None,
        client: Any = None,
        cost: CostSettings | None = None,
        host: str = "",
    ) -> None:
        super().__init__()
        self.client, self.cost, self.host = client, cost, host  # no client: no command is sent
        self.jobs = JobList(clock=lambda: 0.0)
        self.jobs.load(records)
        self.jobs.views |= views or {}

    def on_mount(self) -> None:
        self.push_screen(JobsScreen(self.client, self.jobs, cost=self.cost, host=self.host))


def view_of(tape: Tape) -> RunView:
    view = RunView()
    for event in tape.events:
        apply_event(view, event)
    return view


def record(number: int, name: str, state: str, step: int, steps: int, outcome: str = "", **more: object) -> JobRecord:
    at = NOW - 7200 + 60 * number
    times: dict[str, float] = {"submitted_at": at}
    if state != "queued":
        times["started_at"] = at + 5
    if state in ("stopped", "failed", "cancelled", "done"):
        times["finished_at"] = at + 1805
    return JobRecord(
        id=number, name=name, job_path=f"/data/{name}.toml", out="/data/runs", gpus=[number % 2], state=state,
        step=step, steps=steps, outcome=outcome, **times | more,  # type: ignore[arg-type]
    )  # fmt: skip


def every_state() -> JobsApp:
    """A job in every state, and what the list says of one beside its state."""
    running, paused = usual("orbit_v1"), usual(LONG, steps=2000, until=1200)
    paused.phase("paused", text=FULL_DISK)
    jobs = [
        record(1, "orbit_v1", "running", 120, 300, started_at=NOW - 7300, pid=7),
        record(2, LONG, "running", 1200, 2000, started_at=NOW - 7300, pid=8, doing="paused"),
        record(3, "neon_style_v2", "queued", 0, 1500, position=1, priority=2),
        record(4, "hero_v3", "starting", 0, 2500),
        record(5, "walk_v1", "stopping", 410, 1000),
        record(6, "rain_v1", "stopped", 250, 1000, "Asked to stop."),
        record(7, "crane_v4", "failed", 17, 1000, NO_MEMORY),
        record(8, "tilt_v1", "cancelled", 90, 1000, "Cancelled. Its checkpoints stay in the run folder."),
        record(9, "pan_v1", "done", 1000, 1000),
        record(10, "after_orbit", "queued", 0, 800, position=2, after=[1]),
        record(11, "night_v1", "queued", 0, 800, held="Held by its user: p lets it go."),
        record(12, "storm_v2", "stopped", 300, 800, "The machine was restarted.", interrupted=True),
    ]
    return JobsApp(jobs, {1: view_of(running), 2: view_of(paused)})


def five_hundred() -> JobsApp:
    states = ("done", "done", "failed", "stopped", "queued")
    return JobsApp([record(n, f"clip_{n:03d}_v{n % 7}", states[n % 5], n, 1000) for n in range(1, 501)])


async def on_detail(pilot: Pilot[None]) -> None:
    """The one that failed."""
    await pilot.press("slash", *"crane", "enter")
    await until(pilot, lambda: "1 of 12 jobs" in screen_text(pilot.app), "the filtered list")
    await pilot.press("escape")


async def filtered(pilot: Pilot[None]) -> None:
    await pilot.press("slash", *"v1 stop")


async def ask_to_resume(pilot: Pilot[None]) -> None:
    before = Job(job=JobPanel(name="rain_v1"), datasets=[DatasetPanel(path="clips")])
    now = before
    for field, value in {"training.lr": 5e-5, "training.batch_size": 2}.items():
        now = with_value(now, field, value)
    question = question_text("rain_v1", check_resume(before, now, trained=True))
    await pilot.app.push_screen(Confirm(question, "Go on", "Leave it"))


async def ask_for_help(pilot: Pilot[None]) -> None:
    await pilot.app.push_screen(HelpScreen(of_screen("jobs")))


async def at_the_end(pilot: Pilot[None]) -> None:
    await pilot.press("G")


async def to_paused(pilot: Pilot[None]) -> None:
    await pilot.press("j")


async def nothing(pilot: Pilot[None]) -> None:
    """As it opens."""


Act = Callable[[Pilot[None]], Awaitable[None]]
STATES: dict[str, tuple[Callable[[], JobsApp], Act]] = {
    "empty": (lambda: JobsApp([]), nothing),
    "every_state": (every_state, nothing),
    "paused": (every_state, to_paused),
    "filtered": (every_state, filtered),
    "detail": (every_state, on_detail),
    "500": (five_hundred, at_the_end),
    "resume": (every_state, ask_to_resume),
    "help": (every_state, ask_for_help),
}
DIALOGS = ("resume", "help")  # opened at each size: what lies below is not laid out anew while they are there


@pytest.mark.parametrize(("state", "sizes"), at_sizes(STATES, whole=("every_state",), plain=("every_state",)))
async def test_jobs(state: str, sizes: Sizes, picture: Picture) -> None:
    make, act = STATES[state]
    async with make().run_test(size=SIZES[0]) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, JobsScreen), "the list")
        if state not in DIALOGS:
            await act(pilot)
        for size in sizes:
            await pilot.resize_terminal(*size)
            if state in DIALOGS:
                await still(pilot)
                await act(pilot)
            await picture(pilot, (size,))
            if state in DIALOGS:
                await pilot.app.pop_screen()


@pytest.mark.parametrize(("screen", "sizes"), at_sizes(("files",), whole=()))
async def test_choice(screen: str, sizes: Sizes, picture: Picture, folder: Path) -> None:
    for name in ("orbit_v1.toml", "castle.toml", "more/neon.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    async with every_state().run_test(size=SIZES[0]) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, JobsScreen), "the list")
        await pilot.press("S")
        await picture(pilot, sizes)


@pytest.mark.parametrize(("state", "sizes"), at_sizes(("checked", "broken"), whole=("checked",)))
async def test_job_file(
    state: str, sizes: Sizes, picture: Picture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clips(folder / "orbit")
    for copy in ("clip_01.mp4", "clip_02.mp4"):  # two encodings may be the same bytes or not
        shutil.copy(clips / "clip_00.mp4", clips / copy)
    make_base(folder / "base")
    here = machine(gpu(80))
    monkeypatch.setattr(gather, "read_machine", lambda out: here)
    job = Job(job=JobPanel(name="orbit_v1"), model=ModelPanel(path="base"), datasets=[DatasetPanel(path="orbit")])
    file = folder / "orbit_v1.toml"
    save_job(job, file)
    if state == "broken":
        file.write_text(file.read_text() + "\n[training]\nlearning = 1e-4\n")
    async with every_state().run_test(size=SIZES[0]) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, JobsScreen), "the list")
        for size in sizes:
            await pilot.resize_terminal(*size)
            await still(pilot)
            await pilot.app.push_screen(JobFileScreen(file, daemon_answers=True))
            await picture(pilot, (size,), ready=lambda: "… looking at" not in screen_text(pilot.app))
            await pilot.app.pop_screen()
