"""A trainer whose launcher has died. That it is looked for beside the loop: tests.daemon.jobs.test_runner."""

import asyncio

from daemon.processes.proc import ProcessId
from daemon.processes.trainer_process import Trainer
from presets.machine.gpu_locks import lock_gpus
from tests.helpers.waiting import PATIENCE


async def test_a_look_that_fails_ends_no_trainer():
    fails = [OSError(24, "Too many open files")]

    async def look() -> list[ProcessId]:
        if fails:
            raise fails.pop()
        return []

    gone = ProcessId(1, 0, "another boot")
    lock, _ = lock_gpus([], "x")
    looked = asyncio.Event()
    trainer = Trainer(gone, "m", lock, look, looked.set)
    said = []
    async with asyncio.timeout(PATIENCE):
        for _ in range(2):
            said.append(trainer.poll())
            await looked.wait()
            looked.clear()
            said.append(trainer.poll())
    assert said == [True, True, True, False]
    lock.close()
