"""The run beside the list of jobs in a wide terminal: asked of the daemon, which may be silent for a while."""

import asyncio

import pytest
from textual.widgets import Static

from daemon.errors import DaemonError
from daemon.settings import CostSettings
from daemon.wire.protocol import JobRecord
from presets.runs.run_view import RunView
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import screen_text, until
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record, view_of
from wanlora_tui.feeds.run_times import run_times
from wanlora_tui.terminal.rows import Rows


class OnceSilent:
    """A client whose daemon does not answer the first time."""

    def __init__(self, found: JobRecord) -> None:
        self.asked, self._found, self.answers = 0, found, asyncio.Event()

    async def snapshot(self, job: int) -> tuple[JobRecord, RunView]:
        self.asked += 1
        if self.asked == 1:
            raise DaemonError("the daemon does not answer")
        await self.answers.wait()
        return self._found, view_of(usual("orbit_v1"))


async def test_what_could_not_be_read_is_asked_for_again():
    """The job itself does not change any more: nothing else would bring it."""
    ended = record(1, "orbit_v1", "done", 300, 300, attempt=1)
    client = OnceSilent(ended)
    app = JobsApp([ended], client=client)
    async with app.run_test(size=(160, 48)) as pilot:

        def said() -> str:
            return str(app.screen.query_one("#job-detail-text", Rows).render())

        await until(pilot, lambda: "the daemon does not answer" in said(), "the problem")
        client.answers.set()
        await until(pilot, lambda: "high noise" in said(), "the run")
        assert client.asked == 2 and "does not answer" not in said()


@pytest.mark.parametrize(("size", "place"), [((160, 48), "#job-detail-text"), ((80, 24), "#jobs-detail")])
async def test_what_a_run_costs_so_far_and_in_all_is_said_in_wide_and_narrow_terminals(
    size: tuple[int, int], place: str
):
    tape = usual("orbit_v1", until=100)
    view = view_of(tape)
    running = record(1, "orbit_v1", "running", 100, 300, attempt=1, pid=7, started_at=tape.events[0].time)
    cent_a_second = CostSettings(rate=36.0, currency="EUR")
    app = JobsApp([running], {1: view}, cost=cent_a_second)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "EUR " in str(app.screen.query_one(place, Static | Rows).render()), "what it costs")
        cost = run_times(running, view, cost=cent_a_second).cost
        assert "/EUR " in cost and cost in " ".join(screen_text(app).split())
