"""What changes below a dialog or with the terminal's size is there all the same; what comes too late is not shown."""

from pathlib import Path

import msgspec
import pytest
from textual.pilot import Pilot

from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_dashboard import app_over, settle, shown
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record
from wanlora_tui.feeds.run_feed import RecordedRun
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.log import LogScreen, Tailed
from wanlora_tui.screenshot import RecordedApp
from wanlora_tui.widgets.files_list import FilesList
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Changed

pytestmark = pytest.mark.process  # takes seconds
LONG = "wan_i2v_motion_orbit_around_the_castle_in_the_rain_v3"


def keys(app: RecordedApp) -> list[str]:
    return [key.label for key in app.screen.query_one(FittingFooter).shown]


def dashboard(pilot: Pilot[None]) -> DashboardScreen:
    (found,) = (s for s in pilot.app.screen_stack if isinstance(s, DashboardScreen))
    return found


async def test_a_long_name_is_whole_once_there_is_room(tmp_path: Path):
    """Of a run at rest nothing comes that would draw it anew."""
    async with app_over(usual(LONG), tmp_path).run_test(size=(60, 20)) as pilot:
        await until(pilot, lambda: "…" in shown(pilot.app.screen).splitlines()[0], "the name, cut")
        await pilot.resize_terminal(160, 48)
        await until(pilot, lambda: LONG in shown(pilot.app.screen).splitlines()[0], "the whole name")


@pytest.mark.parametrize("screen", ["jobs", "dashboard"])
async def test_a_light_goes_out_below_a_dialog(screen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A daemon that is gone sends nothing: the clock alone tells."""
    ages = [0.0]
    if screen == "jobs":
        app: JobsApp | RecordedApp = JobsApp([record(1, "orbit_v1", "queued", 0, 100)])
        app.jobs._clock = lambda: ages[-1]
    else:
        app = app_over(usual(), tmp_path)
        monkeypatch.setattr(RecordedRun, "beat_age", property(lambda self: ages[-1]))
    async with app.run_test(size=(80, 24)) as pilot:
        below = app.screen
        await until(pilot, lambda: "daemon alive" in shown(below), "the light")
        app.push_screen(Confirm("Remove it?", "Remove", "Keep"))
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the dialog")
        ages.append(60.0)
        await until(pilot, lambda: "daemon not answering" in shown(below), "the other light")


async def test_checkpoints_after_a_rollback_are_others_though_as_many(tmp_path: Path):
    tape = usual()
    for step in (40, 80):
        tape.checkpoint(step)
    async with app_over(tape, tmp_path).run_test(size=(160, 48)) as pilot:
        screen = dashboard(pilot)

        def listed() -> str:
            return screen.query_one(FilesList).text

        await until(pilot, lambda: "checkpoints/step_000000080" in listed(), "the checkpoints")
        view = screen.run.view
        newest = view.checkpoints[-1]
        view.checkpoints[-1] = msgspec.structs.replace(newest, path="checkpoints/step_000000060", step=60)
        view.last_seq += 1
        screen.post_message(Changed())
        await until(pilot, lambda: "checkpoints/step_000000060" in listed(), "those of now")
        assert "step_000000080" not in listed()


async def test_lines_of_an_earlier_look_at_the_output_come_too_late(tmp_path: Path):
    """`t` three times: what the first thread has still sent would be there twice."""
    log = tmp_path / "orbit_v1/logs/attempt_1.log"
    app = app_over(usual(), tmp_path)
    log.parent.mkdir()
    log.write_text("torch says something\n")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("L")
        await until(pilot, lambda: isinstance(app.screen, LogScreen), "the log")
        screen: LogScreen = app.screen  # type: ignore[assignment]
        await pilot.press("t")
        await until(pilot, lambda: "torch says" in shown(screen), "the output")
        first = screen._reading
        assert first is not None
        await pilot.press("t", "t")
        await until(pilot, lambda: "torch says" in shown(screen) and screen._reading is not first, "it again")
        screen.post_message(Tailed(first, str(log), ["torch says something"], anew=False))
        screen.post_message(Tailed(screen._reading, str(log), ["the end"], anew=False))  # type: ignore[arg-type]
        await until(pilot, lambda: "the end" in shown(screen), "what came after it")
        assert shown(screen).count("torch says something") == 1


async def test_the_next_match_is_offered_where_there_is_one(tmp_path: Path):
    app = app_over(usual(), tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("L")
        await until(pilot, lambda: isinstance(app.screen, LogScreen), "the log")
        await pilot.press("slash", *"checkpoint", "enter")
        await until(pilot, lambda: "Next" in keys(app), "the way to the next one")
        await pilot.press("slash", *"zzz", "enter")
        await until(pilot, lambda: "nothing with" in shown(app.screen) and "Next" not in keys(app), "none")
        screen: LogScreen = app.screen  # type: ignore[assignment]
        screen._replace([*screen._lines, "zzz has come"])  # nothing gets the focus, which would offer it as well
        screen._render_title()
        await until(pilot, lambda: "Next" in keys(app), "the way to what has come")
