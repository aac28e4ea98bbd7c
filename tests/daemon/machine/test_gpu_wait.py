"""A job that waits for its GPUs, and what its user does while they are looked at."""

import asyncio
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.machine.gpu_wait import GpuWait
from daemon.queue import restarts
from daemon.queue.job_queue import Queue
from daemon.wire.protocol import JobRecord


@pytest.mark.parametrize("does", ["remove", "resume"])
async def test_what_a_look_finds_counts_only_for_a_job_that_still_waits(
    tmp_path: Path, does: str, monkeypatch: pytest.MonkeyPatch
):
    queue, applied = Queue([]), []
    gpus = GpuWait(tmp_path, queue, BackgroundIO(), applied.append)
    queue.submit(JobRecord(id=1, name="a", job_path="/j", out="/runs", gpus=[0], state="queued"), 0.0)
    restarts.cannot_start(queue, 1, "GPU 0 is taken.", 1.0)
    looked = asyncio.Event()

    async def slowly(entry) -> str:
        await looked.wait()
        return "GPU 0 is used by pid 7."

    monkeypatch.setattr(gpus, "in_the_way", slowly)
    gpus.look(2.0)
    [look] = gpus._looks.values()
    await asyncio.sleep(0)
    if does == "remove":
        queue.remove(1, 3.0)
    else:
        queue.resume(1, 3.0, anyway=True)
        assert queue.entries[1].record.state == "starting"
    looked.set()
    await look
    assert applied == []
    assert does == "remove" or queue.entries[1].record.state == "starting"
