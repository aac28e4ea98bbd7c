"""The sum over ranks has the bits of one process that accumulates, however often a parameter is used."""

import threading
from collections.abc import Callable

import pytest
import torch

from engine.parallel import ordered_sum
from engine.parallel.ordered_sum import OrderedSum
from tests.helpers.waiting import PATIENCE

MICRO_BATCHES = 12
SHAPES = {"a": (7, 5), "b": (64, 3), "unused": (2, 2), "c": (1,)}


def parameters() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}


def counts(index: int) -> list[int]:
    """How often micro-batch `index` uses each parameter, in their order. Not every one has every layer."""
    uses = 1 + index % 3
    return [uses, uses, 0, 0 if index % 2 else uses]


def backward(of: dict[str, torch.nn.Parameter], index: int) -> None:
    """Micro-batch `index`: one to three uses of each parameter, in sizes that round, the last parameter first."""
    generator = torch.Generator().manual_seed(index)
    for name, uses in reversed(list(zip(SHAPES, counts(index), strict=True))):
        for use in range(uses):
            factor = torch.randn(SHAPES[name], generator=generator) * 10.0 ** (index % 5 - use)
            (of[name] * factor).sum().backward()


def together(ranks: int, work: Callable[[int, Callable[[object], list]], None]) -> None:
    """`work` of each rank in a thread of its own; what they hand over is given to all in order."""
    slots: list[object] = [None] * ranks
    barrier = threading.Barrier(ranks, timeout=PATIENCE)

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


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("piece", [2**24, 20])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_ranks_end_with_the_bits_of_one(ranks: int, piece: int, ahead: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ordered_sum, "PIECE", piece)
    alone = parameters()
    for index in range(MICRO_BATCHES):
        backward(alone, index)
    found: dict[int, dict[str, torch.nn.Parameter]] = {}
    early: set[int] = set()  # ranks that have sent something while they computed

    def work(rank: int, gather: Callable[[object], list]) -> None:
        mine, computing = parameters(), False

        def noted(sent: torch.Tensor) -> list[torch.Tensor]:
            early.update([rank] if computing else [])
            return gather(sent)

        total = OrderedSum(mine, noted, rank)
        for first in range(0, MICRO_BATCHES, ranks):
            with total.kept_apart([counts(first + place) for place in range(ranks)], ahead=ahead):
                computing = True
                backward(mine, first + rank)
                computing = False
                total.send_rest()
            assert all(p.grad is None for p in mine.values())
        total.finish()
        found[rank] = mine

    together(ranks, work)
    assert early == (set(range(ranks)) if ahead else set())
    for rank in range(ranks):
        for name, parameter in alone.items():
            got = found[rank][name].grad
            assert (got is None) == (parameter.grad is None)
            assert parameter.grad is None or torch.equal(got, parameter.grad), (rank, name)


@pytest.mark.parametrize("error", [ValueError("a bug"), torch.OutOfMemoryError("none is left")], ids=type)
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_rank_that_fails_gives_zeros_for_what_it_has_not_sent(
    sent: int, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    """Of three parameters in pieces of their own. Memory runs out for what comes from the others, too."""
    monkeypatch.setattr(ordered_sum, "PIECE", 1)
    heard: dict[int, list[list[torch.Tensor]]] = {0: [], 1: []}

    def work(rank: int, gather: Callable[[object], list]) -> None:
        left = [sent]

        def limited(mine: torch.Tensor) -> list[torch.Tensor]:
            if rank == 1 and isinstance(error, torch.OutOfMemoryError) and not left[0]:
                left[0] = 3
                raise error
            left[0] -= 1
            heard[rank].append(gather(mine))
            return heard[rank][-1]

        def fail(_: torch.Tensor) -> None:
            if not left[0] and isinstance(error, ValueError):
                raise error

        mine = parameters()
        total = OrderedSum(mine, limited, rank)
        with total.kept_apart([[1, 1, 0, 1], [1, 1, 0, 1]], ahead=True):
            if rank == 0:
                backward(mine, 0)
                total.send_rest()
                return
            for parameter in mine.values():  # before its own gradient is sent
                parameter.register_hook(fail)
            with pytest.raises(type(error)):
                backward(mine, 0)
            total.send_rest(void=True)

    together(2, work)
    assert len(heard[0]) == len(heard[1]) == 3
    assert [bool(other.any()) for _, other in heard[0]] == [True] * sent + [False] * (3 - sent)
    assert all(mine.any() for mine, _ in heard[0])


def test_what_a_rank_that_fails_still_has_is_let_go_before_it_sends_zeros():
    sent: list[bool] = []

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        sent.append(bool(mine.any()))
        return [mine]

    of = parameters()
    total = OrderedSum(of, gather, 0)
    with total.kept_apart([counts(0)], ahead=False):
        backward(of, 0)
        total.send_rest(void=True)
    assert sent == [False]


def test_a_use_that_never_comes_changes_no_sum():
    of, alone = parameters(), parameters()
    total = OrderedSum(of, lambda mine: [mine], 0)
    with total.kept_apart([[1, 2, 1, 1]], ahead=True):
        backward(of, 0)
        total.send_rest()
    total.finish()
    backward(alone, 0)
    assert torch.equal(of["b"].grad, alone["b"].grad) and not of["unused"].grad.any()


def test_a_use_too_many_is_told_also_after_its_parameter_was_sent():
    of = parameters()
    total = OrderedSum(of, lambda mine: [mine], 0)
    with total.kept_apart([counts(0)], ahead=True):
        backward(of, 0)
        with pytest.raises(AssertionError, match="c is used more than 1 times"):
            backward(of, 0)


def test_after_an_exchange_that_has_broken_nothing_more_is_sent():
    calls: list[int] = []

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        calls.append(1)
        raise RuntimeError("NCCL error: Cuda failure 2 'out of memory'")

    of = parameters()
    total = OrderedSum(of, gather, 0)
    with total.kept_apart([counts(0)], ahead=False):
        backward(of, 0)
        for void in (False, True):
            with pytest.raises(RuntimeError, match="Cuda failure 2"):
                total.send_rest(void=void)
    assert len(calls) == 1


def test_what_the_others_have_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong as it is added up here."""
    monkeypatch.setattr(ordered_sum, "PIECE", 1)
    sent: list[int] = []

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        sent.append(len(mine))
        return [mine]

    of = parameters()
    total = OrderedSum(of, gather, 0)
    with total.kept_apart([[1, 1, 0, 1]], ahead=True):
        with monkeypatch.context() as broken, pytest.raises(TypeError):
            broken.setattr(torch, "_foreach_copy_", None)
            backward(of, 0)
        total.send_rest(void=True)
    assert sent == [1, 64 * 3, 7 * 5]


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
    total = OrderedSum({"a": parameter}, lambda mine: [mine], 0)
    with total.kept_apart([[1]], ahead=True):
        (parameter * torch.tensor([-0.0])).sum().backward()
        total.send_rest()
    total.finish()
    assert parameter.grad is not None and torch.signbit(parameter.grad).item()
