"""The sum over ranks has the bits of one process that accumulates, however often a parameter is used."""

import threading
from collections.abc import Callable

import pytest
import torch

from engine.parallel import ordered_sum
from engine.parallel.ordered_sum import OrderedSum, count

MICRO_BATCHES = 12
SHAPES = {"a": (7, 5), "b": (64, 3), "unused": (2, 2), "c": (1,)}


def parameters() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}


def backward(of: dict[str, torch.nn.Parameter], index: int) -> None:
    """Micro-batch `index`: one to three uses of each parameter, in sizes that round."""
    generator = torch.Generator().manual_seed(index)
    for use in range(1 + index % 3):
        for name in ("a", "b", "c"):
            if name == "c" and index % 2:  # not every micro-batch has every layer
                continue
            factor = torch.randn(SHAPES[name], generator=generator) * 10.0 ** (index % 5 - use)
            (of[name] * factor).sum().backward()


def together(ranks: int, work: Callable[[int, Callable[[object], list]], None]) -> None:
    """`work` of each rank in a thread of its own; what they hand over is given to all in order."""
    slots: list[object] = [None] * ranks
    barrier = threading.Barrier(ranks)

    def gather(rank: int, mine: object) -> list:
        slots[rank] = mine
        barrier.wait()
        out = list(slots)
        barrier.wait()
        return out

    threads = [
        threading.Thread(target=work, args=(rank, lambda x, rank=rank: gather(rank, x))) for rank in range(ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("piece", [2**24, 20])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_ranks_end_with_the_bits_of_one(ranks: int, piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ordered_sum, "PIECE", piece)
    alone = parameters()
    for index in range(MICRO_BATCHES):
        backward(alone, index)
    found: dict[int, dict[str, torch.nn.Parameter]] = {}

    def work(rank: int, gather: Callable[[object], list]) -> None:
        mine = parameters()
        total = OrderedSum(mine, gather)
        for first in range(0, MICRO_BATCHES, ranks):
            with total.kept_apart() as uses:
                backward(mine, first + rank)
            assert all(p.grad is None for p in mine.values())
            total.make_room(counts := gather(count(uses)))
            total.add(uses, counts)
        total.finish()
        found[rank] = mine

    together(ranks, work)
    for rank in range(ranks):
        for name, parameter in alone.items():
            got = found[rank][name].grad
            assert (got is None) == (parameter.grad is None)
            assert parameter.grad is None or torch.equal(got, parameter.grad), (rank, name)


def test_added_up_by_micro_batch_first_the_bits_would_differ():
    """So what each use gave has to be kept apart."""
    alone, by_batch = parameters(), parameters()
    sums: dict[str, torch.Tensor] = {}
    for index in range(MICRO_BATCHES):
        backward(alone, index)
        backward(by_batch, index)
        for name, parameter in by_batch.items():
            if parameter.grad is not None:
                sums[name] = sums[name] + parameter.grad if name in sums else parameter.grad
                parameter.grad = None
    assert any(not torch.equal(sums[name], alone[name].grad) for name in sums)


def test_a_zero_keeps_its_sign():
    parameter = torch.nn.Parameter(torch.ones(1))
    total = OrderedSum({"a": parameter}, lambda mine: [mine])
    with total.kept_apart() as uses:
        (parameter * torch.tensor([-0.0])).sum().backward()
    total.add(uses, [count(uses)])
    total.finish()
    assert parameter.grad is not None and torch.signbit(parameter.grad).item()


def test_room_that_is_not_there_shows_before_anything_is_sent():
    total = OrderedSum(parameters(), lambda mine: pytest.fail("sent"))
    with pytest.raises(RuntimeError, match=r"(?i)memory"):
        total.make_room([[0, 0, 0, 0], [2**50, 0, 0, 0]])  # what another rank has counts, too
