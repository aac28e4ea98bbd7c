"""Pictures of the dashboard in the states of a run, of its panes, and of what opens over it."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from textual.pilot import Pilot
from textual.screen import Screen
from textual_image.widget import HalfcellImage

from daemon.settings import CostSettings
from daemon.wire.protocol import JobRecord
from daemon.wire.records import RunMachine
from presets.machine.gpu_health import GpuHealth
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.events import Event, EventKind, read_events
from presets.runs.run_view import RunView
from presets.runs.time_left import PlannedTime
from tests.helpers import recorded_run
from tests.helpers.interface import films
from tests.helpers.interface.films import filmed
from tests.helpers.interface.wizard_pilot import screen_text, until
from tests.wanlora_tui.screens.conftest import SIZES, Picture, Sizes, at_sizes
from wanlora_tui.feeds.run_feed import RecordedRun
from wanlora_tui.film.pane import FilmPane
from wanlora_tui.film.player import Player
from wanlora_tui.screens.change import ChangeScreen
from wanlora_tui.screens.checkpoints import CheckpointsScreen
from wanlora_tui.screens.compare import CompareScreen, PictureScreen
from wanlora_tui.screens.contact_sheet import ContactSheet
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.help import HelpScreen, of_screen
from wanlora_tui.screens.log import LogScreen
from wanlora_tui.screenshot import RecordedApp, record_of

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds
GIB = 2**30
CARD = GpuHealth(
    gpu="0", busy=97, memory_used=22 * GIB, memory_total=24 * GIB, temperature=71, power=431.0, power_limit=450.0,
    clock=2520, clock_most=2850, held_back=["power limit"],
)  # fmt: skip
MACHINE = RunMachine(gpus=[CARD], memory=61 * GIB, memory_total=128 * GIB, disk_free=212 * GIB, disk_used=10 * GIB)
FULL_DISK = "the disk is full: 1.2 GiB are needed, 0.3 GiB are free; trying again every 15 s"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded run, with flat posters: a gradient is a rectangle for every cell of a picture."""
    run = recorded_run.write(tmp_path_factory.mktemp("recorded"))
    for i, poster in enumerate(sorted(run.rglob("*.png"))):
        Image.new("RGB", (96, 64), ("#406080", "#806040")[i % 2]).save(poster)
    return run


def at_step(events: list[Event], step: int, kind: EventKind = "step") -> list[Event]:
    """As far as the first event of a kind at a step of the last attempt that comes there."""
    return events[: next(i for i, e in enumerate(events) if e.kind == kind and e.data["step"] == step) + 1]


def after(events: list[Event], kind: EventKind, **data: object) -> list[Event]:
    last = events[-1]
    return [*events, msgspec.structs.replace(last, seq=last.seq + 1, time=last.time + 1, kind=kind, data=data)]


def running(events: list[Event]) -> list[Event]:
    return at_step(events, 1350)


def sampling(events: list[Event]) -> list[Event]:
    events = after(at_step(events, 1200), "phase", name="sampling", done=1, total=2, text=recorded_run.PROMPTS[1])
    return events


def paused(events: list[Event]) -> list[Event]:
    return after(at_step(events, 800), "phase", name="paused", done=0, total=0, text=FULL_DISK)


def failed(events: list[Event]) -> list[Event]:
    cause, fix = "Out of GPU memory at step 431: 23.9 of 24.0 GiB were taken.", "Lower datasets[0].resolution."
    return after(at_step(events, 430), "failed", cause=cause, next=fix, traceback="")


def done(events: list[Event]) -> list[Event]:
    return events


STATES: dict[str, Callable[[list[Event]], list[Event]]] = {
    f.__name__: f for f in (running, sampling, paused, failed, done)
}


def app_over(folder: Path, noisy: Path, state: str = "running") -> RecordedApp:
    """The recorded run in a state, in a folder whose name is always the same."""
    run_dir = folder / "runs" / noisy.name
    shutil.copytree(noisy, run_dir)
    events = STATES[state]([event for event, _ in read_events(noisy / "events.jsonl")])
    record = msgspec.structs.replace(record_of(events, run_dir), planned=PlannedTime(1.9, disk=30 * GIB))
    if state in ("failed", "done"):
        record.finished_at = events[-1].time
    else:
        record.pid = 7
    run = RecordedRun(record, events)
    assert run.beat is not None
    run.beat = msgspec.structs.replace(run.beat, machine=MACHINE if record.pid else None)
    return RecordedApp(run, HalfcellImage, cost=CostSettings(rate=0.69))


def waiting_app() -> RecordedApp:
    record = JobRecord(
        id=3, name="neon_style_v2", job_path="/data/neon.toml", out="/data/runs", gpus=[0], state="queued", position=2,
        steps=1500, planned=PlannedTime(1.9),
    )  # fmt: skip
    run = RecordedRun(record, [])
    run.view, run.beat = RunView(name=record.name, steps=record.steps), None
    return RecordedApp(run, HalfcellImage)


def film_app(folder: Path) -> RecordedApp:
    """A run with previews of two prompts at three steps."""
    run_dir = folder / "runs" / "orbit_v1"
    tape = filmed(run_dir)
    run = RecordedRun(msgspec.structs.replace(record_of(tape.events, run_dir), pid=7), tape.events)
    return RecordedApp(run, HalfcellImage)


async def dashboard(pilot: Pilot[None]) -> DashboardScreen:
    await until(pilot, lambda: isinstance(pilot.app.screen, DashboardScreen), "the dashboard")
    await pilot.pause()
    shown = pilot.app.screen
    assert isinstance(shown, DashboardScreen)
    return shown


@pytest.mark.parametrize(("state", "sizes"), at_sizes(("queued",), whole=()))
async def test_waiting(state: str, sizes: Sizes, picture: Picture) -> None:
    async with waiting_app().run_test(size=SIZES[0]) as pilot:
        await dashboard(pilot)
        await picture(pilot, sizes)


@pytest.mark.parametrize(("state", "sizes"), at_sizes(STATES, whole=("running",), plain=("running",)))
async def test_run(state: str, sizes: Sizes, picture: Picture, folder: Path, noisy: Path) -> None:
    async with app_over(folder, noisy, state).run_test(size=SIZES[0]) as pilot:
        await dashboard(pilot)
        await picture(pilot, sizes)


# one pane is shown at a time at two sizes
@pytest.mark.parametrize(("pane", "sizes"), at_sizes(("preview", "log", "files"), whole=(), larger=SIZES[1:2]))
async def test_pane(pane: str, sizes: Sizes, picture: Picture, folder: Path, noisy: Path) -> None:
    async with app_over(folder, noisy, "done").run_test(size=SIZES[0]) as pilot:
        (await dashboard(pilot)).action_pane(pane)
        await picture(pilot, sizes)


@pytest.mark.parametrize(("drawn", "sizes"), at_sizes(("zoomed", "overlaid"), whole=("zoomed",)))
async def test_plot(drawn: str, sizes: Sizes, picture: Picture, folder: Path, noisy: Path) -> None:
    async with app_over(folder, noisy).run_test(size=SIZES[0]) as pilot:
        await dashboard(pilot)
        if drawn == "zoomed":
            await pilot.press("left", "left", "plus", "plus", "less_than_sign", *["left"] * 12, "g")
            await picture(pilot, sizes)
            return
        other = folder / "runs" / "orbit_v1"
        filmed(other, steps=(0,), until=900)
        await pilot.press("A")
        await until(pilot, lambda: "Or a run folder" in screen_text(pilot.app), "the question")
        await pilot.press(*"runs", "slash", *"orbit", "underscore", *"v1", "enter")
        await until(pilot, lambda: "orbit_v1" in screen_text(pilot.app), "the other run")
        await picture(pilot, sizes)


async def log(pilot: Pilot[None]) -> None:
    await pilot.press("L")
    await until(pilot, lambda: isinstance(pilot.app.screen, LogScreen), "the log")


async def searched(pilot: Pilot[None]) -> None:
    await log(pilot)
    await pilot.press("slash", *"asked", "enter")


async def trainers_output(pilot: Pilot[None]) -> None:
    place = Path("runs/noisy_v1/logs")
    place.mkdir(exist_ok=True)
    lines = (f"step {step}: loss {0.18 - step / 1e5:.4f}, 1.93 s" for step in range(1300, 1351))
    (place / "attempt_2.log").write_text("\n".join(["loading the text encoder", *lines, ""]))
    await log(pilot)
    await pilot.press("t")
    await until(pilot, lambda: "step 1350" in screen_text(pilot.app), "what the trainer has written")


async def change(pilot: Pilot[None]) -> None:
    now = {"training.lr": 1e-4, "training.steps": 2400, "save.every": 200, "save.keep": 4, "sample.every": 400}
    await pilot.app.push_screen(ChangeScreen("noisy_v1", now))
    await pilot.press(*"5e", "minus", "5", "down", *"ten")


async def checkpoints(pilot: Pilot[None]) -> None:
    found = [
        StoredCheckpoint(
            step=step,
            time=recorded_run.BEGAN + 2 * step,
            path=f"checkpoints/step_{step:09d}",
            size=460_000_000,
            losses={"high_noise": 0.1834 - step / 3e4, "low_noise": 0.0911},
            previews=[f"samples/step_{step:09d}/00.mp4"] if step % 400 == 0 else [],
        )
        for step in range(200, 2600, 200)
    ]
    await pilot.app.push_screen(CheckpointsScreen("noisy_v1", Path("/data/runs/noisy_v1"), found))


async def key_help(pilot: Pilot[None]) -> None:
    await pilot.app.push_screen(HelpScreen(of_screen("dashboard")))


Act = Callable[[Pilot[None]], Awaitable[None]]
OVER: dict[str, Act] = {
    "log": log,
    "log_searched": searched,
    "log_of_trainer": trainers_output,
    "change": change,
    "checkpoints": checkpoints,
    "help": key_help,
}


@pytest.mark.parametrize(("screen", "sizes"), at_sizes(OVER, whole=("log",), plain=("log",)))
async def test_over_it(screen: str, sizes: Sizes, picture: Picture, folder: Path, noisy: Path) -> None:
    async with app_over(folder, noisy).run_test(size=SIZES[0]) as pilot:
        await dashboard(pilot)
        await OVER[screen](pilot)
        await picture(pilot, sizes)


# the key that opens it, the screen, and whether its films play
FILMS: dict[str, tuple[str, type[Screen[Any]], bool]] = {
    "compare": ("c", CompareScreen, False),
    "sheet": ("t", ContactSheet, False),
    "picture": ("z", PictureScreen, False),
    "playing": ("", DashboardScreen, True),
    "compare_playing": ("c", CompareScreen, True),
}


def flat(prompt: int, step: int, frame: int, width: int = films.WIDTH, height: int = films.HEIGHT) -> np.ndarray:
    """A frame of one colour: of anything else no two decoders need make the same."""
    return np.full((height, width, 3), ((64, 96, 128), (128, 96, 64))[prompt], np.uint8)


@pytest.mark.parametrize(("screen", "sizes"), at_sizes(FILMS, whole=("compare",), plain=FILMS))
async def test_films(
    screen: str, sizes: Sizes, picture: Picture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, kind, plays = FILMS[screen]
    if plays:
        monkeypatch.setattr(films, "scene", flat)
        monkeypatch.setattr(Player.__init__, "__kwdefaults__", {"clock": lambda: 0.0})
    async with film_app(folder).run_test(size=SIZES[0]) as pilot:
        await dashboard(pilot)
        await pilot.press("p", *key)
        await until(pilot, lambda: isinstance(pilot.app.screen, kind), "the screen")
        if plays:
            await pilot.press("end")
            await until(pilot, lambda: " 12/12" in screen_text(pilot.app), "the film")
            await pilot.press("home", *["full_stop"] * 4, "space")
            await until(pilot, lambda: "► " in screen_text(pilot.app), "the film to play")
        await picture(pilot, sizes, ready=lambda: as_many_as_there_is_room_for(pilot.app.screen))


def as_many_as_there_is_room_for(screen: Screen[object]) -> bool:
    """Of the compared steps: how many there are follows from the size a moment after it."""
    panes = screen.query(FilmPane)
    return type(screen) is not CompareScreen or sum(p.display and p.size.width > 0 for p in panes) == screen._count
