"""Blocks as recorded graphs give the bits of launched blocks. What a card records is the card's; here a recording is
the function itself, called again over the same fixed addresses."""

import weakref
from dataclasses import replace

import pytest
import torch

from engine.executor import block_graphs
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.parallel.ordered_sum import OrderedSum
from engine.wan import attention
from presets.job.lora_layers import lora_layers
from presets.job.schema import LayersPanel
from presets.planner.plan import Plan
from tests.helpers.facts import job
from tests.helpers.training.plain import CPU, attach, packed, small_expert

BLOCKS = 4
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
T = torch.tensor([900.0, 300.0])
X = {
    name: torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    for name, shape in {"clip": (2, 36, 3, 4, 6), "image": (2, 36, 1, 4, 6), "long": (2, 36, 5, 4, 6)}.items()
}
ROWS = X["clip"].shape[0] * 18


def made(chosen=None, precision="none"):
    model = small_expert(BLOCKS)
    parameters = attach(model, "high_noise", rank=4, alpha=2, seed=1, strong=True, layers=chosen)
    return packed(model, "high_noise", parameters, scaling=0.5, precision=precision), parameters


# What trains all layers is shown in each precision too.
@pytest.fixture(params=["chosen layers", pytest.param("all layers", marks=pytest.mark.thorough)])
def expert(request):
    if request.param == "all layers":
        return made()
    target = {"rank": 4, "exclude": ["blocks.0", "k"], "layers": [LayersPanel(match="blocks.2-3", rank=6)]}
    return made(lora_layers(job(target=target), "high_noise", BLOCKS))


class Recorder:
    """`fails`: the recording for which there is no memory; `differs`: the one that does something else."""

    def __init__(self, fails: int = 0, differs: int = 0) -> None:
        self.recorded = self.replayed = self.left = 0
        self.alive = weakref.WeakSet()
        self.fails, self.differs = fails, differs

    def __call__(self, run):
        self.recorded += 1
        if self.recorded == self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        if self.recorded == self.differs:
            return lambda: None

        def replay() -> None:
            self.replayed += 1
            run()

        self.alive.add(replay)
        return replay

    def free(self) -> None:
        self.left = len(self.alive)  # what is held by then is not given back


def executor(weights, recorder=None, refused=None, **plan) -> BlockExecutor:
    plan = Plan(compiled=False, graphed=ROWS if recorder else 0, **plan)
    resources = ExecutorResources(plan, attention.CPU, weights.block_bytes, CPU, capture=recorder, refused=refused)
    return BlockExecutor(weights, resources)


def steps(run, parameters, *names):
    """Everything that comes of several steps of two terms each, parameters changing in between."""
    out, before = [], {name: p.detach().clone() for name, p in parameters.items()}
    for name in names:
        for p in parameters.values():
            p.grad = None
        for strength in (1.0, 0.5):
            out.append(run.forward_backward(X[name], T, TEXT, lambda y: y.square().mean(), strength=strength))
        out.append(run.predict(X[name], T, TEXT, strength=0.0))
        for p in parameters.values():
            out.append(p.grad)
            p.data -= 0.1 * p.grad
    for name, p in parameters.items():
        p.data.copy_(before[name])
    return out


@pytest.mark.parametrize(
    "plan", [{}, {"slots": 2, "resident": 2}, {"resident": 4, "kept": 2, "slots": 0, "activations": "device"}], ids=str
)
def test_recorded_blocks_give_the_bits_of_launched_ones(expert, plan):
    weights, parameters = expert
    names = ("clip", "image", "clip", "long", "image")
    recorder = Recorder()
    ours = steps(executor(weights, recorder, **plan), parameters, *names)
    right = steps(executor(weights, **{**plan, "kept": 0}), parameters, *names)
    assert len(ours) == len(right) and all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))
    assert recorder.replayed > recorder.recorded > 0


# float8 and int8 multiply in 8 bits, the others dequantize
@pytest.mark.parametrize(
    "precision",
    ["none", "float8", "int8", "qint8", *(pytest.param(p, marks=pytest.mark.thorough) for p in ("qfloat8", "qint4"))],
)
def test_recorded_blocks_give_the_bits_of_launched_ones_in_each_precision(precision):
    weights, parameters = made(precision=precision)
    plan, names = {"precision": precision, "slots": 2, "resident": 1}, ("image", "image")
    recorder, said = Recorder(), []
    ours = steps(executor(weights, recorder, said.append, **plan), parameters, *names)
    right = steps(executor(weights, **plan), parameters, *names)
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))
    assert recorder.replayed > recorder.recorded > 0 and not said


def test_a_block_is_recorded_once_for_each_buffer_that_it_may_lie_in(expert):
    weights, parameters = expert
    recorder = Recorder()
    run = executor(weights, recorder, resident=BLOCKS, slots=0, activations="device")
    steps(run, parameters, "clip", "clip")
    # nothing trains in block 0 of the chosen layers: it is not gone back to
    once = BLOCKS + sum(1 for lora in weights.lora if lora)
    assert recorder.recorded == once
    steps(run, parameters, "clip")
    assert recorder.recorded == once


def test_long_clips_chunks_and_accelerated_passes_are_launched(expert):
    weights, parameters = expert
    recorder = Recorder()
    steps(executor(weights, recorder), parameters, "long", "long")
    steps(executor(weights, recorder, chunk=10), parameters, "clip", "clip")
    run = executor(weights, recorder)
    run.weights = type(weights)(**{**vars(weights), "accelerator": [{} for _ in range(BLOCKS)]})
    steps(run, parameters, "clip", "clip")
    assert recorder.recorded == 0


def test_more_shapes_than_have_graphs_are_launched(expert, monkeypatch):
    monkeypatch.setattr(block_graphs, "MOST_SHAPES", 1)
    weights, parameters = expert
    recorder = Recorder()
    run = executor(weights, recorder, slots=1)
    steps(run, parameters, "image", "image")
    found = recorder.recorded, recorder.replayed
    steps(run, parameters, "clip")
    assert found == (recorder.recorded, recorder.replayed) and found[0] > 0


def test_gradients_reach_those_that_share_a_step_one_by_one(expert):
    weights, parameters = expert
    run = executor(weights, Recorder())
    right = steps(run, parameters, "clip")
    for p in parameters.values():
        p.grad = None
    total = OrderedSum(parameters, lambda mine: [mine], 0)
    with total.kept_apart([[2] * len(parameters)], ahead=True):
        for strength in (1.0, 0.5):
            run.forward_backward(X["clip"], T, TEXT, lambda y: y.square().mean(), strength=strength)
        total.send_rest()
    total.finish()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters.values(), right[3:], strict=True))


NO_MEMORY, OTHER_BITS = "recording a block: CUDA out of memory", "a recorded block gave other bits than a launched one"


# the second is in the midst of a pass; the ninth a backward's; the eleventh of another shape
@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        *(pytest.param({"fails": n}, NO_MEMORY, marks=pytest.mark.thorough) for n in (1, 2)),
        *(({"fails": n}, NO_MEMORY) for n in (9, 11)),
        ({"differs": 1}, OTHER_BITS),
    ],
    ids=str,
)
def test_where_a_block_cannot_be_recorded_all_are_launched_and_it_is_said_once(expert, recorder, why):
    weights, parameters = expert
    recorder, said = Recorder(**recorder), []
    run = executor(weights, recorder, said.append, resident=2)
    names = ("clip", "image", "clip", "image")
    ours, right = steps(run, parameters, *names), steps(executor(weights, resident=2), parameters, *names)
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))
    assert said == [why] and recorder.recorded == (recorder.fails or recorder.differs)
    assert not run.resources.graphs.recorded and recorder.left == 0


def test_without_anybody_to_tell_it_is_an_error(expert):
    weights, parameters = expert
    with pytest.raises(RuntimeError, match=NO_MEMORY):
        steps(executor(weights, Recorder(fails=1)), parameters, "clip")


def test_a_wrong_graph_of_a_backward_is_found(expert):
    weights, parameters = expert
    honest = Recorder()
    run = executor(weights, honest, resident=BLOCKS, slots=0, activations="device")
    run.predict(X["clip"], T, TEXT)
    said, recorder = [], Recorder(differs=honest.recorded + 1)
    ours = steps(
        executor(weights, recorder, said.append, resident=BLOCKS, slots=0, activations="device"), parameters, "clip"
    )
    right = steps(executor(weights, resident=BLOCKS, slots=0, activations="device"), parameters, "clip")
    assert said == [OTHER_BITS] and all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))


def test_where_ordering_is_not_fixed_a_graph_need_not_give_the_same_bits(expert, monkeypatch):
    weights, _ = expert
    monkeypatch.setattr(attention, "CPU", replace(attention.CPU, deterministic=False))
    assert not executor(weights, Recorder()).resources.graphs.prove
