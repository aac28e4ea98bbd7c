"""The list of jobs under a dialog while the terminal is resized: laid out for its place, and its keys are its own."""

import pytest
from textual.pilot import Pilot

from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, every_state
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.jobs import JobsScreen, JobTable
from wanlora_tui.widgets.fitting_footer import FittingFooter

pytestmark = pytest.mark.process  # takes seconds


def fits(screen: JobsScreen) -> bool:
    """Whether the columns fill the table and no more."""
    table = screen.query_one(JobTable)
    return bool(table.columns) and table.virtual_size.width <= table.size.width == screen._rows._width


async def resized(pilot: Pilot[None], jobs: JobsScreen, columns: int, rows: int) -> None:
    await pilot.resize_terminal(columns, rows)
    await until(pilot, lambda: jobs.size == (columns, rows) and fits(jobs), f"the list in {columns}x{rows}")


def keys(jobs: JobsScreen) -> list[str]:
    return [key.label for key in jobs.query_one(FittingFooter).shown]


@pytest.mark.parametrize("sizes", [((160, 48), (80, 24)), ((80, 24), (160, 48))])
async def test_it_follows_the_terminal(sizes: tuple[tuple[int, int], tuple[int, int]]):
    app: JobsApp = every_state()
    async with app.run_test(size=sizes[0]) as pilot:
        jobs = app.screen
        assert isinstance(jobs, JobsScreen)
        await until(pilot, lambda: fits(jobs) and keys(jobs), "the list")
        app.push_screen(Confirm("Remove it?", "Remove", "Keep"))
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the dialog")
        await resized(pilot, jobs, *sizes[1])
        wide = sizes[1][0] == 160
        await until(pilot, lambda: ("Rename" in keys(jobs)) == wide, "the footer of the new width")
        under = keys(jobs)
        assert "Resume" not in under and "All jobs" not in under, "no key that works on another job alone"
        assert (
            sum(len(key.shown_key) + len(key.label) + 2 for key in jobs.query_one(FittingFooter).shown) <= sizes[1][0]
        )
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is jobs, "the list again")
        assert keys(jobs) == under
