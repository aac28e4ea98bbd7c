"""No kernel reads a ring buffer or an offloaded activation before its copy is done, and no copy overwrites what is
still read, whatever the timing."""

from itertools import count

import pytest
import torch

from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.wan import attention
from engine.weights.packed_blocks import pack_lora
from presets.planner.plan import Plan
from tests.helpers.training.fake_cuda import FakeCuda, Watch
from tests.helpers.training.plain import CPU, attach, packed, small_expert

pytestmark = pytest.mark.process  # for its length

BLOCKS = 5
EXPERTS = ("high_noise", "low_noise")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors of a few kilobytes: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def both() -> dict[str, ExpertWeights]:
    out = {}
    for seed, name in enumerate(EXPERTS):
        model = small_expert(BLOCKS, seed=seed)
        out[name] = packed(model, name, attach(model, name, rank=2, alpha=2, seed=seed, strong=True), scaling=1.0)
    return out


def steps(
    both: dict[str, ExpertWeights], plan: Plan, cuda: FakeCuda | None, sizes=((4, 6), (2, 6), (4, 6))
) -> list[torch.Tensor]:
    """Both experts in turn, batch 2, clips of several lengths, a pass without a graph between: losses, gradients and
    predictions."""
    resources = ExecutorResources(plan, attention.CPU, both["high_noise"].block_bytes, CPU, cuda)
    runs = {name: BlockExecutor(weights, resources) for name, weights in both.items()}
    out = []
    for turn, (h, w) in enumerate(sizes):
        for name, run in runs.items():
            g = torch.Generator().manual_seed(turn)
            x, text, t = (
                torch.randn(2, 36, 2, h, w, generator=g),
                torch.randn(2, 7, 32, generator=g),
                torch.tensor([900.0, 300.0]),
            )
            parameters = [p for lora in both[name].lora for pair in lora.values() for p in pair]
            for p in parameters:
                p.grad = None
            out.append(run.predict(x, t, text, strength=0.0))
            out.append(run.forward_backward(x, t, text, lambda y: y.square().mean()))
            out += [p.grad.clone() for p in parameters]
    return out


FURTHER = [
    {"slots": 1},
    {"slots": 2, "chunk": 3},
    {"activations": "device"},
    {"activations_on_device": 3},
    {"resident": 2, "kept": 1},
]
PLANS = [
    {},
    *(pytest.param(plan, marks=pytest.mark.thorough) for plan in FURTHER),
    {"resident": 2, "slots": 2, "chunk": 7},
    {"resident": 3, "kept": 2, "slots": 2},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_timing_gives_the_same(both, plan):
    """Results are those of a run without streams, and no two accesses to the same memory are left unordered."""
    cuda, plan = FakeCuda(), Plan(compiled=False, **plan)
    with Watch(cuda) as watch:
        ours = steps(both, plan, cuda)
    assert not watch.races, watch.races[:5]
    assert watch.kernels > 1000 and {"WeightRing._copy", "WeightRing.take"} <= cuda.waits
    assert all(torch.equal(a, b) for a, b in zip(ours, steps(both, plan, None), strict=True))


OF_WEIGHTS = ["WeightRing._copy", "WeightRing.take"]
OF_ACTIVATIONS = [f"OffloadedActivations.{name}" for name in ("put", "_drop_left", "prefetch", "get")]


@pytest.mark.parametrize(
    ("wait", "stay"),
    [
        *((wait, 0) for wait in OF_WEIGHTS + OF_ACTIVATIONS),
        ("OffloadedActivations._drop_left", 3),
        *(
            pytest.param(wait, 3, marks=pytest.mark.thorough)
            for wait in OF_WEIGHTS + OF_ACTIVATIONS
            if "left" not in wait
        ),
    ],
)
def test_each_wait_is_needed(both, wait, stay):
    cuda = FakeCuda(broken=wait)
    with Watch(cuda) as watch:
        steps(both, Plan(compiled=False, activations_on_device=stay), cuda, sizes=((4, 6),))
    assert wait in cuda.waits and watch.races


@pytest.mark.parametrize("at", [None, 1])
def test_a_pass_that_broke_off_leaves_nothing_to_the_next_ones(both, monkeypatch, at):
    """In the loss, or at the second block's backward while the activations of the next are on their way; then a
    short clip that keeps the graph of that one, and a long one."""
    weights, cuda = both["high_noise"], FakeCuda()
    plan = Plan(compiled=False, resident=2, slots=2, also_kept=((6, 2),))

    def breaking(*_: object) -> None:
        raise ZeroDivisionError

    def passes(cuda: FakeCuda | None, *, broken: bool) -> list[torch.Tensor]:
        run, out = BlockExecutor(weights, ExecutorResources(plan, attention.CPU, weights.block_bytes, CPU, cuda)), []
        backward, calls = BlockExecutor._backward_block, count()
        parameters = [p for lora in weights.lora for pair in lora.values() for p in pair]
        if broken:
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(
                    BlockExecutor,
                    "_backward_block",
                    lambda *given: breaking() if next(calls) == at else backward(*given),
                )
                run.forward_backward(
                    torch.ones(1, 36, 2, 4, 6),
                    torch.tensor([500.0]),
                    torch.ones(1, 7, 32),
                    breaking if at is None else torch.mean,
                )
        for frames in (1, 2):
            for p in parameters:
                p.grad = None
            run.forward_backward(
                torch.randn(1, 36, frames, 4, 6, generator=torch.Generator().manual_seed(1)),
                torch.tensor([900.0]),
                torch.ones(1, 7, 32),
                lambda y: y.square().mean(),
            )
            out += [p.grad.clone() for p in parameters]
        return out

    with Watch(cuda) as watch:
        ours = passes(cuda, broken=True)
    assert not watch.races, watch.races[:5]
    assert all(torch.equal(a, b) for a, b in zip(ours, passes(None, broken=False), strict=True))


def test_a_recovery_adapter_travels_in_the_same_buffer(both):
    g = torch.Generator().manual_seed(5)
    with_branch = {
        name: ExpertWeights(
            name,
            w.outer,
            w.blocks,
            w.lora,
            1.0,
            pack_lora(
                [{"attn1.to_q": (torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))} for _ in w.lora],
                pinned=False,
            ),
        )
        for name, w in both.items()
    }
    cuda = FakeCuda()
    with Watch(cuda) as watch:
        ours = steps(with_branch, Plan(compiled=False), cuda, sizes=((4, 6),))
    assert not watch.races
    plain = steps(
        with_branch, Plan(compiled=False, resident=BLOCKS, slots=0, activations="device"), None, sizes=((4, 6),)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
