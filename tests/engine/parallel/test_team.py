"""The ranks of a run as one of them sees them."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from engine.parallel import team
from engine.parallel.parts import ALONE, Rank
from presets.errors import UserError
from tests.helpers.ports import free_port
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE


def test_a_first_rank_that_stays_alone_gives_up_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch):
    port = str(free_port())
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(team, "JOIN_FIRST", timedelta(seconds=1))
    with pytest.raises(UserError, match=r"the 2 processes .* did not find each other.*unset WORLD_SIZE"):
        team.Team(Rank(0, 2, 0, 2), [ALONE, ALONE], torch.device("cpu"), lambda loss: None)


def test_a_store_that_has_gone_with_torchrun_ends_no_rank_before_all_meet():
    class Gone:
        def check(self, *_: object) -> bool:
            raise RuntimeError("Connection reset by peer")

        set = check

    mine = object.__new__(team.Team)
    mine._store, mine.part = Gone(), ALONE
    mine.halt()
    assert not mine.halted()


class Unwatched:
    """In place of signs and of a watch: a test in which nobody waits or dies."""

    waiting = staticmethod(nullcontext)

    def wait(self, seconds: float) -> None:
        raise AssertionError("it looks for who has died")


@pytest.mark.parametrize("own", [torch.OutOfMemoryError("on purpose"), torch.AcceleratorError("CUDA error: illegal")])
def test_what_befalls_this_rank_s_own_gpu_in_an_exchange_is_nobody_s_death(own: Exception):
    """To look for who has died takes ten seconds, and what is found is no way to another host that has broken."""
    mine = object.__new__(team.Team)
    mine.signs, mine._watch = Unwatched(), Unwatched()  # type: ignore[assignment]

    def collective() -> None:
        raise own

    with pytest.raises(type(own)):
        mine.ask(collective)


def test_two_hosts_of_one_name_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = []
    for boot in ("a", "b"):
        (tmp_path / boot).write_text(f"{boot}\n")
        monkeypatch.setattr(team, "BOOT", tmp_path / boot)
        found += [team.this_host(), team.this_host()]
    assert found[0] == found[1] != found[2] == found[3]


RANK = """
import os, signal, sys, threading, time
import psutil
import torch
import torch.distributed as dist
from engine.parallel import signs, team
from engine.parallel.parts import Part, Rank
from engine.system.host_copy import Copied

def lost(loss):
    print(loss.cause, flush=True)
    os._exit(3)

signs.LOOK_SECONDS = 0.1
number = int(os.environ["RANK"])
parts = [Part(None, place, (0, 1), 2) for place in range(2)]  # of one clip
mine = team.Team(Rank(number, 2, number, 2), parts, torch.device("cpu"), lost)
mine.signs._limit = 2.0  # both are there by now, however busy the machine
"""
HANGS = """
if number == HANGING:
    mine.signs.give("step 7")
    time.sleep(3600)
WAIT
"""
# The second is stopped once it has said that it waits. The first sends nothing before that; what the second has sent
# may be with the first already, so it is the next exchange that cannot end.
STOPS = """
def stop():
    while not mine.signs._waiting:
        time.sleep(0.01)
    beat = mine.signs._beat
    while mine.signs._beat < beat + 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGSTOP)

second = psutil.Process(mine.exchange(os.getpid())[1])
if number == 1:
    threading.Thread(target=stop).start()
else:
    while second.status() != psutil.STATUS_STOPPED:
        mine.signs.give()
        time.sleep(0.01)
for _ in range(2):
    WAIT
"""
TELL, GRADIENTS = 'mine.exchange("here")', "mine.gather(torch.ones(1))"
TOKENS = "mine.ask(lambda: dist.all_to_all_single(torch.ones(2), torch.ones(2), group=mine.clip_group))"
CLIP = "mine.hand(torch.ones(1), 1)"
LEARNT = """mine.receive(1, lambda size: torch.empty(size, dtype=torch.uint8)) if number == 0 else (
        mine.send(Copied({}, torch.zeros(8, dtype=torch.uint8))), mine.next_order())"""


@dataclass
class Started:
    """One of the two, and the file with what it has said."""

    process: BaseProcess
    out: Path

    def ended(self) -> int | None:
        """Its exit code."""
        self.process.join(PATIENCE)
        return self.process.exitcode

    def said(self) -> str:
        return self.out.read_text().strip()


Two = Callable[[str], list[Started]]


def run_rank(program: str, given: dict[str, str], out: Path) -> None:
    """In a process of its own."""
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
    os.environ |= given
    exec(RANK + program, {})


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    """Starts a program as two ranks: forks of a process that has torch imported, which would take each of them some
    seconds. What still runs after the test is killed."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__])
    started: list[Started] = []

    def start(program: str) -> list[Started]:
        given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        for number in range(2):
            out = tmp_path / f"rank-{number}"
            process = forks.Process(target=run_rank, args=(program, {**given, "RANK": str(number)}, out))
            process.start()
            started.append(Started(process, out))
        return started

    yield start
    for one in started:
        one.process.kill()
        one.process.join(PATIENCE)


@pytest.mark.parametrize(
    ("hanging", "wait"),
    [
        (0, TELL),
        pytest.param(1, TELL, marks=pytest.mark.thorough),  # test_ranks has a second one
        (1, GRADIENTS),  # which torch ends by itself as well
    ],
)
def test_a_rank_that_hangs_is_named_and_ends_with_the_one_that_waits_for_it(two: Two, hanging: int, wait: str):
    ranks = two(HANGS.replace("HANGING", str(hanging)).replace("WAIT", wait))
    assert [rank.ended() for rank in ranks] == [3, 3]
    named = f"rank {hanging} of 2 hangs: it has done nothing for 0.0333 minutes (step 7)"
    assert ranks[1 - hanging].said() == named
    if hanging == 0:  # whose store it is: there the other has left word, which is the first rank's event
        assert ranks[0].said() == named


@pytest.mark.parametrize("wait", [TELL, TOKENS, *thorough(GRADIENTS, CLIP, LEARNT)])
def test_a_rank_that_is_stopped_in_the_middle_of_an_exchange_is_named(two: Two, wait: str):
    first, _ = two(STOPS.replace("WAIT", wait))
    assert first.ended() == 3
    no_sign = "its process has given no sign of life for 0.0333 minutes (it waited for the others)"
    assert first.said() == f"rank 1 of 2 hangs: {no_sign}"


NO_ROOM = """
from engine.parallel.orders import Show
from engine.system.pinned_memory import HostMemoryRefused

def refused(size):
    raise HostMemoryRefused("2 GiB of RAM are needed")

if number == 1:
    mine.next_order()
    mine.send(Copied({}, torch.zeros(10**7, dtype=torch.uint8)))
    mine.next_order()
try:
    with mine.at_work(Show()):
        mine.receive(1, refused)
except team.RankFailed as e:
    print(e, flush=True)
mine.end(1)
"""


def test_a_first_rank_without_room_for_what_the_other_has_learnt_ends_both_with_that_cause(two: Two):
    """The other is sending it, and hears no order meanwhile."""
    ranks = two(NO_ROOM)
    assert [rank.ended() for rank in ranks] == [0, 3], [rank.said() for rank in ranks]
    assert ranks[0].said() == "rank 0, for what rank 1 has learnt: 2 GiB of RAM are needed"
