"""What only the daemon can do is not offered while it does not answer: in the footer, the palette, the help, nor as a
key."""

import inspect
import re
from pathlib import Path

import pytest
from textual.actions import parse
from textual.pilot import Pilot
from textual.widgets import Button

from tests.helpers.interface.harness import write_job
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_dashboard import app_over, shown
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record
from wanlora_tui.actions import all_actions, needs_daemon
from wanlora_tui.feeds.run_feed import RecordedRun
from wanlora_tui.output.far_words import speaking_of
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.screens.jobs.job_file import Checked, JobFileScreen
from wanlora_tui.screenshot import RecordedApp
from wanlora_tui.widgets.fitting_footer import FittingFooter

pytestmark = pytest.mark.process  # takes seconds

ASKS = re.compile(r"self\._(client\b|send\(|resume\()")
ALSO_WITHOUT = {"submit_file"}  # a job file that lies here opens in the wizard, too
OF_DAEMON = {a.id for a in all_actions() if a.needs_daemon}


@pytest.mark.parametrize("screen", [JobsScreen, DashboardScreen])
def test_what_asks_the_daemon_is_registered_as_such(screen: type):
    for action in all_actions():
        name = parse(action.action)[1]
        if (method := getattr(screen, f"action_{name}", None)) is not None:
            asks = ASKS.search(inspect.getsource(inspect.unwrap(method))) is not None and name not in ALSO_WITHOUT
            asks |= "resume_run" in inspect.getsource(method)
            assert asks == needs_daemon(name), action.id


def offered(pilot: Pilot[None]) -> set[str]:
    """Ids of what the footer shows, of what a key or the palette would do, and of what the help does not refuse."""
    app, screen = pilot.app, pilot.app.screen
    keys = {key.id for key in screen.query_one(FittingFooter)._offered}
    bound = {b.binding.id or "" for b in screen.active_bindings.values() if b.enabled}
    assert isinstance(app, (JobsApp, RecordedApp)) and isinstance(screen, (JobsScreen, DashboardScreen))
    helped = OF_DAEMON & {a.id for a in all_actions() if a.id.startswith(screen.HELP_GROUP)}
    return keys | bound | (helped - app.refused(screen.HELP_GROUP))


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
async def test_the_list_offers_nothing_that_a_silent_daemon_would_have_to_do(state: str):
    ages = [0.0]
    app = JobsApp([record(1, "orbit_v1", state, 0, 100), record(2, "old_v1", "done", 100, 100)])
    app.jobs._clock = lambda: ages[-1]
    async with app.run_test(size=(160, 48)) as pilot:
        await until(pilot, lambda: OF_DAEMON & offered(pilot), "what the daemon can do")
        ages.append(60.0)
        await until(pilot, lambda: not OF_DAEMON & offered(pilot), "nothing of that")
        await pilot.press("s", "C", "X", "r", "H", "E", "R")
        assert isinstance(app.screen, JobsScreen), "no question about what cannot be done"
        assert {"jobs.open", "jobs.new", "jobs.submit", "jobs.duplicate", "jobs.quit"} <= offered(pilot)
        ages.append(0.0)
        await until(pilot, lambda: OF_DAEMON & offered(pilot), "all that again")


async def test_the_wizard_of_another_machine_is_offered_while_its_daemon_answers() -> None:
    """It runs there, and so does what it launches; that of this machine makes a job file without a daemon, too."""
    for host, without in (("", True), ("box", False)):
        ages = [0.0]
        with speaking_of(host, ()):
            app = JobsApp([record(1, "orbit_v1", "done", 100, 100)])
            app.jobs._clock = lambda ages=ages: ages[-1]
            async with app.run_test(size=(100, 30)) as pilot:
                await until(pilot, lambda p=pilot: "jobs.new" in offered(p), "the wizard")
                ages.append(60.0)
                await until(pilot, lambda p=pilot: not OF_DAEMON & offered(p), "nothing that the daemon would do")
                assert ("jobs.new" in offered(pilot)) == without, host


@pytest.mark.parametrize("state", ["running", "failed"])
async def test_a_dashboard_offers_nothing_that_a_silent_daemon_would_have_to_do(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ages = [0.0]
    tape = usual()
    tape.checkpoint(40)
    if state == "failed":
        tape.add("failed", cause="out of memory", next="less")
    app = app_over(tape, tmp_path)
    monkeypatch.setattr(RecordedRun, "beat_age", property(lambda self: ages[-1]))
    async with app.run_test(size=(160, 48)) as pilot:
        screen = app.screen
        assert isinstance(screen, DashboardScreen)
        screen._client = object()  # type: ignore[assignment]
        await until(pilot, lambda: OF_DAEMON & offered(pilot), "what the daemon can do")
        ages.append(60.0)
        await until(pilot, lambda: not OF_DAEMON & offered(pilot), "nothing of that")
        await pilot.press("s", "w", "P", "e", "r", "b")
        assert app.screen is screen, "no question about what cannot be done"
        assert {"dashboard.log", "dashboard.files", "dashboard.whole_log", "dashboard.quit"} <= offered(pilot)
        ages.append(0.0)
        await until(pilot, lambda: OF_DAEMON & offered(pilot), "all that again")


async def test_a_job_file_is_not_submitted_to_a_silent_daemon(tmp_path: Path):
    path = write_job(tmp_path)
    app = JobsApp([])
    async with app.run_test(size=(80, 24)) as pilot:
        await app.push_screen(JobFileScreen(path, daemon_answers=False))
        await until(pilot, lambda: not app.screen.query_one("#wizard", Button).disabled, "the findings")
        app.screen.post_message(Checked("", errors=False, opens=True))
        await until(pilot, lambda: "cannot be trained as it is" not in shown(app.screen), "a job without errors")
        assert app.screen.query_one("#submit", Button).disabled
        assert app.focused is app.screen.query_one("#wizard")
        assert "cannot be submitted now: the daemon does not answer" in shown(app.screen)
