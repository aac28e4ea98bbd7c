"""Word between the ranks before there is a team, of whether there is anything to do. The first rank alone looks at the
job, and each at its own GPU: where one of them refuses, all end at once, with its message. Who dies later is
engine.parallel.lost_ranks's."""

import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from engine.parallel.parts import Rank
from presets.errors import UserError

WORD = "wanlora/word"  # of the first rank, in the store
REFUSED = "wanlora/refused"  # one behind it, and why
JOIN = timedelta(minutes=10)  # for the first rank to be there: it looks at the clips before
JOIN_FIRST = timedelta(minutes=2)  # for the others to be there for the first rank, which has had more to do
LOOK_SECONDS = 0.1


class Refused(Exception):
    """The first rank begins no attempt; its reason. `code`: to exit with."""

    def __init__(self, code: int, why: str) -> None:
        self.code = code
        super().__init__(why)


def let_begin(store: dist.Store, rank: Rank, limit: timedelta) -> None:
    """By the first rank: wait until all others are there, then the attempt begins. Raises UserError where one of them
    refuses, which ends the others, and RuntimeError at the limit."""
    until, waiting = time.monotonic() + limit.total_seconds(), list(range(1, rank.world))
    while waiting:
        if store.check([REFUSED]):
            number, code, why = store.get(REFUSED).decode().split("\0")
            _tell(store, rank, int(code), why)
            raise UserError(why, where=f"rank {number}")
        waiting = [number for number in waiting if not store.check([_there(number)])]
        if waiting and time.monotonic() > until:
            raise RuntimeError(f"rank {waiting[0]} did not come within {limit.total_seconds():.0f} s")
        if waiting:
            time.sleep(LOOK_SECONDS)
    store.set(WORD, "")


def await_word(store: dist.Store, rank: Rank) -> None:
    """By the others: wait for it. Raises Refused."""
    store.set(_there(rank.number), "1")
    said = store.get(WORD).decode()
    if said:
        code, why = said.split("\0")
        store.set(_heard(rank.number), "1")
        raise Refused(int(code), why)


def refuse(rank: Rank, code: int, why: str) -> None:
    """By the first rank: no attempt begins. Waits until the others know: the store is in this process."""
    _not_to_be_stopped()
    print(f"wanlora: the other processes ({rank.world - 1}) are told", file=sys.stderr, flush=True)
    with suppress(RuntimeError, ValueError):  # they were never started: there is nobody to tell
        store, *_ = next(dist.rendezvous("env://", timeout=JOIN_FIRST))
        _tell(store, rank, code, why)


def refuse_own(rank: Rank, code: int, why: str) -> None:
    """By one behind the first: it cannot take part. Waits for the first to be there, which ends all the others."""
    _not_to_be_stopped()
    print(f"wanlora: rank {rank.number}: {why}", file=sys.stderr, flush=True)
    with suppress(RuntimeError, ValueError):  # the first has never begun, or ends by itself
        store, *_ = next(dist.rendezvous("env://", timeout=JOIN))
        store.set(_heard(rank.number), "1")
        store.set(REFUSED, "\0".join([str(rank.number), str(code), why]))
        store.wait([WORD], JOIN)


def _tell(store: dist.Store, rank: Rank, code: int, why: str) -> None:
    """Have the others know, and wait until they do. Raises RuntimeError where one does not hear of it."""
    store.set(WORD, f"{code}\0{why}")
    store.wait([_heard(other) for other in range(1, rank.world)], JOIN_FIRST)


def _not_to_be_stopped() -> None:
    """There is nothing to lose any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _there(rank: int) -> str:
    return f"wanlora/there/{rank}"


def _heard(rank: int) -> str:
    return f"wanlora/heard/{rank}"
