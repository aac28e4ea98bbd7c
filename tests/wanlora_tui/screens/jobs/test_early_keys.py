"""Keys that are typed before the daemon's list is there."""

import pytest
from textual import events

from tests.helpers.interface.wizard_pilot import until
from tests.helpers.waiting import PATIENCE
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.widgets.key_order import KeysInOrder
from wanlora_tui.widgets.redraw_throttle import Changed

pytestmark = pytest.mark.process  # takes seconds


class Starting(JobsApp, KeysInOrder):
    """Nothing has been heard of the daemon yet."""

    patience = PATIENCE

    def __init__(self) -> None:
        super().__init__([])
        self.jobs = JobList(clock=lambda: 0.0)


async def test_a_key_before_the_list_means_its_first_job() -> None:
    app = Starting()
    async with app.run_test() as pilot:
        await until(pilot, lambda: isinstance(app.screen, JobsScreen) and app.screen.is_mounted, "the screen")
        app.post_message(events.Key("X", "X"))
        await until(pilot, lambda: app.is_taking, "the key, held")
        app.jobs.load([record(1, "orbit_v1", "failed", 0, 100)])
        app.screen.post_message(Changed())
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")


async def test_a_daemon_that_does_not_answer_holds_no_key() -> None:
    app = Starting()
    async with app.run_test() as pilot:
        await until(pilot, lambda: isinstance(app.screen, JobsScreen) and app.screen.is_mounted, "the screen")
        assert isinstance(app.screen, JobsScreen) and not app.screen.takes_keys
        app.jobs.problem = "No daemon runs."
        assert app.screen.takes_keys
