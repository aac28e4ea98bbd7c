"""Word from the first rank, to those that wait to find it, whether there is anything to do: it alone looks at the job.
Where it refuses, they end at once, for the same reason. Who dies later is engine.parallel.lost_ranks's."""

import signal
import sys
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from engine.parallel.parts import Rank

WORD = "wanlora/word"  # in the store
JOIN_FIRST = timedelta(minutes=2)  # for the others to be there for the first rank, which has had more to do


class Refused(Exception):
    """The first rank begins no attempt; its reason. `code`: to exit with."""

    def __init__(self, code: int, why: str) -> None:
        self.code = code
        super().__init__(why)


def let_begin(store: dist.Store) -> None:
    """By the first rank: the attempt begins."""
    store.set(WORD, "")


def await_word(store: dist.Store, rank: Rank) -> None:
    """By the others: wait for it. Raises Refused."""
    said = store.get(WORD).decode()
    if said:
        code, why = said.split("\0")
        store.set(_key(rank.number), "1")
        raise Refused(int(code), why)


def refuse(rank: Rank, code: int, why: str) -> None:
    """By the first rank: no attempt begins. Waits until the others know: the store is in this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # there is nothing to lose any more
    print(f"wanlora: the other processes ({rank.world - 1}) are told", file=sys.stderr, flush=True)
    with suppress(RuntimeError, ValueError):  # they were never started: there is nobody to tell
        store, *_ = next(dist.rendezvous("env://", timeout=JOIN_FIRST))
        store.set(WORD, f"{code}\0{why}")
        store.wait([_key(other) for other in range(1, rank.world)], JOIN_FIRST)


def _key(rank: int) -> str:
    return f"wanlora/heard/{rank}"
