"""Fifty optimizer steps, the experts taking turns: every plan ends in the same LoRA, and a switch of experts moves
nothing."""

import pytest
import torch

from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.executor.weight_ring import WeightRing
from engine.training.optimizer import clip_gradients
from engine.wan import attention
from presets.planner.plan import Plan
from tests.helpers.training.plain import CPU, attach, packed, small_expert

pytestmark = pytest.mark.process  # it trains

BLOCKS, STEPS = 4, 50
RESIDENT = {"resident": BLOCKS, "slots": 0, "activations": "device"}


def expert(name: str, seed: int) -> ExpertWeights:
    model = small_expert(BLOCKS, seed=seed)
    return packed(model, name, attach(model, name, rank=2, alpha=2, seed=seed, strong=True), scaling=1.0)


def train(plan: Plan, *, switch_every: int = 1, steps: int = STEPS) -> list[torch.Tensor]:
    """Both LoRAs after `steps` of AdamW on two terms, batch 2, two bucket sizes."""
    experts = [expert("high_noise", 0), expert("low_noise", 1)]
    resources = ExecutorResources(plan, attention.CPU, experts[0].block_bytes, CPU)
    runs = [BlockExecutor(weights, resources) for weights in experts]
    parameters = [[p for lora in w.lora for pair in lora.values() for p in pair] for w in experts]
    optimizers = [torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2) for p in parameters]
    g = torch.Generator().manual_seed(7)
    for step in range(steps):
        turn = step // switch_every % 2
        height = 4 if step % 3 else 2
        x, text, other = (torch.randn(shape, generator=g) for shape in ((2, 36, 1, height, 6), (2, 5, 32), (2, 5, 32)))
        t, target = torch.rand(2, generator=g) * 1000, torch.randn(2, 16, 1, height, 6, generator=g)
        runs[turn].forward_backward(x, t, text, lambda y, target=target: (y - target).square().mean())
        base = runs[turn].predict(x, t, other, strength=0.0)
        runs[turn].forward_backward(x, t, other, lambda y, base=base: (y - base).square().mean())
        clip_gradients(parameters[turn], 1.0)
        optimizers[turn].step()
        optimizers[turn].zero_grad(set_to_none=True)
    return [p.detach() for group in parameters for p in group]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors of a few kilobytes: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resident() -> list[torch.Tensor]:
    return train(Plan(compiled=False, **RESIDENT))


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({}, marks=pytest.mark.thorough),
        pytest.param({"resident": 2, "kept": 1, "slots": 1}, marks=pytest.mark.thorough),
        pytest.param({"activations_on_device": 3}, marks=pytest.mark.thorough),
        {"resident": 2, "kept": 1},
    ],
    ids=str,
)
def test_the_same_operations_end_in_the_same_bits(resident, plan):
    ours = train(Plan(compiled=False, **plan))
    assert all(torch.equal(a, b) for a, b in zip(ours, resident, strict=True))


@pytest.mark.thorough  # test_block_executor has chunks
def test_chunks_end_in_the_same_lora(resident):
    ours, started = train(Plan(compiled=False, chunk=2)), train(Plan(compiled=False, **RESIDENT), steps=0)
    for a, b, start in zip(ours, resident, started, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() and not torch.equal(b, start)


@pytest.mark.parametrize("plan", [{"slots": 2}, {"slots": 3, "resident": 1}, RESIDENT], ids=str)
def test_a_switch_moves_nothing(monkeypatch, plan):
    """A step of the other expert brings exactly the blocks that it visits: as many as a step of its own with cold
    slots, none when resident."""
    copies: list[str] = []
    plain = WeightRing._write
    monkeypatch.setattr(WeightRing, "_write", lambda self, visit: (copies.append(visit.key[0]), plain(self, visit))[1])
    plan = Plan(compiled=False, **plan)
    experts = [expert("high_noise", 0), expert("low_noise", 1)]
    where = [m.data_ptr() for w in experts for m in w.blocks.buffers]
    resources = ExecutorResources(plan, attention.CPU, experts[0].block_bytes, CPU)
    runs = [BlockExecutor(w, resources) for w in experts]
    streamed = BLOCKS - plan.resident
    # the turn from forward to backward copies nothing again
    cold = max(0, 2 * streamed - plan.slots) if streamed > plan.slots else streamed
    # the last one finds what the one before left
    for turn, due in ((0, cold), (1, cold), (0, cold), (1, cold), (1, max(0, cold - plan.slots))):
        copies.clear()
        own = experts[turn].name
        runs[turn].forward_backward(
            torch.ones(1, 36, 1, 4, 6), torch.tensor([500.0]), torch.ones(1, 5, 32), lambda y: y.square().mean()
        )
        assert copies == [own] * due
    assert [m.data_ptr() for w in experts for m in w.blocks.buffers] == where
