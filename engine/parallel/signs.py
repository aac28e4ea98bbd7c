"""Notices that a rank hangs: it lives, waits for nobody, and has done nothing for longer than anything takes. Or its
process is stopped, its host is frozen or cut off: then it gives no sign of life, whatever it said last.

Each rank counts what it does and publishes the count, with a beat that goes on while it waits; who waits for the others
looks at theirs. That one has died is engine.parallel.lost_ranks's.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

HANGS_SECONDS = 30 * 60.0  # no micro-batch, no file and no denoising step takes as long
LOOK_SECONDS = 10.0
STEP = "step "  # begins what a rank does that computes
WAITS = "waits"


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
        kept_by: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hangs` is given the cause, in the thread of this. `limit`: seconds without a sign. `kept_by`: whose the
        store is, for people; "" where it is this host's."""
        self._store, self._number, self._hangs = store, number, hangs
        self._limit, self._kept_by, self._clock = limit, kept_by, clock
        self._count, self._doing, self._waiting = 0, "it had just begun", False
        self._beat, self._looked = 0, clock()
        self._answered, self._lost = self._looked, False  # the store
        self._beats = dict.fromkeys(range(world), ("", self._looked))  # when each was seen to live
        self._seen = dict.fromkeys(range(world), ("", self._looked))  # and to get on
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
        now = self._clock()
        if now - self._looked > self._limit / 2:  # suspended, most likely with all others
            self._answered = now
            self._beats, self._seen = (
                {n: (said, now) for n, (said, _) in of.items()} for of in (self._beats, self._seen)
            )
        self._looked, self._beat = now, self._beat + 1
        mine = f"{self._count}\0{WAITS if self._waiting else self._doing}"
        self._note(self._seen, self._number, mine)
        if self._lost:  # torch does not connect again
            return self._judged()
        try:
            self._store.set(_key(self._number), f"{self._beat}\0{mine}")
            for rank in self._seen:
                said = self._store.get(_key(rank)).decode() if self._store.check([_key(rank)]) else ""
                beat, _, doing = said.partition("\0")
                self._note(self._beats, rank, beat)
                self._note(self._seen, rank, doing)
            self._answered = now
        except RuntimeError:  # it was in a process that has died, or its host is cut off
            if not self._kept_by:  # torchrun has died, and the ranks go on: who dies of those is noticed elsewhere
                return False
            self._lost = True
        return self._judged()

    def _judged(self) -> bool:
        if cause := self._cause():
            self._hangs(cause)
        return not cause

    def _note(self, of: dict[int, tuple[str, float]], rank: int, said: str) -> None:
        if said != of[rank][0]:
            of[rank] = (said, self._looked)

    def _cause(self) -> str:
        """Who hangs, and what it did last; "" while nobody does, or while this rank waits for none."""
        of, minutes = len(self._seen), f"{self._limit / 60:.3g} minutes"
        stuck = self._silent(self._seen, self._limit)
        doing = {rank: said.rpartition("\0")[2] or "it never began" for rank, (said, _) in self._seen.items()}
        if self._lost:
            lost = self._waiting and self._number in stuck and self._looked - self._answered > self._limit
            return f"{self._kept_by} has not answered for {minutes}: it hangs, or the way to it is lost" if lost else ""
        for rank in self._silent(self._beats, self._limit) if self._waiting or self._number in stuck else ():
            last = "it waited for the others" if doing[rank] == WAITS else doing[rank]
            return f"rank {rank} of {of} hangs: its process has given no sign of life for {minutes} ({last})"
        fading = self._silent(self._beats, self._limit / 2)  # a process that is stopped is called that, soon
        for rank in stuck if self._waiting else ():
            if doing[rank] != WAITS and rank not in fading:
                return f"rank {rank} of {of} hangs: it has done nothing for {minutes} ({doing[rank]})"
        if len(stuck) < of or fading:
            return ""
        if self._waiting:
            return f"the {of} processes have waited for each other for {minutes}: the way between them is lost"
        if all(said.startswith(STEP) for said in doing.values()):
            each = ", ".join(f"rank {rank}: {said}" for rank, said in doing.items())
            return f"the GPUs of {of} processes have waited for each other for {minutes}, or one of them hangs ({each})"
        return ""

    def _silent(self, of: dict[int, tuple[str, float]], limit: float) -> list[int]:
        return [rank for rank, (_, since) in of.items() if self._looked - since > limit]


def _key(rank: int) -> str:
    return f"wanlora/doing/{rank}"
