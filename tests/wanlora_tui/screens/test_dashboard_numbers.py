"""The numbers of the dashboard at three sizes: time, money, machine and disk; toasts beside them; the header after the
run's last word."""

import re
from pathlib import Path

import msgspec
import pytest
from textual.pilot import Pilot
from textual_image.widget import HalfcellImage

from daemon.settings import CostSettings
from daemon.wire.records import RunMachine
from presets.machine.gpu_health import GpuHealth
from presets.runs.run_view import RunView
from presets.runs.time_left import PlannedTime
from tests.helpers.interface.runs import Tape, usual
from tests.wanlora_tui.screens.test_dashboard import SIZES, outside, settle, shown
from wanlora_tui.feeds.run_feed import RecordedRun
from wanlora_tui.screenshot import RecordedApp, load_run
from wanlora_tui.widgets.meters import Numbers

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds

GIB = 2**30
CARD = GpuHealth(
    gpu="0", busy=97, memory_used=20 * GIB, memory_total=140 * GIB, temperature=71, power=690.0, power_limit=700.0,
    clock=1755, clock_most=1980, held_back=["power limit"],
)  # fmt: skip


def app(run: RecordedRun) -> RecordedApp:
    return RecordedApp(run, HalfcellImage, cost=CostSettings(rate=360.0))


def recorded(tape: Tape, folder: Path, *, free: int = 50) -> RecordedRun:
    """While the daemon still has it as running."""
    run = load_run(tape.write(folder / tape.name))
    planned = PlannedTime(0.31, disk=30 * GIB)
    run.record = msgspec.structs.replace(run.record, state="running", planned=planned, pid=7)
    assert run.beat is not None
    machine = RunMachine(gpus=[CARD], memory=61 * GIB, memory_total=512 * GIB, disk_free=free * GIB, disk_used=10 * GIB)
    run.beat = msgspec.structs.replace(run.beat, state="running", trainer_alive=True, machine=machine)
    return run


async def over(pilot: Pilot[None]) -> str:
    await settle(pilot)
    return shown(pilot.app.screen)


async def test_figures_of_a_step_are_not_made_up_before_its_events_have_come(tmp_path: Path):
    run = recorded(usual(), tmp_path)
    run.view = RunView(name=run.view.name, steps=300, step=120)  # what the daemon's record alone knows
    async with app(run).run_test(size=SIZES[0]) as pilot:
        text = await over(pilot)
        assert "step 120/300" in text
        assert re.search(r"lr -  ", text) and re.search(r"grad norm -  ", text), text


@pytest.mark.parametrize("size", SIZES)
async def test_time_money_machine_and_disk(size: tuple[int, int], tmp_path: Path):
    async with app(recorded(usual(), tmp_path)).run_test(size=size) as pilot:
        text = await over(pilot)
        numbers = ("step 120/300", "ETA 56s", "ends ", "worked 40s", "s/step 0.31 ▁▁▁", "cost $3.97/$9.55")
        for words in (*numbers, "RAM of the run", "61.0/512 GiB", "97%", "71°C", "690/700 W", "power limit"):
            assert words in text, (words, text)
        assert ("disk 50.0 GiB free" in text) and not list(outside(pilot.app.screen))
        if size[0] == 160:
            assert "held back by power limit" in text and "1755/1980 MHz" in text and ", 20.0 GiB to come" in text


@pytest.mark.parametrize("size", SIZES)
async def test_the_figures_of_a_long_and_costly_run_are_not_cut(size: tuple[int, int], tmp_path: Path):
    run = recorded(usual(steps=6_500_000), tmp_path)
    costly = RecordedApp(run, HalfcellImage, cost=CostSettings(rate=17.99, currency="EUR"))
    async with costly.run_test(size=size) as pilot:
        text = await over(pilot)
        rows = [row.plain for row in pilot.app.screen.query_one(Numbers).rows]
        assert "120/6500000" in text and "ETA 23d" in text and not [row for row in rows if "…" in row], rows
        assert re.search(r"cost EUR \d\.\d\d/EUR \d{5}\.\d\d\b", "\n".join(rows)), rows


@pytest.mark.parametrize("size", SIZES)
async def test_a_disk_that_does_not_suffice_is_said_first(size: tuple[int, int], tmp_path: Path):
    async with app(recorded(usual(), tmp_path, free=2)).run_test(size=size) as pilot:
        assert "! disk 2.0 GiB free, 20.0 GiB to come" in await over(pilot)


async def test_the_header_follows_the_last_word(tmp_path: Path):
    tape = usual(until=120)
    tape.add("stopped", step=120, path="", why="asked to stop")
    run = recorded(tape, tmp_path)
    async with app(run).run_test(size=(80, 24)) as pilot:
        text = await over(pilot)
        head = text.splitlines()[:3]
        assert "■ stopped" in head[0] and "trainer stopped" in head[1] and "asked to stop" in head[2]
        assert "running" not in text and "Stop" not in text.splitlines()[-1] and "Save" not in text.splitlines()[-1]
        assert "ETA" not in text and "took 4" in text and "cost $4.0" in text and "/$" not in text


async def test_what_the_machine_does_fits_a_terminal_that_has_another_size(tmp_path: Path):
    """Between two beats, too: a line in a narrow one, rows of their own in a wide one."""
    async with app(recorded(usual(), tmp_path)).run_test(size=(160, 48)) as pilot:
        assert "held back by power limit" in await over(pilot)
        pilot.app.screen._ticking.cancel()  # type: ignore[attr-defined]
        await pilot.resize_terminal(80, 24)
        text = await over(pilot)
        assert "held back by" not in text and "GPU 97% 71°C 690/700 W 1755 MHz power limit" in text
        await pilot.resize_terminal(160, 48)
        assert "held back by power limit" in await over(pilot)


async def test_a_run_that_is_over_leaves_no_row_empty_in_a_small_terminal(tmp_path: Path):
    tape = usual(until=300)
    tape.done()
    run = load_run(tape.write(tmp_path / tape.name))
    async with RecordedApp(run, HalfcellImage).run_test(size=(80, 24)) as pilot:
        lines = (await over(pilot)).splitlines()
        below = lines[next(y for y, line in enumerate(lines) if "step 300/300" in line) :]
        assert all(line.strip() for line in below) and "VRAM" in below[-2], below
