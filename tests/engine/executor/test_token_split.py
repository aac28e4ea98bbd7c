"""Processes that share a clip come to what one makes of it: prediction and loss, and gradients that add up to its."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.executor.token_split import TokenSplit, run_lengths
from tests.helpers.training.plain import attach, packed, small_expert, streamed
from tests.helpers.waiting import PATIENCE

BLOCKS, RANKS = 3, 2
X = torch.randn(2, 36, 3, 6, 6, generator=torch.Generator().manual_seed(1))  # 27 tokens: an odd number
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
TARGET = torch.randn(2, 16, 3, 6, 6, generator=torch.Generator().manual_seed(3))
MASK = torch.rand(2, 1, 3, 6, 6, generator=torch.Generator().manual_seed(4))
T = torch.tensor([900.0, 300.0])
# 28 rows are those of the rank that has a token more
PLANS: list[dict] = [
    {},
    {"chunk": 5},
    {"resident": 3, "kept": 1},
    {"resident": 3, "kept": 1, "also_kept": ((28, 3),), "activations": "device"},
]


def found(
    split: TokenSplit | None, dtype: torch.dtype = torch.float32, plans: Sequence[dict] = PLANS
) -> list[dict[str, torch.Tensor]]:
    """What each plan makes of the clip."""
    model = small_expert(BLOCKS)
    parameters = attach(model, "high_noise", rank=4, alpha=2, seed=1, strong=True)
    for name, parameter in model.named_parameters():
        if (
            dtype != torch.float32
            and "lora_" not in name
            and not set(name.split(".")) & set(model._keep_in_fp32_modules)
        ):
            parameter.data = parameter.data.to(dtype)
    weights = packed(model, "high_noise", parameters, scaling=0.5)
    x, text = X.to(dtype), TEXT.to(dtype)
    out = []
    for plan in plans:
        run = streamed(weights, **plan)
        for parameter in parameters.values():
            parameter.grad = None
        loss = run.forward_backward(
            x, T, text, lambda got: ((got.float() - TARGET).square() * MASK).mean(), strength=0.5, split=split
        )
        grads = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        out.append({"loss": loss, "prediction": run.predict(x, T, text, split=split), **grads})
    return out


def rank(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    limit = timedelta(seconds=PATIENCE)  # the other may have died before it was there
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS, timeout=limit)
    try:
        split = TokenSplit(dist.group.WORLD, number, RANKS, lambda collective: collective())
        first = found(split)
        again = found(split)
        in_bf16 = found(split, torch.bfloat16, PLANS[:1])
    finally:
        dist.destroy_process_group()
    alike = all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    torch.save((alike, [*first, *in_bf16]), folder / f"{number}.pt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bool, list[dict[str, torch.Tensor]]]]:
    """One of them is this process, which has all imported that takes the other some seconds."""
    folder = tmp_path_factory.mktemp("split")
    other = mp.get_context("spawn").Process(target=rank, args=(1, folder))
    other.start()
    try:
        rank(0, folder)
    finally:
        other.join()
    assert other.exitcode == 0
    return [torch.load(folder / f"{number}.pt") for number in range(RANKS)]


@pytest.fixture(scope="module")
def alone() -> list[dict[str, torch.Tensor]]:
    return found(None)


@pytest.mark.process
@pytest.mark.parametrize("plan", range(len(PLANS)), ids=[str(plan) for plan in PLANS])
def test_two_ranks_make_of_a_clip_what_one_makes(shared, alone, plan: int):
    one, ranks = alone[plan], [of_rank[plan] for _, of_rank in shared]
    for name, expected in one.items():
        if name in ("loss", "prediction"):
            assert torch.equal(ranks[0][name], ranks[1][name])
            torch.testing.assert_close(ranks[0][name], expected, rtol=1e-5, atol=1e-6)
        else:
            total = ranks[0][name] + ranks[1][name]
            assert (total - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.process
def test_in_bf16_two_ranks_are_as_far_from_fp32_as_one_process_is(shared, alone):
    """Gradients of parts of a clip are rounded once more, each before it is added: no more than that. Together they are
    no further from one process than it is from itself with its tokens in chunks."""
    one, chunks = found(None, torch.bfloat16, PLANS[:2])
    exact = alone[0]
    names = [name for name in exact if name not in ("loss", "prediction")]
    two = {name: sum(of_rank[-1][name].double() for _, of_rank in shared) for name in names}

    def apart(a: dict, b: dict) -> float:
        x, y = (torch.cat([of[name].double().flatten() for name in names]) for of in (a, b))
        return float((x - y).norm() / y.norm())

    assert 1e-3 < apart(one, exact) < 3e-2
    assert apart(two, exact) < 1.2 * apart(one, exact)
    assert apart(two, one) < 1.5 * apart(chunks, one)
    assert abs(float(shared[0][1][-1]["loss"] / one["loss"]) - 1) < 1e-4


@pytest.mark.process
def test_the_same_twice_gives_the_same_bits(shared):
    assert all(alike for alike, _ in shared)


@pytest.mark.parametrize(("tokens", "ranks", "lengths"), [(27, 2, [14, 13]), (8, 4, [2, 2, 2, 2]), (7, 3, [3, 2, 2])])
def test_tokens_are_as_even_as_they_go(tokens: int, ranks: int, lengths: list[int]):
    assert run_lengths(tokens, ranks) == lengths
