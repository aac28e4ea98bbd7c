"""Packed blocks that the processes of one host share: one of them reads and packs an expert, all map the same memory.

The memory is a file without a name (memfd): it counts against no /dev/shm, and the kernel frees it when the last
process that maps it has ended, however it ended. Each process page-locks the mapping for its own GPU.
"""

import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from engine.system.pinned_memory import FIX, HostMemoryRefused, lock, require_free
from engine.weights.packed_blocks import Layout, PackedBlocks
from presets.job.expert_schedule import Expert
from presets.text import human

PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Offer:
    """Where the blocks of one expert lie, for the other processes of the host."""

    pid: int
    descriptor: int  # of that process
    count: int
    layout: Layout


class SharedMemory:
    """Where one process packs an expert's blocks, for all of this host."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("wanlora-blocks")
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def buffer(self, number: int, size: int) -> torch.Tensor:
        """For block `number`. Raises HostMemoryRefused."""
        require_free(size)
        begin, length = number * _pages(size), _pages(size)
        try:
            os.posix_fallocate(self._descriptor, begin, length)  # else a full memory would show as SIGBUS
        except OSError as e:
            raise HostMemoryRefused(
                f"the system has no {human(size)} of RAM left", where="model.layer_offloading", fix=FIX
            ) from e
        mapped = mmap.mmap(self._descriptor, length, offset=begin)
        with self._lock:
            self._maps[number] = mapped
        return torch.frombuffer(mapped, dtype=torch.uint8, count=size)

    def blocks(self, layout: Layout) -> "SharedBlocks":
        return SharedBlocks([self._maps[number] for number in sorted(self._maps)], layout)

    def offer(self, layout: Layout) -> Offer:
        return Offer(os.getpid(), self._descriptor, len(self._maps), layout)

    def close(self) -> None:
        """No further process will ask for it; what is mapped stays."""
        with suppress(OSError):
            os.close(self._descriptor)


@dataclass(frozen=True)
class SharedBlocks:
    """The blocks of an expert in memory that other processes map as well."""

    maps: Sequence[mmap.mmap]
    layout: Layout

    @classmethod
    def taken(cls, offer: Offer) -> "SharedBlocks":
        """What another process of this host offers. Raises OSError."""
        file = os.open(f"/proc/{offer.pid}/fd/{offer.descriptor}", os.O_RDWR)
        try:
            length = _pages(offer.layout.bytes)
            return cls([mmap.mmap(file, length, offset=n * length) for n in range(offer.count)], offer.layout)
        finally:
            os.close(file)

    def packed(self, *, pinned: bool) -> PackedBlocks:
        """Them as one process has them, page-locked by it when asked, as long as it has them. Raises
        HostMemoryRefused."""
        buffers = [torch.frombuffer(mapped, dtype=torch.uint8, count=self.layout.bytes) for mapped in self.maps]
        for buffer in buffers if pinned else ():
            lock(buffer)
        return PackedBlocks(buffers, self.layout)


def loaded_by(needed: Mapping[int, Sequence[Expert]], own: Mapping[int, Expert | None]) -> dict[Expert, int]:
    """Which rank of a host loads each expert for all that need it (rank -> experts): one that trains it alone (`own`),
    and in turn where all do everything, so that both are read at the same time."""
    out: dict[Expert, int] = {}
    for number, expert in enumerate(dict.fromkeys(e for experts in needed.values() for e in experts)):
        ranks = [rank for rank, experts in needed.items() if expert in experts]
        ranks = [rank for rank in ranks if own[rank] == expert] or ranks
        out[expert] = ranks[number % len(ranks)]
    return out


def _pages(size: int) -> int:
    """Bytes of the whole pages that hold so many."""
    return -(-size // PAGE) * PAGE
