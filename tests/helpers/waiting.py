"""How tests wait: for what must come, never for a while, and all of them with one patience."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

# seconds after which what must come counts as never coming: ten times what the slowest takes on a quiet machine
PATIENCE = 300.0
LOOK = 0.02  # seconds between two looks, at least
LONGEST = 1.0  # and at most: a look takes long also in a process that gets no CPU, and what passes is not to be missed


def between_looks(began: float) -> float:
    """Seconds to wait after a look that began then. Looking takes a tenth of the time at most: what is waited for may
    need this very core."""
    return min(max(LOOK, 9 * (time.monotonic() - began)), LONGEST)


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for a condition and give its value."""
    end = time.monotonic() + PATIENCE
    while (began := time.monotonic()) < end:
        if value := condition():
            return value
        time.sleep(between_looks(began))
    raise AssertionError(f"{what or condition} did not come within {PATIENCE:.0f} s")


async def until_async(condition: Callable[[], Any], what: str = "") -> Any:
    """The same where other tasks go on meanwhile; the condition may be a coroutine function."""
    end = time.monotonic() + PATIENCE
    while (began := time.monotonic()) < end:
        value = condition()
        if value := await value if asyncio.iscoroutine(value) else value:
            return value
        await asyncio.sleep(between_looks(began))
    raise AssertionError(f"{what or condition} did not come within {PATIENCE:.0f} s")
