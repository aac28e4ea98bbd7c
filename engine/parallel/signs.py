"""Notices that a rank hangs: it lives, waits for nobody, and has done nothing for longer than anything takes.

Each rank counts what it does and publishes the count; who waits for the others looks at theirs. That one has died is
engine.parallel.lost_ranks's.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

HANGS_SECONDS = 30 * 60.0  # no micro-batch, no file and no denoising step takes as long
LOOK_SECONDS = 10.0


class Store(Protocol):
    """What of torch's store is needed."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class Signs:
    """Publishes what this rank does and, while it waits for the others, says once of one that does nothing."""

    def __init__(
        self,
        store: Store,
        number: int,
        world: int,
        hangs: Callable[[str], None],
        *,
        limit: float = HANGS_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hangs` is given the cause, in the thread of this. `limit`: seconds without a sign."""
        self._store, self._number, self._hangs = store, number, hangs
        self._limit, self._clock = limit, clock
        self._count, self._doing, self._waiting = 0, "it had just begun", False
        self._looked = clock()
        self._seen = dict.fromkeys(range(world), ("", self._looked))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signs", daemon=True)
        self._thread.start()

    def give(self, doing: str = "") -> None:
        """This rank has got on; `doing`: with what, for people."""
        self._count += 1
        self._doing = doing or self._doing

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this rank waits for others."""
        self._count, self._waiting = self._count + 1, True
        try:
            yield
        finally:
            self._count, self._waiting = self._count + 1, False

    def close(self) -> None:
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(LOOK_SECONDS, self._limit / 10)):
            if not self.look():
                return

    def look(self) -> bool:
        """Publish and judge once; False when there is nothing more to look for."""
        try:
            self._store.set(_key(self._number), f"{self._count}\0{'waits' if self._waiting else self._doing}")
            cause = self._cause()
        except RuntimeError:  # the store was in a process that has died: that is noticed elsewhere
            return False
        if cause:
            self._hangs(cause)
        return not cause

    def _cause(self) -> str:
        """Who hangs, and what it did last; "" while nobody does, or while this rank waits for none."""
        now = self._clock()
        held_up, self._looked = now - self._looked > self._limit / 2, now  # suspended, most likely with all others
        for rank, (before, _) in self._seen.items():
            said = self._store.get(_key(rank)).decode() if self._store.check([_key(rank)]) else ""
            if held_up or said != before:
                self._seen[rank] = (said, now)
        silent = [rank for rank, (_, since) in self._seen.items() if now - since > self._limit]
        if not self._waiting or not silent:
            return ""
        of, minutes = len(self._seen), f"{self._limit / 60:.3g} minutes"
        for rank in silent:
            doing = self._seen[rank][0].rpartition("\0")[2]
            if doing != "waits":
                return f"rank {rank} of {of} hangs: it has done nothing for {minutes} ({doing or 'it never began'})"
        if len(silent) == of:
            return f"the {of} processes have waited for each other for {minutes}: the way between them is lost"
        return ""


def _key(rank: int) -> str:
    return f"wanlora/doing/{rank}"
