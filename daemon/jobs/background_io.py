"""Work that may wait for a disk, beside the loop: whatever a path leads to, the daemon keeps serving.

In threads that nobody waits for at the end: one that hangs in the kernel on a lost network disk keeps no daemon
from ending. (The executor of asyncio is waited for, and a few that hang use it up.)
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from presets.errors import UserError

SECONDS = 10.0  # for one small file; a client waits for twice that
MOST = 64  # at the same time, those that hang counted in

_T = TypeVar("_T")


class BackgroundIO:
    """Where one daemon does such work."""

    def __init__(self) -> None:
        self._at_work = 0

    async def __call__(self, work: Callable[[], _T], *, what: str, seconds: float = SECONDS) -> _T:
        """What `work` gives or raises. Raises UserError when it takes longer than `seconds`: then it may still run, so
        it must not change what others use. `what`: the path that it is about.
        """
        if self._at_work >= MOST:
            raise UserError(
                f"too many files do not come from their disks ({self._at_work} at this moment)",
                where=what,
                fix="Is a network disk lost? Try again when it is back",
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def finish(result: _T | None, error: BaseException | None) -> None:
            self._at_work -= 1
            if done.done():  # nobody waits any more
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as e:
                error = e
            with suppress(RuntimeError):  # the loop is closed: the daemon has ended meanwhile
                loop.call_soon_threadsafe(finish, result, error)

        self._at_work += 1
        threading.Thread(target=run, daemon=True, name=f"background: {what}"[:60]).start()
        try:
            return await asyncio.wait_for(done, seconds)
        except TimeoutError:
            if done.done() and not done.cancelled():  # it was the work's own
                raise
            raise UserError(
                f"has not come for {seconds:.0f} s",
                where=what,
                fix="Is its disk, a network disk perhaps, lost or very busy? Try again when it answers",
            ) from None
