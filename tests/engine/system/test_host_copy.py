import pytest
import torch

from engine.system import host_copy
from engine.system.host_copy import HostCopy
from engine.system.pinned_memory import HostMemoryRefused


def state(*, scale: float = 1.0):
    """As optimizers have it: tensors of all kinds, in dicts and lists, and what is none."""
    return {
        "state": {0: {"step": torch.tensor(3.0 * scale), "codes": torch.arange(5, dtype=torch.uint8)}},
        "groups": [{"lr": 1e-4, "params": [0]}, torch.full((3, 7), 2.0 * scale, dtype=torch.bfloat16).t()],
        "average": None,
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b


def test_a_copy_is_the_state_as_it_was():
    here = state()
    copied = HostCopy(pinned=False).take(here).state()
    here["state"][0]["step"].add_(1)
    assert same(copied, state()) and not same(copied, here)


def test_the_next_copy_takes_the_place_of_the_one_before_and_may_be_larger():
    copies = HostCopy(pinned=False, least=1000)
    first = copies.take(state()).state()
    again = copies.take(state(scale=2.0)).state()
    assert same(again, state(scale=2.0)) and same(first, again)
    more = copies.take({"first": state(), "more": torch.ones(5000)}).state()
    assert same(more, {"first": state(), "more": torch.ones(5000)}) and same(again, state(scale=2.0))


def test_the_memory_of_later_copies_is_taken_with_the_first(monkeypatch):
    taken = []
    monkeypatch.setattr(host_copy, "host_buffer", lambda size, pinned: taken.append(size) or torch.empty(size).byte())
    copies = HostCopy(pinned=False, least=4096)
    copies.take([torch.ones(3)])
    copies.take([torch.ones(1000)])
    assert taken == [4096]


def test_memory_that_may_not_be_locked_is_taken_unlocked(monkeypatch):
    plain = host_copy.host_buffer

    def refused(size, *, pinned):
        if pinned:
            raise HostMemoryRefused("the limit is reached", locking=True)
        return plain(size, pinned=False)

    monkeypatch.setattr(host_copy, "host_buffer", refused)
    assert same(HostCopy(pinned=True).take(state()).state(), state())
    monkeypatch.setattr(host_copy, "host_buffer", lambda size, pinned: plain(2**60, pinned=False))
    copies = HostCopy(pinned=True)
    for _ in range(2):
        with pytest.raises(HostMemoryRefused):
            copies.take(state())
