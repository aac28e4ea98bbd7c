"""The log on the whole screen, over a recorded run."""

from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.helpers.interface.runs import Tape, usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_dashboard import app_over, outside, settle, shown
from wanlora_tui.feeds.status_lights import Light
from wanlora_tui.screens.log import LogScreen, LogText

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds


def a_run() -> Tape:
    tape = usual()
    tape.add("log", level="info", text="the weights came from the cache")
    for step in range(121, 161):
        tape.checkpoint(step)
    tape.add("log", level="info", text="Weights were written again")
    return tape


def line(pilot: Pilot[None]) -> str:
    text = pilot.app.screen.query_one(LogText)
    return text.document.get_line(text.cursor_location[0])


@pytest.mark.parametrize(
    "size", [(80, 24), *(pytest.param(size, marks=pytest.mark.thorough) for size in ((100, 30), (160, 48)))]
)
async def test_search_goes_on_and_round_within_the_log(size: tuple[int, int], tmp_path: Path):
    async with app_over(a_run(), tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("L")
        await until(pilot, lambda: isinstance(pilot.app.screen, LogScreen), "the log")
        assert "Weights were written again" in line(pilot)  # it follows the newest line
        events = len(pilot.app.screen._run.view.log)
        assert f"events, {events} lines" in shown(pilot.app.screen)  # not the day above them
        await pilot.press("slash", *"WEIGHTS", "enter")
        await until(pilot, lambda: "2 of 2 with 'WEIGHTS'" in shown(pilot.app.screen), "the match here")
        await pilot.press("n")
        await until(pilot, lambda: "from the cache" in line(pilot), "round to the first")
        await pilot.press("N")
        await until(pilot, lambda: "written again" in line(pilot), "back to the last")
        await pilot.press("N", "y")
        await until(pilot, lambda: pilot.app.clipboard == line(pilot).rstrip(), "the copy of the match's line")
        assert "from the cache" in pilot.app.clipboard
        await pilot.press("home")
        await until(pilot, lambda: "2026" in line(pilot), "the first line")
        await pilot.press("end")
        await until(pilot, lambda: "written again" in line(pilot), "the newest one")
        await pilot.press("N", "shift+left", "y")
        await until(pilot, lambda: pilot.app.clipboard == "weight", "the copy of what is selected")
        await pilot.press("j", "y")
        await until(pilot, lambda: pilot.app.clipboard.endswith("checkpoints/step_000000121"), "the copy of a line")
        assert not list(outside(pilot.app.screen))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, LogScreen), "the dashboard")


async def test_kinds_days_and_the_trainer_s_own_output(tmp_path: Path):
    async with app_over(a_run(), tmp_path).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("L")
        await until(pilot, lambda: isinstance(pilot.app.screen, LogScreen), "the log")
        await pilot.press("f", "g")
        await until(pilot, lambda: "problems only" in shown(pilot.app.screen), "the kind")
        text = shown(pilot.app.screen)
        assert "2026" in text and "local time" in text and "checkpoint" not in text
        await pilot.press("t")
        await until(pilot, lambda: "nothing yet in" in shown(pilot.app.screen), "no output yet")
        log = tmp_path / "orbit_v1/logs/attempt_1.log"
        log.parent.mkdir()
        log.write_text("W1126 torch says \x1b[31msomething\n")
        await until(pilot, lambda: "torch says" in shown(pilot.app.screen), "the output")
        with log.open("a") as f:
            f.write("and more\n")
        await until(pilot, lambda: "and more" in shown(pilot.app.screen), "what came since")
        await pilot.press("t")
        await until(pilot, lambda: "problems only" in shown(pilot.app.screen), "the events again")


async def test_a_lost_line_to_the_other_machine_is_said_while_it_is_lost(tmp_path: Path):
    async with app_over(a_run(), tmp_path).run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("L")
        await until(pilot, lambda: isinstance(pilot.app.screen, LogScreen), "the log")
        screen, lost = pilot.app.screen, [Light("bad", "no connection to box for 4s")]
        assert isinstance(screen, LogScreen)
        screen._link = lambda age: lost[-1] if lost else None
        await until(pilot, lambda: "lines   ✗ no connection to box" in shown(screen), "what is wrong")
        lost.clear()
        await until(pilot, lambda: "no connection" not in shown(screen), "that all is well")
