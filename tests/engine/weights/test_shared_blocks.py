"""One copy of an expert's blocks for all processes of a host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.weights import shared_blocks
from engine.weights.packed_blocks import layout_of
from engine.weights.shared_blocks import SharedBlocks, SharedMemory, loaded_by
from tests.helpers import ROOT
from tests.helpers.waiting import PATIENCE

BLOCKS, WIDTH = 4, 2**21  # of 4 MiB


def filled() -> tuple[SharedMemory, SharedBlocks]:
    """Blocks of two tensors, whose values are the number of the block."""
    memory = SharedMemory()
    weights, plain = {"to_q": (torch.zeros(WIDTH, dtype=torch.bfloat16),)}, {"bias": torch.zeros(3)}
    layout = layout_of(weights, plain)
    for number in reversed(range(BLOCKS)):  # in whatever order several threads come to it
        packed, rest = layout.views(memory.buffer(number, layout.bytes))
        packed["to_q"][0].fill_(number)
        rest["bias"].fill_(number)
    return memory, memory.blocks(layout)


def numbers(blocks: SharedBlocks) -> list[tuple[float, float]]:
    packed = blocks.packed(pinned=False)
    views = [packed.layout.views(buffer) for buffer in packed.buffers]
    return [(float(weights["to_q"][0].float().mean()), float(plain["bias"][2])) for weights, plain in views]


def test_what_one_process_has_packed_another_maps_without_copying():
    memory, blocks = filled()
    taken = SharedBlocks.taken(memory.offer(blocks.layout))
    memory.close()
    assert numbers(taken) == numbers(blocks) == [(float(n), float(n)) for n in range(BLOCKS)]
    blocks.packed(pinned=False).buffers[2].zero_()
    assert numbers(taken)[2] == (0.0, 0.0)


def test_what_is_no_longer_offered_is_an_error_that_says_so():
    memory, blocks = filled()
    offer = memory.offer(blocks.layout)
    memory.close()
    with pytest.raises(OSError, match=f"/proc/{os.getpid()}/fd"):
        SharedBlocks.taken(offer)


def test_memory_that_the_host_does_not_have_is_refused_before_it_is_touched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.system.pinned_memory.free_ram", lambda: 2**20)
    with pytest.raises(shared_blocks.HostMemoryRefused, match="are needed"):
        SharedMemory().buffer(0, 2**24)


@pytest.mark.parametrize(
    ("needed", "own", "loads"),
    [
        # apart: the first rank shows both in previews, each reads the one that it trains
        (
            {0: ["high_noise", "low_noise"], 1: ["low_noise"]},
            {0: "high_noise", 1: "low_noise"},
            {"high_noise": 0, "low_noise": 1},
        ),
        # all do everything: one each, at the same time
        (
            {n: ["high_noise", "low_noise"] for n in range(3)},
            dict.fromkeys(range(3)),
            {"high_noise": 0, "low_noise": 1},
        ),
        # the second of two hosts, low noise's
        ({2: ["low_noise"], 3: ["low_noise"]}, {2: "low_noise", 3: "low_noise"}, {"low_noise": 2}),
    ],
)
def test_each_expert_is_read_by_one_rank_of_the_host(needed, own, loads):
    assert loaded_by(needed, own) == loads


TAKES = """
import sys
from engine.weights.packed_blocks import layout_of
from engine.weights.shared_blocks import Offer, SharedBlocks
from tests.engine.weights.test_shared_blocks import BLOCKS, numbers, pss, filled
import torch
pid, descriptor = int(sys.argv[1]), int(sys.argv[2])
layout = layout_of({"to_q": (torch.zeros(int(sys.argv[3]), dtype=torch.bfloat16),)}, {"bias": torch.zeros(3)})
before = pss()
blocks = SharedBlocks.taken(Offer(pid, descriptor, BLOCKS, layout))
assert numbers(blocks) == [(float(n), float(n)) for n in range(BLOCKS)]
print(pss() - before, flush=True)
sys.stdin.read()
"""


def pss() -> int:
    """Bytes of memfd pages that this process has mapped, shared ones by its part."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = "wanlora-blocks" in line
        elif ours and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_two_processes_take_the_memory_of_one():
    memory, blocks = filled()
    one = pss()
    offer = memory.offer(blocks.layout)
    assert one >= BLOCKS * WIDTH * 2
    other = subprocess.Popen(
        [sys.executable, "-c", TAKES, str(offer.pid), str(offer.descriptor), str(WIDTH)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        assert theirs > 0 and pss() + theirs < 1.15 * one
    finally:
        other.communicate(timeout=PATIENCE)
    memory.close()
