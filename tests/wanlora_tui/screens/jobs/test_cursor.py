"""Where the cursor of the list of jobs stands, whatever comes into the list or goes from it."""

import msgspec
import pytest
from textual.pilot import Pilot

from daemon.wire.protocol import JobRecord
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.jobs import JobsScreen, JobTable
from wanlora_tui.screens.jobs.screen import FilterInput
from wanlora_tui.widgets.redraw_throttle import Changed


def queued(*numbers: int) -> list[JobRecord]:
    return [record(n, f"job_{n}", "queued", 0, 100, position=n) for n in numbers]


class Listed:
    """The list of jobs of an app under test."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        app = pilot.app
        assert isinstance(app, JobsApp) and isinstance(app.screen, JobsScreen)
        self.app, self.screen = app, app.screen

    @property
    def under_cursor(self) -> str:
        found = self.screen._current()
        return found.name if found is not None else ""

    @property
    def row(self) -> int:
        return self.screen.query_one(JobTable).cursor_row

    async def load(self, records: list[JobRecord]) -> None:
        self.app.jobs.load(records)
        self.screen.post_message(Changed())
        await until(self.pilot, lambda: self.screen._rows.order == [r.id for r in records], "the list")


async def test_it_goes_to_a_job_that_is_told_of_later():
    app = JobsApp(queued(1, 2, 3))
    async with app.run_test(size=(80, 24)) as pilot:
        listed = Listed(pilot)
        await until(pilot, lambda: listed.under_cursor == "job_1", "the list")
        new = queued(1, 2, 3, 4)
        listed.screen.go_to(new[3])
        await pilot.pause()
        assert listed.under_cursor == "job_1"
        await listed.load(new)
        await until(pilot, lambda: listed.under_cursor == "job_4" and listed.row == 3, "the new job")
        await pilot.press("up")
        await listed.load(queued(1, 2, 3, 4, 5))
        assert listed.under_cursor == "job_3", "it goes there once"


async def test_it_goes_to_a_job_that_the_filter_hides():
    app = JobsApp(queued(1, 2, 3))
    async with app.run_test(size=(80, 24)) as pilot:
        listed = Listed(pilot)
        await pilot.press("slash", *"b_2", "enter")
        await until(pilot, lambda: listed.screen._rows.order == [2], "one job")
        listed.screen.go_to(app.jobs.records[3])
        await until(pilot, lambda: listed.under_cursor == "job_3", "all jobs, and the cursor there")
        assert not listed.screen.query_one(FilterInput).display


@pytest.mark.parametrize("under", ["nothing", "a dialog"])
async def test_when_its_job_is_removed_it_stays_where_it_was(under: str):
    """The next X would otherwise remove another job at the top of the list."""
    app = JobsApp(queued(1, 2, 3, 4))
    async with app.run_test(size=(80, 24)) as pilot:
        listed = Listed(pilot)
        await pilot.press("down", "down")
        await until(pilot, lambda: listed.under_cursor == "job_3", "the third")
        if under == "a dialog":
            app.push_screen(Confirm("Remove it?", "Remove", "Keep"))
            await until(pilot, lambda: isinstance(app.screen, Confirm), "the dialog")
        await listed.load(queued(1, 2, 4))
        await until(pilot, lambda: listed.under_cursor == "job_4", "the one after it")
        await listed.load(queued(1, 2))
        await until(pilot, lambda: listed.under_cursor == "job_2", "the last one")


async def test_esc_takes_the_line_of_the_filter_away_at_once():
    """Not with the next word of the daemon, which may never come."""
    app = JobsApp(queued(1, 2))
    async with app.run_test(size=(80, 24)) as pilot:
        listed = Listed(pilot)
        field = listed.screen.query_one(FilterInput)
        await pilot.press("slash")
        await until(pilot, lambda: field.display and field.has_focus, "the line")
        await pilot.press("escape")
        await until(pilot, lambda: listed.screen.query_one(JobTable).has_focus, "the list")
        await pilot.pause()
        assert not field.display


async def test_a_job_that_moves_takes_it_along():
    app = JobsApp(queued(1, 2, 3))
    async with app.run_test(size=(80, 24)) as pilot:
        listed = Listed(pilot)
        await pilot.press("down")
        await until(pilot, lambda: listed.under_cursor == "job_2", "the second")
        first, second, third = queued(1, 2, 3)
        await listed.load([first, third, msgspec.structs.replace(second, position=9, order=9)])
        await until(pilot, lambda: (listed.under_cursor, listed.row) == ("job_2", 2), "behind the third")
