"""The dashboard and the list of jobs draw only what has changed: after whatever news, keys, themes and sizes, what has
been written to the terminal is what Textual makes of the screen when nothing that was drawn before is known."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.app import App
from textual.pilot import Pilot
from textual_image.widget import HalfcellImage

from daemon.wire.protocol import JobRecord, RunBeat
from daemon.wire.records import RunMachine
from presets.machine.gpu_health import GpuHealth
from presets.runs.events import read_events
from presets.runs.run_view import apply_event
from tests.helpers.interface.drawn import Drawn, settled, stale
from tests.helpers.interface.runs import usual
from tests.helpers.tiers import thorough
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, every_state
from wanlora_tui.screenshot import RecordedApp, load_run

pytestmark = pytest.mark.process  # takes seconds

GIB = 2**30
SIZES = ((160, 48), (80, 24), (100, 30), (60, 18), (161, 47))
THEMES = ("textual-light", "textual-dark", "nord")
ON_DASHBOARD = ("l", "p", "f", "up", "down", "left", "right", "m", "plus", "minus", "g", "2", "0", "i", "tab")
IN_LIST = ("up", "down", "home", "end", "o", "j", "k")


def machine(dice: random.Random, gpus: int) -> RunMachine:
    health = [
        GpuHealth(
            gpu=str(n), busy=dice.randint(0, 99), memory_used=20 * GIB, memory_total=24 * GIB, temperature=60 + n,
            power=300.0, power_limit=350.0, clock=1755, clock_most=1980, held_back=dice.choice([[], ["power limit"]]),
        )
        for n in range(gpus)
    ]  # fmt: skip
    return RunMachine(gpus=health, memory=dice.randint(1, 60) * GIB, memory_total=64 * GIB, disk_free=99 * GIB)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    found = Drawn()
    monkeypatch.setattr(App, "_display", lambda app, screen, update: app._batch_count or found.take(update))
    return found


async def all_is_as_it_should_be(
    pilot: Pilot[Any], terminal: Drawn, dice: random.Random, keys: tuple[str, ...], news: Callable[[], str]
) -> None:
    """Over forty turns, most of them news."""
    done: list[object] = []
    for turn in range(40):
        kind = dice.random()
        if turn and kind < 0.08:
            done.append(theme := dice.choice(THEMES))
            pilot.app.theme = theme
        elif turn and kind < 0.2:
            done.append(size := dice.choice(SIZES))
            await pilot.resize_terminal(*size)
        elif kind < 0.45:
            done.append(key := dice.choice(keys))
            await pilot.press(key)
        else:
            done.append(news())
        await settled(pilot)
        assert stale(terminal, pilot.app.screen) is None, done[-8:]


# where it begins: on the way it comes to all of SIZES
@pytest.mark.parametrize("size", [(160, 48), *thorough((80, 24))])
async def test_no_stale_line_stays_on_a_dashboard(size: tuple[int, int], terminal: Drawn, tmp_path: Path) -> None:
    file = usual(until=200).write(tmp_path / "orbit_v1")
    coming = [event for event, _ in read_events(file)]
    run = load_run(file, until_step=12)
    coming = [event for event in coming if event.seq > run.view.last_seq]
    run.record = msgspec.structs.replace(run.record, state="running", pid=7)
    dice = random.Random(3)

    def news() -> str:
        if dice.random() < 0.3:
            gpus = dice.choice([0, 1, 1, 3])
            run.beat = RunBeat(
                1, "running", 9, trainer_alive=True, seconds_since_step=dice.randint(0, 90), machine=machine(dice, gpus)
            )
            screen._render_lights()
            screen._render_numbers()
            return f"a beat with {gpus} GPUs"
        count = dice.choice([1, 1, 1, 7, 30])
        for event in coming[:count]:
            apply_event(run.view, event)
        del coming[:count]
        screen._draw_news()
        return f"{count} events"

    async with RecordedApp(run, HalfcellImage).run_test(size=size) as pilot:
        await settled(pilot)
        screen: Any = pilot.app.screen
        await all_is_as_it_should_be(pilot, terminal, dice, ON_DASHBOARD, news)


@pytest.mark.parametrize("size", [*thorough((160, 48)), (80, 24)])
async def test_no_stale_line_stays_in_the_list(size: tuple[int, int], terminal: Drawn) -> None:
    app: JobsApp = every_state()
    dice = random.Random(5)

    def news() -> str:
        known: JobRecord = dice.choice(list(app.jobs.records.values()))
        step = known.step + dice.randint(1, 2000)
        app.jobs.records[known.id] = msgspec.structs.replace(
            known, revision=known.revision + 1, step=step, held=dice.choice(["", "on hold"]), on_cpu=step % 2 == 0
        )
        if (view := app.jobs.views.get(known.id)) is not None:
            view.step, view.loss, view.last_seq = step, dice.random(), view.last_seq + 1
        screen._render_all()
        return f"{known.name} at step {step}"

    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        screen: Any = pilot.app.screen
        await all_is_as_it_should_be(pilot, terminal, dice, IN_LIST, news)
