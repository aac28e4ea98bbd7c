"""watch, where a run begins anew behind its back."""

import asyncio
import shutil

import pytest

from presets.runs.events import Event
from presets.runs.run_view import RunView
from tests.daemon import conftest as daemons
from tests.daemon.conftest import Box
from tests.daemon.wire.test_client import LossyRelay
from tests.helpers.waiting import PATIENCE
from tests.helpers.waiting import until_async as until
from wanlora_tui.commands.jobs.watch import LinePrinter, watch_job

short_dir, box = daemons.short_dir, daemons.box


class Seen(LinePrinter):
    """The numbers of the events that were printed."""

    def __init__(self) -> None:
        super().__init__(live=False)
        self.numbers: list[int] = []

    def event(self, view: RunView, event: Event) -> None:
        self.numbers.append(event.seq)
        assert view.last_seq == event.seq and view.run == event.run


async def test_it_says_so_once_and_prints_the_new_run(box: Box, capsys: pytest.CaptureFixture[str]):
    """The line was cut while the job was stopped, its folder emptied and resumed."""
    box.start("--hold-at", "15")
    cut = False
    (box.dir / "b").mkdir()
    relay, seen = LossyRelay(box, box.dir / "b", lambda m: cut), Seen()
    try:
        async with box.client() as client:
            job = (await client.submit(box.job("one", steps=20))).id
            watching = asyncio.create_task(watch_job(relay.dir, "one", since=3, printer=seen))
            await until(lambda: len(seen.numbers) > 14)
            before, cut = len(seen.numbers), True
            await client.stop(job)
            await box.wait(client, job, "stopped")
            shutil.rmtree(box.run_dir("one"))
            await client.resume(job)
            await box.wait(client, job, "running")
            cut = False
            await until(lambda: len(seen.numbers) > before + 14)
            await client.stop(job)
            record, _ = await asyncio.wait_for(watching, PATIENCE)
            assert record.state == "stopped" and seen.numbers[before:] == list(range(1, len(seen.numbers) - before + 1))
            assert seen.numbers[:before] == list(range(4, before + 4))
    finally:
        await relay.close()
        shutil.rmtree(relay.dir)
    assert capsys.readouterr().err.count("one has begun anew") == 1
