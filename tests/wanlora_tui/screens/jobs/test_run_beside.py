"""The run beside the list of jobs in a wide terminal: asked of the daemon, which may be silent for a while."""

import asyncio

from daemon.errors import DaemonError
from daemon.wire.protocol import JobRecord
from presets.runs.run_view import RunView
from tests.helpers.interface.runs import usual
from tests.helpers.interface.wizard_pilot import until
from tests.wanlora_tui.screens.test_snapshots_jobs import JobsApp, record, view_of
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
