"""The slot plan, as a pure function, and the ring that follows it."""

import pytest
import torch

from engine.executor.weight_ring import WeightRing, plan_loads


def replay(keys, visits, slots, held=None):
    """Run the plan against a model of the slots: at each visit its slot must hold its block."""
    content = list(held or [None] * slots)
    for i, (key, visit) in enumerate(zip(keys, visits, strict=True)):
        assert visit.key == key and visit.after < i
        if visit.load:
            content[visit.slot] = key
            assert all(v.slot != visit.slot for v in visits[visit.after + 1 : i]), (
                "a slot was reloaded before its last reader"
            )
        assert content[visit.slot] == key
    return content


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_every_visit_finds_its_block(slots):
    keys = [("e", i) for i in [*range(8), *reversed(range(8))]]
    replay(keys, plan_loads(keys, [None] * slots), slots)


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_the_turn_from_forward_to_backward_copies_nothing_again(slots):
    keys = [("e", i) for i in [*range(8), *reversed(range(8))]]
    loads = sum(v.load for v in plan_loads(keys, [None] * slots))
    assert loads == 16 - slots
    # A second pass starts with what the first left.
    left = replay(keys, plan_loads(keys, [None] * slots), slots)
    again = plan_loads(keys, left)
    replay(keys, again, slots, left)
    assert sum(v.load for v in again) == 16 - 2 * slots


def test_the_ring_reads_ahead_but_never_over_a_slot_in_use():
    masters = {
        ("e", i): (torch.full((4,), i, dtype=torch.uint8), torch.full((2,), 10 + i, dtype=torch.uint8))
        for i in range(6)
    }
    ring = WeightRing(6, 2, torch.device("cpu"))
    keys = [("e", i) for i in [*range(6), *reversed(range(6))]]
    for _ in range(2):
        ring.begin(keys, masters)
        for i, key in enumerate(keys):
            assert ring.take(i).tolist() == [key[1]] * 4 + [10 + key[1]] * 2
            ring.release(i)
