"""One thread that reads for many, so that the loop never waits for a disk; when a disk does not answer, another thread
takes its place for all the others.

For work that comes hundreds of times a second: a thread for each, as in daemon.background_io, would cost more than the
work.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

PATIENCE = 0.25  # seconds for one piece of work before another thread takes over

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


class ReaderThread:
    """To be made in a running loop. `done` of each work is called there, with what the work gave or raised."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._bell: SimpleQueue[bool] = SimpleQueue()  # rung when something waits; with False to end
        self._done: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._began: float | None = None  # when the thread of now began with the work of now
        self._start()

    def submit(self, work: Work, done: Done) -> None:
        """`work` must not change what others use: it may hang, and end much later. It begins with the next `begin`."""
        self._waiting.append((work, done))

    def begin(self) -> None:
        """With all that was submitted, one after the other."""
        if self._waiting:
            self._bell.put(True)

    def keep_going(self) -> None:
        """To be called now and then: when the thread hangs and others wait for it, another takes over."""
        began = self._began
        if began is not None and time.monotonic() - began > PATIENCE and self._waiting:
            self._began = None
            self._start()
            self._tell()
            self.begin()

    def close(self) -> None:
        self._bell.put(False)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True, name="events")
        self._thread.start()

    def _run(self) -> None:
        me = threading.current_thread()
        while me is self._thread and self._bell.get():
            while me is self._thread:
                try:
                    work, done = self._waiting.popleft()
                except IndexError:
                    break
                self._began = time.monotonic()
                result, error = None, None
                try:
                    result = work()
                except BaseException as e:
                    error = e
                if me is self._thread:
                    self._began = None
                self._done.append((done, result, error))
            with suppress(RuntimeError):  # the loop is closed: the daemon has ended meanwhile
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        while self._done:
            done, result, error = self._done.popleft()
            done(result, error)
