"""The ranks of a run as one of them sees them."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from engine.parallel import team
from engine.parallel.parts import ALONE, Rank
from presets.errors import UserError
from tests.helpers import ROOT
from tests.helpers.ports import free_port
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


def test_two_hosts_of_one_name_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = []
    for boot in ("a", "b"):
        (tmp_path / boot).write_text(f"{boot}\n")
        monkeypatch.setattr(team, "BOOT", tmp_path / boot)
        found += [team.this_host(), team.this_host()]
    assert found[0] == found[1] != found[2] == found[3]


HANGS = """
import os, sys, time
import torch
from engine.parallel import team
from engine.parallel.parts import Part, Rank

def lost(loss):
    print(loss.cause, flush=True)
    os._exit(3)

team.HANGS_SECONDS = 1.0
number = int(os.environ["RANK"])
parts = [Part(None, place, (0, 1)) for place in range(2)]
mine = team.Team(Rank(number, 2, number, 2), parts, torch.device("cpu"), lost)
if number == HANGING:
    mine.signs.give("step 7")
    time.sleep(3600)
WAIT
"""


@pytest.mark.parametrize(
    ("hanging", "wait"),
    [
        (0, 'mine.exchange("here")'),
        pytest.param(1, 'mine.exchange("here")', marks=pytest.mark.thorough),  # test_ranks has a second one
        (1, "mine.gather(torch.ones(1))"),  # which torch ends by itself as well
    ],
)
def test_a_rank_that_hangs_is_named_and_ends_with_the_one_that_waits_for_it(hanging: int, wait: str):
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HANGS.replace("HANGING", str(hanging)).replace("WAIT", wait)],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [3, 3]
    named = f"rank {hanging} of 2 hangs: it has done nothing for 0.0167 minutes (step 7)"
    assert said[1 - hanging].strip() == named
    if hanging == 0:  # whose store it is: there the other has left word, which is the first rank's event
        assert said[0].strip() == named
