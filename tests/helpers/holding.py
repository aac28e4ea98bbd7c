"""Real trainers that stand still while a test looks at them, or asks something of their daemon: one that trains
meanwhile takes the core that the commands need."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from daemon.wire.client import Client
from tests.helpers.waiting import until


def pid_of(job: str) -> int:
    """0 before its trainer was launched. Asked without a command, whose start may take as long as the trainer's."""

    async def go() -> int:
        async with Client() as client:
            return next((record.pid for record in await client.jobs() if record.name == job), 0)

    return asyncio.run(go())


@contextmanager
def held(launcher: int, since: Callable[[], object] = lambda: True) -> Iterator[None]:
    """The trainer stands still meanwhile, from the look that first sees what it is held for."""
    held_back: list[psutil.Process] = []

    def hold() -> bool:
        if since():
            held_back.extend(psutil.Process(launcher).children(recursive=True))
            for process in held_back:
                process.suspend()
        return bool(held_back)

    try:
        until(hold, "what the trainer is held for")
        yield
    finally:
        for process in held_back:
            process.resume()
