"""Which buffer serves which visit, as a pure function, and the ring that follows it."""

import pytest
import torch

from engine.executor.weight_ring import WeightRing, plan_loads


def replay(keys, visits, count, held=None):
    """Run the plan against a model of the buffers: at each visit its buffer must hold its block."""
    content = list(held or [None] * count)
    for i, (key, visit) in enumerate(zip(keys, visits, strict=True)):
        assert visit.key == key and visit.after < i
        if visit.load:
            content[visit.buffer] = key
            assert all(v.buffer != visit.buffer for v in visits[visit.after + 1 : i]), (
                "a buffer was reloaded before its last reader"
            )
        assert content[visit.buffer] == key
    return content


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_visit_finds_its_block(count):
    keys = [("e", i) for i in [*range(8), *reversed(range(8))]]
    replay(keys, plan_loads(keys, [None] * count), count)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_turn_from_forward_to_backward_copies_nothing_again(count):
    keys = [("e", i) for i in [*range(8), *reversed(range(8))]]
    loads = sum(v.load for v in plan_loads(keys, [None] * count))
    assert loads == 16 - count
    # A second pass starts with what the first left.
    left = replay(keys, plan_loads(keys, [None] * count), count)
    again = plan_loads(keys, left)
    replay(keys, again, count, left)
    assert sum(v.load for v in again) == 16 - 2 * count


def test_the_ring_reads_ahead_but_never_over_a_buffer_in_use():
    pieces = {
        ("e", i): (torch.full((4,), i, dtype=torch.uint8), torch.full((2,), 10 + i, dtype=torch.uint8))
        for i in range(6)
    }
    ring = WeightRing(6, 2, torch.device("cpu"))
    keys = [("e", i) for i in [*range(6), *reversed(range(6))]]
    for _ in range(2):
        ring.begin(keys, pieces.__getitem__)
        for i, key in enumerate(keys):
            assert ring.take(i).tolist() == [key[1]] * 4 + [10 + key[1]] * 2
            ring.release(i)
