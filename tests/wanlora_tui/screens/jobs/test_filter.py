"""The filter of the list of jobs."""

import pytest
from textual.widgets import Static

from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_snapshots_jobs import every_state

pytestmark = pytest.mark.process  # takes seconds


async def test_a_filter_that_no_job_has_says_so():
    app = every_state()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("slash", *"zzz")

        def said() -> str:
            return str(app.screen.query_one("#jobs-detail", Static).render())

        await until(pilot, lambda: "No job has 'zzz' in its name or state. Esc shows all again." in said(), "the words")
        await pilot.press("escape")
        await until(pilot, lambda: "No job has" not in said(), "all jobs again")
