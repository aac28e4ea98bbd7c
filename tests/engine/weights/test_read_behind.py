"""Blocks that threads read while something else is done."""

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import pytest
import torch

from engine.runfolder.control import StopRequested
from engine.system import pinned_memory
from engine.system.pinned_memory import HostMemoryRefused
from engine.system.placement import Placement
from engine.weights import weight_cache
from engine.weights.model_files import open_model_files
from engine.weights.read_behind import ReadBehind, read_in_turn
from engine.weights.weight_cache import find_cached, read_behind
from presets.caches.weight_cache import list_cache
from tests.engine.weights.test_weight_cache import CPU, Cache, cache, damage, same, wide  # noqa: F401  (fixtures)
from tests.helpers.waiting import PATIENCE


class Disk:
    """Gives a block when it is let."""

    def __init__(self, count: int = 3) -> None:
        self.let = [threading.Event() for _ in range(count)]
        self.read: list[int] = []

    def __call__(self, block: int) -> torch.Tensor:
        assert self.let[block].wait(PATIENCE)
        self.read.append(block)
        return torch.tensor([block])


def never(error: Exception) -> Sequence[torch.Tensor]:
    raise AssertionError(error)


def of(read: Callable[[int], torch.Tensor], **more) -> ReadBehind:
    return ReadBehind(3, read, **{"waiting": lambda block: None, "instead": never, **more})


def test_a_block_is_there_before_the_next_is_read():
    disk, other = Disk(), Disk()
    first, second = of(disk), of(other)
    (thread,) = read_in_turn([first, second], 1)
    other.let[0].set()
    for block in range(3):
        assert disk.read == list(range(block)) and other.read == []
        disk.let[block].set()
        assert first[block].tolist() == [block]
    for event in other.let:
        event.set()
    assert len(second) == 3 and [t.tolist() for t in second] == [[0], [1], [2]]
    thread.join(PATIENCE)
    assert not thread.is_alive() and other.read == [0, 1, 2]


def test_who_waits_says_so_and_may_leave():
    disk, asked = Disk(), []

    def waiting(block: int) -> None:
        asked.append(block)
        if len(asked) == 2:
            raise StopRequested

    blocks = of(disk, waiting=waiting)
    read_in_turn([blocks], 1)
    with pytest.raises(StopRequested):
        blocks[1]
    for event in disk.let:
        event.set()
    assert asked == [1, 1] and blocks[1].tolist() == [1]


def test_what_nobody_wants_any_more_is_not_read():
    disk = Disk()
    blocks = of(disk)
    (thread,) = read_in_turn([blocks], 1)
    del blocks
    gc.collect()
    for event in disk.let:
        event.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and disk.read in ([], [0])


def test_an_error_reaches_who_asks_and_all_is_made_in_another_way():
    made: list[Exception] = []

    def read(block: int) -> torch.Tensor:
        if block == 1:
            raise OSError("gone")
        return torch.tensor([block])

    def instead(error: Exception) -> Sequence[torch.Tensor]:
        made.append(error)
        if len(made) == 1:
            raise StopRequested
        return [torch.tensor([10 + block]) for block in range(3)]

    blocks = of(read, instead=instead)
    read_in_turn([blocks], 2)
    assert blocks[0].tolist() == [0]
    for _ in range(2):
        if not made:
            with pytest.raises(StopRequested):
                blocks[1]
    assert [blocks[n].tolist() for n in (1, 0, 2)] == [[11], [10], [12]]
    assert len(made) == 2 and made[0] is made[1] and str(made[0]) == "gone"


ENDS = """
import sys, threading, time
import torch
from engine.weights.read_behind import ReadBehind, read_in_turn
begun = threading.Event()
def read(block):
    print("begin", block, flush=True)
    begun.set()
    time.sleep(0.5)
    print("end", block, flush=True)
    return torch.zeros(1)
blocks = ReadBehind(50, read, waiting=lambda block: None, instead=lambda error: [])
read_in_turn([blocks], 1)
begun.wait()
sys.exit(75)
"""


def test_a_process_that_ends_finishes_the_block_that_is_being_read_and_no_other():
    """Python takes the lock away from a thread that goes on, and torch's code ends the process as a crash by that."""
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr) == (75, "")
    assert ended.stdout.split("\n")[:2] == ["begin 0", "end 0"] and ended.stdout.count("begin") < 10


def behind(cache: Cache, base, *, pinned=False):  # noqa: F811
    """Both experts as they are read behind, from a cache that holds both."""
    source, placement = open_model_files(base), Placement(CPU, torch.bfloat16, pinned=pinned)
    cache.warnings.clear()
    cache.texts.clear()
    files = [
        find_cached(
            source,
            expert,
            "float8",
            torch.bfloat16,
            folder=cache.folder,
            load=lambda placement, expert=expert: cache.load(base, expert, pinned=placement.pinned),
        )
        for expert in ("low_noise", "high_noise")
    ]
    assert None not in files
    return read_behind(
        files, placement, progress=lambda done, total, text: cache.texts.add(text), warn=cache.warnings.append
    )


def test_both_experts_are_read_as_they_were_packed(cache, wide):  # noqa: F811
    made = {expert: cache.load(wide, expert) for expert in ("high_noise", "low_noise")}
    read = behind(cache, wide)
    assert all(same(made[expert], read[expert]) for expert in made) and cache.warnings == []


def test_no_cache_file_is_none(cache, wide, tmp_path):  # noqa: F811
    def find():
        source = open_model_files(wide)
        return find_cached(source, "high_noise", "float8", torch.bfloat16, folder=cache.folder, load=None)

    assert find() is None
    cache.load(wide)
    assert find() is not None
    damage(list_cache(cache.folder)[0].path, 16)
    assert find() is None


def test_a_damaged_block_is_found_when_it_is_asked_for_and_the_file_made_anew(cache, wide):  # noqa: F811
    made = {expert: cache.load(wide, expert) for expert in ("high_noise", "low_noise")}
    entry = next(e for e in list_cache(cache.folder) if e.about and e.about.expert == "high_noise")
    damage(entry.path, entry.about.begin(1))
    read = behind(cache, wide)
    assert torch.equal(read["high_noise"].buffers[0], made["high_noise"].buffers[0]) and cache.warnings == []
    assert same(made["low_noise"], read["low_noise"]) and cache.warnings == []
    warnings: list[str] = []
    cache.warnings = warnings
    first = read["high_noise"].buffers[1]
    assert torch.equal(first, made["high_noise"].buffers[1])
    assert same(made["high_noise"], read["high_noise"]) and cache.hits(wide)


def test_what_cannot_be_locked_lies_in_plain_memory_with_one_warning(cache, wide, monkeypatch):  # noqa: F811
    made = {expert: cache.load(wide, expert) for expert in ("high_noise", "low_noise")}

    def refused(buffer: torch.Tensor) -> None:
        raise HostMemoryRefused("the system would not lock it", locking=True)

    monkeypatch.setattr(weight_cache, "lock", refused)
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: 2**40)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    read = behind(cache, wide, pinned=True)
    assert all(same(made[expert], read[expert]) for expert in made)
    assert len(cache.warnings) == 1 and "plain memory" in cache.warnings[0]


def test_room_for_all_of_them_is_asked_for_before_one_is_read(cache, wide, monkeypatch):  # noqa: F811
    made = [cache.load(wide, expert) for expert in ("high_noise", "low_noise")]
    need = sum(len(blocks.buffers) * blocks.layout.bytes for blocks in made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: pinned_memory.LEAST + need - 1)
    with pytest.raises(HostMemoryRefused) as refusal:
        behind(cache, wide, pinned=True)
    assert not refusal.value.locking


def test_memory_that_is_refused_for_a_moment_is_asked_for_again(cache, wide, monkeypatch):  # noqa: F811
    made = {expert: cache.load(wide, expert) for expert in ("high_noise", "low_noise")}
    asked: list[int] = []
    room = weight_cache.host_buffer

    def refused_once(size: int, *, pinned: bool) -> torch.Tensor:
        asked.append(size)
        if len(asked) == 2:
            raise HostMemoryRefused("no RAM for a moment")
        return room(size, pinned=pinned)

    monkeypatch.setattr(weight_cache, "host_buffer", refused_once)
    read = behind(cache, wide)
    assert all(same(made[expert], read[expert]) for expert in made)
    assert cache.warnings == [] and cache.hits(wide)  # the file is whole
