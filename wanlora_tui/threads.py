"""Threads that only read: leaving the program does not wait for them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ReadingThreads(ThreadPoolExecutor):
    """For an event loop's `set_default_executor`: Textual's thread workers and `asyncio.to_thread` run in it.

    Each call has a daemon thread of its own. What is under way at a shutdown is left behind, and its answer dropped: a
    thread may hang for minutes on a network disk or a driver, and Python would join those of its own pools.
    """

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="reading")
        self._answering = threading.Lock()
        self._over = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                answer, error = fn(*args, **kwargs), None
            except BaseException as e:  # for whoever waits for the answer
                answer, error = None, e
            with self._answering:  # the loop that gets the answer closes after `shutdown`
                if self._over:
                    return
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(answer)  # type: ignore[arg-type]

        threading.Thread(target=run, name="reading", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._answering:
            self._over = True
