"""Page-locked memory: what a system that locks little of it is asked for, told and left. CUDA's own call is faked."""

from types import SimpleNamespace

import pytest
import torch

from engine.system import pinned_memory
from engine.system.pinned_memory import PIECE, HostMemoryRefused, host_buffer, lockable_bytes
from engine.weights.load_expert import _reading_buffer


class Locks:
    """CUDA's page-locking, which refuses more than `most` bytes at a time."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, {}

    def cudart(self):
        return SimpleNamespace(cudaHostRegister=self._lock, cudaHostUnregister=self._unlock)

    def _lock(self, address: int, size: int, flags: int) -> int:
        if sum(self.held.values()) + size > self.most:
            return 2  # out of memory
        self.held[address] = size
        return 0

    def _unlock(self, address: int) -> None:
        del self.held[address]


@pytest.fixture
def locks(monkeypatch):
    def most(size: int) -> Locks:
        made = Locks(size)
        monkeypatch.setattr(torch.cuda, "cudart", made.cudart)
        monkeypatch.setattr(pinned_memory, "_forget_refusal", lambda: None)
        return made

    return most


def test_a_trial_finds_how_much_may_be_locked_and_lets_all_go(locks, monkeypatch):
    monkeypatch.setattr(pinned_memory, "PIECE", 2**20)
    held = locks(5 * 2**20 + 7)
    assert lockable_bytes(100 * 2**20) == 4 * 2**20, "a fifth is kept back"
    assert held.held == {}
    assert lockable_bytes(3 * 2**20) == 3 * 2**20 and held.held == {}
    locks(0)
    assert lockable_bytes(100 * 2**20) == 0
    assert PIECE == 2**28


@pytest.mark.parametrize("wsl", [False, True])
def test_a_refusal_to_lock_is_no_lack_of_memory_and_names_wsl(locks, monkeypatch, wsl):
    locks(10)
    monkeypatch.setattr(pinned_memory, "is_wsl", lambda: wsl)
    assert host_buffer(10, pinned=True).numel() == 10
    with pytest.raises(HostMemoryRefused, match="would not lock") as refused:
        host_buffer(2**20, pinned=True)
    assert refused.value.locking and ("WSL2" in refused.value.what) == (".wslconfig" in refused.value.fix) == wsl
    assert "ulimit" not in refused.value.fix
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: 2**28)
    with pytest.raises(HostMemoryRefused) as refused:
        host_buffer(2**20, pinned=True)
    assert not refused.value.locking


def test_buffers_to_read_into_do_without(locks):
    locks(2**20)
    first = _reading_buffer(2**20, pinned=True)
    assert _reading_buffer(2**20, pinned=True).numel() == first.numel()


def test_a_large_buffer_is_locked_as_a_whole_until_nothing_uses_it(locks):
    held = locks(2**30)
    size = pinned_memory.HUGE + 5
    buffer = host_buffer(size, pinned=True)
    assert held.held == {buffer.data_ptr(): size} and buffer.numel() == size
    view = buffer[-5:].fill_(7)
    del buffer
    assert list(held.held.values()) == [size] and view.tolist() == [7] * 5
    del view
    assert held.held == {}
