"""A run to compare with is followed until its end."""

from pathlib import Path

from daemon.wire.client import Client
from presets.runs.run_view import RunView
from tests.helpers.interface.harness import own_daemon, write_job
from wanlora_tui.plot.other_runs import follow


async def test_a_live_job_is_followed_to_its_end_and_an_ended_one_is_there_at_once(tmp_path: Path):
    with own_daemon() as folder:
        async with Client(folder) as client:
            record = await client.submit(write_job(tmp_path, steps=40, pace_ms=20))
            seen: list[tuple[int, RunView]] = []
            await follow(client, record, lambda view: seen.append((view.step, view)))
            assert len(seen) > 3 and seen[-1][0] == 40
            assert sorted(p.step for points in seen[-1][1].losses.values() for p in points) == list(range(1, 41))
            again: list[RunView] = []
            await follow(client, record, again.append)
            assert [view.step for view in again] == [40]
