"""One look at many files: how far it is, and how another thread ends it early.

Python waits for the threads of its own pools when a program ends. These here only read, so nobody needs to wait for one
that is deep in a decoder or on a network disk that does not answer.
"""

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

GLANCE = 0.1  # seconds between two glances at whether the look was ended
PARTING = 1.0  # seconds given to threads of an ended look; they notice it between two frames

T = TypeVar("T")
R = TypeVar("R")


class LookEnded(Exception):
    """Nobody wants the answer any more."""


def never_ends() -> None:
    """The `raise_if_ended` of whoever waits to the end."""


class Look:
    """Begun by whoever wants the answer; `end` may be called from any thread, also before the first file."""

    def __init__(self) -> None:
        self.done = 0  # files
        self.total = 0  # files; 0 while they are still being listed, when `done` counts what was found so far
        self._ended = threading.Event()

    def end(self) -> None:
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def raise_if_ended(self) -> None:
        """To be called between two files, and between two frames of one. Raises LookEnded once it was ended."""
        if self.ended:
            raise LookEnded

    def at_all(self, items: Sequence[T], function: Callable[[T], R], *, threads: int) -> list[R]:
        """`function` of each item, in order, several at a time.

        Raises LookEnded as soon as the look was ended, whatever its threads are busy with, and what `function` raised;
        either way, and on KeyboardInterrupt, the look is over.
        """
        self.done, self.total = 0, len(items)
        waiting: SimpleQueue[int] = SimpleQueue()
        answers: SimpleQueue[tuple[int, R]] = SimpleQueue()
        # raised again in the caller, whose thread it is meant for; an answer may be an error too, given and not raised
        raised: list[BaseException] = []

        def work() -> None:
            while not self.ended:
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                try:
                    answers.put((number, function(items[number])))
                except BaseException as e:
                    raised.append(e)
                    return

        for number in range(len(items)):
            waiting.put(number)
        pool = [threading.Thread(target=work, name="look", daemon=True) for _ in range(min(threads, len(items)))]
        found: dict[int, R] = {}
        try:
            for thread in pool:
                thread.start()
            while len(found) < len(items):
                self.raise_if_ended()
                if raised:
                    raise raised[0]
                try:
                    number, answer = answers.get(timeout=GLANCE)
                except Empty:
                    continue
                found[number] = answer
                self.done = len(found)
        except BaseException:
            self.end()
            _part(pool)
            raise
        return [found[number] for number in range(len(items))]


def _part(pool: list[threading.Thread]) -> None:
    """Let the threads see that it is over; one that is stuck is left behind."""
    until = time.monotonic() + PARTING
    for thread in pool:
        if thread.ident is not None:
            thread.join(max(0.0, until - time.monotonic()))
