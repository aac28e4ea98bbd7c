"""Every plan gives what plain autograd gives: loss, prediction and LoRA gradients, on real model classes in fp32."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from engine import lora
from engine.block import LINEARS
from engine.executor import ResidentExecutor
from engine.masters import block_tensors, fill, layout_of
from engine.pinned import host_buffer
from engine.ring import Ring
from engine.streamed import Kernels, StreamedExecutor, make_stash

CPU = torch.device("cpu")
BLOCKS = 4
X = torch.randn(2, 36, 3, 4, 6, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
TARGETS = [torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
T = torch.tensor([900.0, 300.0])


@pytest.fixture(scope="module")
def model() -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=36, out_channels=16, text_dim=32, freq_dim=32,
        ffn_dim=64, num_layers=BLOCKS, image_dim=None, rope_max_seq_len=32,
    ).requires_grad_(False).eval()  # fmt: skip
    lora.attach(model, "high_noise", rank=4, alpha=2, seed=1)
    for name, p in lora.tensors(model).items():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.fixture(scope="module")
def parts(model):
    states = [{k.replace(".base_layer", ""): v for k, v in block.state_dict().items() if "lora_" not in k} for block in model.blocks]
    packed = [block_tensors(state, "none") for state in states]
    layout = layout_of(*packed[0])
    masters = []
    for weights, plain in packed:
        masters.append(host_buffer(layout.bytes, pinned=False))
        fill(layout, masters[-1], weights, plain)
    tensors = lora.tensors(model)
    loras = [{n: (tensors[f"blocks.{i}.{n}.lora_A.weight"], tensors[f"blocks.{i}.{n}.lora_B.weight"]) for n in LINEARS} for i in range(BLOCKS)]
    return masters, layout, loras


def executor(model, parts, *, chunk=0, resident=0, kept=0, stash="host", slots=3, ring=None, compiled=False):
    masters, layout, loras = parts
    return StreamedExecutor(
        "high_noise", model, masters, layout, loras, scaling=0.5, kernels=Kernels.make("none", "cpu", chunk=chunk, compiled=compiled),
        ring=ring or Ring(layout.bytes, slots, CPU), stash=make_stash(CPU, stash), resident=resident, kept=kept,
    )  # fmt: skip


def two_terms(run, model):
    """Losses and gradients of a step of two terms, each its own forward and backward, at half the LoRA's strength."""
    for p in lora.tensors(model).values():
        p.grad = None
    losses = [run.forward_backward(X, T, TEXT, lambda out, target=target: (out - target).square().mean(), strength=0.5) for target in TARGETS]
    return losses, {name: p.grad.clone() for name, p in lora.tensors(model).items()}


@pytest.fixture(scope="module")
def plain(model):
    run = ResidentExecutor(model, recompute=False)
    return *two_terms(run, model), run.predict(X, T, TEXT)


SAME_OPERATIONS = [
    {"stash": "device"}, {"stash": "host"}, {"slots": 2}, {"slots": 1}, {"resident": 2}, {"resident": 4}, {"resident": 4, "kept": 2}, {"resident": 4, "kept": 4, "stash": "device"},
]  # fmt: skip


@pytest.mark.parametrize("plan", SAME_OPERATIONS, ids=str)
def test_the_same_operations_give_the_same_bits(model, parts, plain, plan):
    losses, grads, prediction = plain
    run = executor(model, parts, **plan)
    ours, our_grads = two_terms(run, model)
    assert all(torch.equal(a, b) for a, b in zip(losses, ours, strict=True))
    assert all(torch.equal(grads[name], our_grads[name]) for name in grads)
    assert torch.equal(run.predict(X, T, TEXT), prediction)
    ours, our_grads = two_terms(run, model)  # and again, from what the ring still holds
    assert all(torch.equal(grads[name], our_grads[name]) for name in grads)


@pytest.mark.parametrize("plan", [{"chunk": 5}, {"chunk": 7, "resident": 4, "kept": 1}, {"chunk": 17, "stash": "device"}], ids=str)
def test_chunks_change_only_the_order_of_sums(model, parts, plain, plan):
    losses, grads, prediction = plain
    run = executor(model, parts, **plan)
    ours, our_grads = two_terms(run, model)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=0)
    for name, grad in grads.items():
        assert (our_grads[name] - grad).norm() <= 1e-5 * grad.norm(), name
    torch.testing.assert_close(run.predict(X, T, TEXT), prediction, rtol=1e-5, atol=1e-6)


def test_strength_zero_is_the_base(model, parts):
    run = executor(model, parts)
    assert torch.equal(run.predict(X, T, TEXT, strength=0.0), ResidentExecutor(model, recompute=False).predict(X, T, TEXT, strength=0.0))


def test_two_experts_share_a_ring(model, parts, plain):
    masters, layout, _ = parts
    ring = Ring(layout.bytes, 3, CPU)
    high = executor(model, parts, ring=ring)
    other = [torch.zeros_like(m) for m in masters]
    low = StreamedExecutor("low_noise", model, other, layout, [{}] * BLOCKS, scaling=0.5, kernels=high.kernels, ring=ring, stash=make_stash(CPU, "host"))
    expected = high.predict(X, T, TEXT)
    low.predict(X, T, TEXT)
    assert torch.equal(high.predict(X, T, TEXT), expected)
    assert torch.equal(expected, plain[2])
