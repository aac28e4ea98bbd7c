"""Work that may wait for a disk, beside the loop: whatever a path leads to, the daemon keeps serving.

In threads that nobody waits for at the end: one that hangs in the kernel on a lost network disk keeps no daemon
from ending. (The executor of asyncio is waited for, and a few that hang use it up.) A thread whose work has ended is
given the next: on a busy machine the start of one is waited for longer than most files are.
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from presets.errors import UserError

SECONDS = 10.0  # for one small file; a client waits for twice that
LOOKS = 5  # in that time: a process that is held up for longer than it loses one of them
MOST = 64  # at the same time, those that hang counted in
KEPT = 8  # threads without work that wait for the next

_T = TypeVar("_T")
_Report = Callable[[], object]
_Inbox = SimpleQueue[Callable[[], _Report] | None]


class BackgroundIO:
    """Where one daemon does such work."""

    def __init__(self) -> None:
        self._at_work = 0
        self._idle: deque[_Inbox] = deque()  # of the threads without work
        weakref.finalize(self, _dismiss, self._idle)

    @property
    def is_full(self) -> bool:
        """Whether so much hangs that nothing more is begun."""
        return self._at_work >= MOST

    async def __call__(self, work: Callable[[], _T], *, what: str, seconds: float = SECONDS) -> _T:
        """What `work` gives or raises. Raises UserError when it takes longer than `seconds`: then it may still run, so
        it must not change what others use. `what`: the path that it is about.
        """
        if self.is_full:
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

        def run() -> _Report:
            threading.current_thread().name = f"background: {what}"[:60]
            result, error = None, None
            try:
                result = work()
            except BaseException as e:
                error = e
                if (
                    isinstance(e, OSError) and e.errno is not None and e.filename is None
                ):  # as of a write on a full disk
                    e.filename = what
            return partial(loop.call_soon_threadsafe, finish, result, error)

        self._at_work += 1
        try:
            inbox = self._idle.pop()
        except IndexError:  # all others are at work, or hang
            inbox = SimpleQueue()
            threading.Thread(target=_carry_out, args=(inbox, self._idle), daemon=True).start()
        inbox.put(run)
        try:
            for _ in range(LOOKS):
                # wait_for of Python 3.11 drops the cancellation of who waits when the work ends at that very moment
                await asyncio.wait({done}, timeout=seconds / LOOKS)
                if done.done():
                    return done.result()
        finally:
            done.cancel()
        raise UserError(
            f"has not come for {seconds:.0f} s",
            where=what,
            fix="Is its disk, a network disk perhaps, lost or very busy? Try again when it answers",
        )


def _carry_out(inbox: _Inbox, idle: deque[_Inbox]) -> None:
    """One piece of work after the other, until there is none and enough other threads wait for some."""
    stays = True
    while stays and (run := inbox.get()) is not None:
        report = run()
        stays = len(idle) < KEPT
        if stays:  # before who asked can ask again
            idle.append(inbox)
        with suppress(RuntimeError):  # the loop is closed: the daemon has ended meanwhile
            report()
        threading.current_thread().name = "background: idle"
        del run, report  # what they hold is not to be kept until there is other work


def _dismiss(idle: deque[_Inbox]) -> None:
    while idle:
        idle.pop().put(None)
