"""Every plan gives what plain autograd gives: loss, prediction and LoRA gradients, on real model classes in fp32."""

from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config as inductor

from engine.executor import executor_resources
from engine.executor.activation_offload import OffloadedActivations
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.system import device
from engine.wan import attention
from engine.wan.block import (
    LINEARS,
    TEXT_LINEARS,
    _Given,
    post_attention,
    post_attention_again,
    post_attention_saving,
)
from engine.weights.packed_blocks import PackedBlocks, pack_lora
from presets.job.lora_layers import block_layouts, lora_layers
from presets.job.schema import LayersPanel
from presets.planner.plan import Plan
from tests.helpers.facts import job
from tests.helpers.training.fake_cuda import FakeCuda
from tests.helpers.training.plain import CPU, PlainExecutor, attach, packed, small_expert, streamed

BLOCKS = 4
X = torch.randn(2, 36, 3, 4, 6, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
TARGETS = [torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
T = torch.tensor([900.0, 300.0])
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


@pytest.fixture(scope="module")
def model() -> WanTransformer3DModel:
    return small_expert(BLOCKS)


@pytest.fixture(scope="module")
def parameters(model):
    return attach(model, "high_noise", rank=4, alpha=2, seed=1, strong=True)


@pytest.fixture(scope="module")
def weights(model, parameters) -> ExpertWeights:
    return packed(model, "high_noise", parameters, scaling=0.5)


def two_terms(run, parameters):
    """Losses and gradients of a step of two terms, each its own forward and backward, at half the LoRA's strength."""
    for p in parameters.values():
        p.grad = None
    losses = [
        run.forward_backward(X, T, TEXT, lambda out, target=target: (out - target).square().mean(), strength=0.5)
        for target in TARGETS
    ]
    return losses, {name: p.grad.clone() for name, p in parameters.items()}


@pytest.fixture(scope="module")
def plain(model, parameters):
    run = PlainExecutor(model)
    return *two_terms(run, parameters), run.predict(X, T, TEXT)


SAME_OPERATIONS = [
    {"activations": "device"},
    {"activations": "host"},
    {"slots": 2},
    {"slots": 1},
    {"resident": 2},
    {"resident": 4},
    {"resident": 4, "kept": 2},
    {"resident": 4, "kept": 4, "activations": "device"},
    {"activations_on_device": 3, "slots": 2},
    {"activations_on_device": 4},
    {"resident": 2, "kept": 1, "also_kept": ((35, 2),)},
    {"resident": 3, "kept": 1, "also_kept": ((36, 3),)},
    {"resident": 3, "also_kept": ((35, 3),)},
]


@pytest.mark.parametrize("plan", SAME_OPERATIONS, ids=str)
def test_the_same_operations_give_the_same_bits(weights, parameters, plain, plan):
    losses, grads, prediction = plain
    run = streamed(weights, **plan)
    ours, our_grads = two_terms(run, parameters)
    assert all(torch.equal(a, b) for a, b in zip(losses, ours, strict=True))
    assert all(torch.equal(grads[name], our_grads[name]) for name in grads)
    assert torch.equal(run.predict(X, T, TEXT), prediction)
    ours, our_grads = two_terms(run, parameters)  # and again, from what the ring still holds
    assert all(torch.equal(grads[name], our_grads[name]) for name in grads)


@pytest.mark.parametrize("plan", [{}, {"chunk": 7}, {"chunk": 7, "resident": 4, "kept": 2}], ids=str)
def test_how_often_parameters_are_used_is_known_before(weights, parameters, plan):
    run, found = streamed(weights, **plan), dict.fromkeys(parameters, 0)

    def count(name: str, parameter: torch.Tensor) -> None:
        found[name] += 1
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(partial(count, name)) for name, p in parameters.items()]
    for _ in range(2):
        run.forward_backward(X, T, TEXT, lambda out: out.square().mean())
    for hook in hooks:
        hook.remove()
    tokens = X.shape[2:].numel() // 4
    assert list(found.values()) == [2 * uses for uses in run.uses(len(X), tokens, tokens)]
    assert set(found.values()) == ({2, 6} if plan else {2})


@pytest.mark.parametrize(
    "plan", [{"chunk": 5}, {"chunk": 7, "resident": 4, "kept": 1}, {"chunk": 17, "activations": "device"}], ids=str
)
def test_chunks_change_only_the_order_of_sums(weights, parameters, plain, plan):
    losses, grads, prediction = plain
    run = streamed(weights, **plan)
    ours, our_grads = two_terms(run, parameters)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=0)
    for name, grad in grads.items():
        assert (our_grads[name] - grad).norm() <= 1e-5 * grad.norm(), name
    torch.testing.assert_close(run.predict(X, T, TEXT), prediction, rtol=1e-5, atol=1e-6)


CHOICES = {
    "no-keys-and-values-of-the-text": {"exclude": ["attn2.to_k", "attn2.to_v"]},
    "keys-of-the-text-alone": {"exclude": ["attn2.to_v"]},
    "values-of-the-text-alone": {"include": ["cross_attn.v"]},
    "last-block": {"include": ["blocks.3"]},
    "first-block": {"include": ["blocks.0"]},
    "ranks": {"layers": [LayersPanel(match="blocks.1-2", rank=6), LayersPanel(match="ffn", rank=1)]},
    "both": {"exclude": ["blocks.1", "blocks.2.q"], "layers": [LayersPanel(match="blocks.3.self_attn", rank=7)]},
}


WITH_CHOICES = [SAME_OPERATIONS[1], SAME_OPERATIONS[2], SAME_OPERATIONS[6]]


@pytest.mark.parametrize(
    ("choice", "plan"),
    [  # each choice with one of the plans in turn; the others are for make thorough
        pytest.param(choice, plan, marks=[] if i % len(WITH_CHOICES) == j else [pytest.mark.thorough])
        for (i, choice), (j, plan) in product(enumerate(CHOICES), enumerate(WITH_CHOICES))
    ],
    ids=str,
)
def test_chosen_layers_learn_as_in_peft_to_the_bit(choice, plan):
    chosen = lora_layers(job(target={"rank": 4, "alpha": 2.0, **CHOICES[choice]}), "high_noise", BLOCKS)
    model = small_expert(BLOCKS)
    parameters = attach(model, "high_noise", rank=4, alpha=2, seed=1, strong=True, layers=chosen)
    assert {name.rpartition(".lora_")[0] for name in parameters} == {layer.name for layer in chosen}
    assert all(parameters[f"{layer.name}.lora_A.weight"].shape[0] == layer.rank for layer in chosen)
    losses, grads = two_terms(PlainExecutor(model), parameters)
    expected = PlainExecutor(model).predict(X, T, TEXT)
    run = streamed(packed(model, "high_noise", parameters, scaling=0.5), **plan)
    ours, our_grads = two_terms(run, parameters)
    assert all(torch.equal(a, b) for a, b in zip(losses, ours, strict=True))
    assert all(torch.equal(grads[name], our_grads[name]) and grads[name].any() for name in grads)
    assert torch.equal(run.predict(X, T, TEXT), expected)


@pytest.mark.parametrize("plan", [{"slots": 2}, {"resident": 4, "kept": 4}, {"activations_on_device": 3}], ids=str)
def test_the_backward_pass_ends_with_the_first_block_that_trains(monkeypatch, plan):
    chosen = lora_layers(job(target={"rank": 4, "include": ["blocks.1-3.ffn"]}), "high_noise", BLOCKS)
    model = small_expert(BLOCKS)
    parameters = attach(model, "high_noise", rank=4, alpha=4, seed=1, strong=True, layers=chosen)
    _, grads = two_terms(PlainExecutor(model), parameters)
    run = streamed(packed(model, "high_noise", parameters, scaling=1.0), **plan)
    visits, graphs = [], []
    real = run._visits
    monkeypatch.setattr(run, "_visits", lambda order, strength: visits.append(order) or real(order, strength))
    keep = run._kept_block
    monkeypatch.setattr(run, "_kept_block", lambda weights, *rest: graphs.append(weights) or keep(weights, *rest))
    _, our_grads = two_terms(run, parameters)
    assert visits == 2 * [[0, 1, 2, 3, 3, 2, 1]] and len(graphs) == 2 * min(3, plan.get("kept", 0))
    assert all(torch.equal(grads[name], our_grads[name]) for name in grads)


def test_batches_of_few_rows_keep_more_graphs(weights, monkeypatch):
    """X is 2 clips of 18 tokens."""
    kept = []
    monkeypatch.setattr(
        BlockExecutor,
        "_kept_block",
        lambda self, block, *args, real=BlockExecutor._kept_block: kept.append(block) or real(self, block, *args),
    )
    for also, count in (((36, 3),), 3), (((35, 3),), 1), (((20, 3), (40, 2)), 2):
        kept.clear()
        streamed(weights, resident=3, kept=1, also_kept=also).forward_backward(
            X, T, TEXT, lambda out: out.square().mean()
        )
        assert len(kept) == count


def test_graphs_kept_for_short_clips_alone_leave_nothing_behind(weights, parameters):
    """A short clip between two long ones keeps a graph that they do not: what the first has offloaded must not be met
    by the second."""

    def grads(**plan) -> list[torch.Tensor]:
        run, out = streamed(weights, **plan), []
        for x in (X, X[:, :, :1], X + 1):
            for p in parameters.values():
                p.grad = None
            run.forward_backward(x, T, TEXT, lambda y: y.square().mean())
            out += [p.grad.clone() for p in parameters.values()]
        return out

    ours = grads(resident=2, also_kept=((12, 2),))
    assert all(torch.equal(a, b) for a, b in zip(ours, grads(resident=4, activations="device"), strict=True))


def test_e4m3_reaches_compiled_code_as_bytes_and_is_the_same(model, parameters):
    """Below compute capability 8.9 no kernel reads float8_e4m3fn (tests/engine/wan/test_older_cards.py)."""
    held = packed(model, "high_noise", parameters, scaling=0.5, precision="qfloat8")
    block = held.on_device(0, held.blocks.buffers[0], torch.ones(()), "qfloat8", e4m3_as_bytes=True)
    assert {part.dtype for parts in block.weights.values() for part in parts} == {torch.uint8, torch.float32}
    run = streamed(held, precision="qfloat8")
    assert run.resources.e4m3_as_bytes and not streamed(held, precision="float8").resources.e4m3_as_bytes
    ours = run.predict(X, T, TEXT)
    run.resources.e4m3_as_bytes = False
    assert torch.equal(ours, run.predict(X, T, TEXT))


def test_blocks_in_integers_train_as_blocks_in_full_do_and_give_the_same_bits_under_every_plan(model, parameters):
    held = packed(model, "high_noise", parameters, scaling=0.5, precision="int8")
    exact = two_terms(streamed(packed(model, "high_noise", parameters, scaling=0.5)), parameters)
    losses, found = two_terms(streamed(held, precision="int8"), parameters)
    for loss, right in zip(losses, exact[0], strict=True):
        assert loss == pytest.approx(right, rel=0.02)
    apart = [((found[name] - right).norm() / right.norm()).item() for name, right in exact[1].items()]
    assert 1e-4 < sum(apart) / len(apart) < 0.06
    kept = two_terms(
        streamed(held, precision="int8", resident=BLOCKS, kept=2, slots=0, activations="device"), parameters
    )
    assert losses == kept[0] and all(torch.equal(found[name], kept[1][name]) for name in found)


@pytest.mark.parametrize(
    ("capability", "bytes_there"), [((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False), ((12, 0), False)]
)
def test_cards_that_read_e4m3_are_given_it(monkeypatch, capability, bytes_there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(executor_resources, "WeightRing", lambda *args: None)
    resources = ExecutorResources(
        Plan(precision="qfloat8", activations="device", compiled=False), attention.CPU, 0, torch.device("cuda:0")
    )
    assert resources.e4m3_as_bytes == bytes_there


def test_strength_zero_is_the_base(model, weights, plain):
    assert torch.equal(
        streamed(weights).predict(X, T, TEXT, strength=0.0), PlainExecutor(model).predict(X, T, TEXT, strength=0.0)
    )
    assert not torch.equal(plain[2], streamed(weights).predict(X, T, TEXT, strength=0.0))


def test_two_experts_share_their_resources(weights, plain):
    resources = ExecutorResources(Plan(compiled=False), attention.CPU, weights.block_bytes, CPU)
    none: list = [{}] * BLOCKS
    zeros = PackedBlocks([torch.zeros_like(buffer) for buffer in weights.blocks.buffers], weights.blocks.layout)
    other = ExpertWeights("low_noise", weights.outer, zeros, none, 0.5)
    high, low = BlockExecutor(weights, resources), BlockExecutor(other, resources)
    assert torch.equal(high.predict(X, T, TEXT), plain[2])
    assert not torch.equal(low.predict(X, T, TEXT), plain[2])
    assert torch.equal(high.predict(X, T, TEXT), plain[2])


def test_a_recovery_branch_is_a_frozen_part_of_the_base(model, weights, parameters, plain):
    """A branch that cancels what was taken from the weights gives the plain result again, gradients included."""
    g = torch.Generator().manual_seed(9)
    buffers, recovery = [], []
    for buffer in weights.blocks.buffers:
        taken = buffer.clone()
        block = {}
        for name, (weight,) in weights.blocks.layout.views(taken)[0].items():
            down, up = (
                torch.randn(3, weight.shape[1], generator=g) * 0.1,
                torch.randn(weight.shape[0], 3, generator=g) * 0.1,
            )
            weight.sub_(up @ down)
            block[name] = (down, up)
        buffers.append(taken)
        recovery.append(block)
    run = streamed(
        ExpertWeights(
            "high_noise",
            weights.outer,
            PackedBlocks(buffers, weights.blocks.layout),
            weights.lora,
            0.5,
            pack_lora(recovery, pinned=False),
        )
    )
    losses, grads, prediction = plain
    ours, our_grads = two_terms(run, parameters)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=0)
    for name, grad in grads.items():
        assert (our_grads[name] - grad).norm() <= 1e-4 * grad.norm(), name
    torch.testing.assert_close(run.predict(X, T, TEXT), prediction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stay", [0, 2])
def test_activations_of_the_last_blocks_that_recompute_stay_on_the_device(weights, monkeypatch, stay):
    """The others' tensors go to the host and come back, in a pass of any length: what is staying is counted from the
    end. Two do always: at the turn from forward to backward nothing waits for a copy."""
    puts: list[tuple[int, bool]] = []
    plain = OffloadedActivations.put

    def put(self, block, tensors):
        plain(self, block, tensors)
        puts.append((block, block in self._here))

    monkeypatch.setattr(OffloadedActivations, "put", put)
    run = streamed(weights, resident=4, kept=1, activations_on_device=stay)
    for _ in range(2):
        run.forward_backward(X, T, TEXT, lambda out: out.square().mean())
    assert puts == [(0, False), (1, True), (2, True)] * 2 and not run.resources.activations._here
    assert set(run.resources.activations._host) == {0}, "no host memory for those that stay"


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_compiled_for_a_fixed_order_chooses_no_order_by_its_speed(monkeypatch, deterministic):
    choices = ("dynamic_scale_rblock", "shape_padding")
    for name in choices:
        monkeypatch.setattr(inductor, name, True)
    kernels = attention.Attention("flash", "flash", deterministic=deterministic)
    ExecutorResources(Plan(slots=0, activations="device", compiled=True), kernels, 1, torch.device("cuda"), FakeCuda())
    assert [getattr(inductor, name) for name in choices] == 2 * [not deterministic]


@pytest.mark.parametrize("how", [{"activations": "host"}, {"activations": "device", "chunk": 16}, {"chunk": 16}])
def test_hidden_states_that_are_saved_change_no_gradient(weights, how):
    """One block keeps its graph."""
    grads = []
    for save_hidden in (False, True):
        for p in (p for lora in weights.lora for pair in lora.values() for p in pair):
            p.grad = None
        run = streamed(weights, resident=2, kept=1, save_hidden=save_hidden, **how)
        run.forward_backward(X, T, TEXT, lambda out: out.square().mean())
        grads.append([p.grad for lora in weights.lora for pair in lora.values() for p in pair])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True)) and all(g.norm() > 0 for g in grads[1])


@pytest.mark.parametrize("save_hidden", [False, True])
def test_the_backward_reads_the_hidden_states_that_were_saved(weights, monkeypatch, save_hidden):
    run, read = streamed(weights, save_hidden=save_hidden), OffloadedActivations.get
    found: list[int] = []

    def broken(self: OffloadedActivations, block: int) -> tuple[torch.Tensor, ...]:
        x, a, lse, *hidden = read(self, block)
        found.append(len(hidden))
        return x, a, lse, *(torch.full_like(t, torch.nan) for t in hidden)

    monkeypatch.setattr(OffloadedActivations, "get", broken)
    for p in (p for lora in weights.lora for pair in lora.values() for p in pair):
        p.grad = None
    run.forward_backward(X, T, TEXT, lambda out: out.square().mean())
    assert found == [2 * save_hidden] * 4
    assert all(p.grad.isfinite().all() for p in weights.lora[0]["ffn.net.2"]) != save_hidden


class Products:
    """Counts the products of what is compiled, forward and backward together."""

    def __init__(self) -> None:
        self.count = 0
        self.backend = aot_autograd(
            fw_compiler=self._graph, bw_compiler=self._graph, partition_fn=min_cut_rematerialization_partition
        )
        torch._dynamo.reset()

    def _graph(self, graph: torch.fx.GraphModule, _: object) -> Any:
        self.count += sum(node.target in PRODUCTS for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    def of(self, function: Any, given: Any, leaves: Any, grads: Any) -> tuple[int, tuple[torch.Tensor, ...]]:
        """(products, the leaves' gradients)"""
        before = self.count
        out = torch.compile(function, backend=self.backend)(*given)
        found = torch.autograd.grad(out, leaves, grads)
        return self.count - before, found


@pytest.fixture
def products():
    yield Products()
    torch._dynamo.reset()


def test_what_is_recomputed_leaves_out_what_nothing_reads_and_has_the_gradient_of_the_whole(weights, products):
    """Compiled, that is. Each product left out goes with the second of its LoRA."""
    held = weights.on_device(0, weights.blocks.buffers[0], torch.ones(()), "none", e4m3_as_bytes=False)
    draw = torch.Generator().manual_seed(5)
    width = held.plain["norm2.weight"].numel()
    x, a, g = (torch.randn(2, 9, width, generator=draw) for _ in range(3))
    text = [torch.randn(2, 5, held.heads, width // held.heads, generator=draw).requires_grad_(True) for _ in range(2)]
    rest = *text, torch.randn(2, 6, width, generator=draw), held, attention.CPU.to_text
    x, a = x.requires_grad_(True), a.requires_grad_(True)
    names = [name for name in LINEARS[3:] if name not in TEXT_LINEARS]
    leaves = [x, a, *text, *(p for name in names for p in held.lora[name])]
    with torch.no_grad():
        _, *hidden = post_attention_saving(x, a, *rest)
    count, whole = products.of(post_attention, (x, a, *rest), leaves, g)
    for saved, spared in (((), 2), (tuple(hidden), 6)):  # the last linear; both output projections as well
        fewer, ours = products.of(post_attention_again, (x, a, saved, *rest), leaves, g)
        assert all(torch.equal(a, b) for a, b in zip(whole, ours, strict=True))
        assert all(g.norm() > 0 for g in ours) and count - fewer == spared


def test_what_stands_for_a_recomputed_output_is_a_view_of_nothing():
    """torch 2.11 gave all that comes before a gradient of zero where it was: with other versions that is not seen."""
    y, value = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    out = _Given.apply(y * 2, value)
    assert out._base is None and torch.equal(out, value)
    assert out.untyped_storage().data_ptr() not in (t.untyped_storage().data_ptr() for t in (y, value))
    out.backward(torch.ones_like(out))
    assert torch.equal(y.grad, torch.full_like(y, 2))


@pytest.fixture
def compiled(monkeypatch):
    """The block's functions go through the compiler's front end, that makes graphs, and run as they are behind it."""
    torch._dynamo.reset()
    made = cache(lambda function, kept=False: torch.compile(function, backend="eager"))
    monkeypatch.setattr(executor_resources, "_compiled", made)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", device.VARIANTS)
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.process  # for its length
def test_blocks_are_compiled_once_for_each_kind_and_not_in_the_order_in_which_they_come(compiled):
    """A rank that was made a symbol because another came before it would give other bits after a resume."""
    tables = [LayersPanel(match="blocks.0", rank=2), LayersPanel(match="blocks.3", rank=8)]

    def graphs(**target) -> int:
        model, chosen = small_expert(BLOCKS), lora_layers(job(target={"rank": 4, **target}), "high_noise", BLOCKS)
        parameters = attach(model, "high_noise", rank=4, alpha=4, seed=1, layers=chosen)
        held = packed(model, "high_noise", parameters, scaling=1.0)
        run = BlockExecutor(held, ExecutorResources(Plan(any_size=True), attention.CPU, held.block_bytes, CPU))
        before = compiled()
        for _ in range(2):
            run.forward_backward(X, T, TEXT, lambda out: out.square().mean())
        assert block_layouts(chosen, BLOCKS) == (3 if target else 1)
        return compiled() - before

    of_one = graphs()
    assert graphs(layers=tables) == 2 * of_one > 0, "those of rank 4 are there"


@pytest.mark.process  # for its length
@pytest.mark.parametrize(
    "plan", [{"resident": 4, "kept": 2}, pytest.param({"chunk": 5}, marks=pytest.mark.thorough)], ids=str
)
def test_one_compilation_does_for_all_sizes(weights, parameters, plain, compiled, plan):
    """Else what the compiler makes of a clip depends on the clip before it, and a resume begins with another one."""
    run = BlockExecutor(
        weights, ExecutorResources(Plan(**plan, any_size=True), attention.CPU, weights.block_bytes, CPU)
    )

    def both(frames: int, height: int, batch: int) -> None:
        x, goal = torch.randn(batch, 36, frames, height, 6), torch.zeros(batch, 16, frames, height, 6)
        t, text = torch.full((batch,), 900.0), torch.randn(batch, *TEXT.shape[1:])
        run.forward_backward(x, t, text, lambda out: (out - goal).square().mean())
        run.predict(x, t, text)

    both(3, 4, 2)
    once = compiled()
    for frames, height, batch in ((5, 8, 2), (3, 8, 3), (1, 8, 2)):
        both(frames, height, batch)
    assert compiled() == once > 0
    both(3, 4, 1)
    twice = compiled()  # one clip alone is a shape of its own to the compiler
    for frames, height in ((3, 8), (1, 8), (5, 4)):
        both(frames, height, 1)
    assert compiled() == twice
    eager = BlockExecutor(
        weights, ExecutorResources(Plan(**plan, compiled=False), attention.CPU, weights.block_bytes, CPU)
    )
    torch.testing.assert_close(run.predict(X, T, TEXT), eager.predict(X, T, TEXT))
    (_, grads), (_, right) = two_terms(run, parameters), two_terms(eager, parameters)
    for name, grad in right.items():  # of kept blocks and of recomputed ones
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm() > 0, name
