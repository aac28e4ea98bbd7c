"""A block in bf16, where a LoRA's part and the position of queries are kernels of their own, against the same block in
fp32, where every operation is diffusers' and peft's."""

from collections.abc import Collection

import pytest
import torch
from torch.nn import functional as F

from engine.wan.attention import CPU
from engine.wan.block import (
    LINEARS,
    NORMS,
    BlockWeights,
    Lora,
    linear_shapes,
    post_attention,
    pre_attention,
    text_kv,
)
from engine.wan.quantize import pack

CONFIG = {"num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 96}
WIDTH, HEADS, TOKENS, TEXT, CLIPS = 64, 4, 12, 7, 2
CASES = {
    "every linear": LINEARS,
    "some that share rows": ("attn1.to_q", "attn1.to_v", "attn2.to_k", "ffn.net.2"),
    "one before attention": ("attn1.to_k", "ffn.net.0.proj"),
    "none": (),
}
CLOSE, CLOSE_IN_8_BITS = 0.02, 0.15  # bf16 rounds to 0.4%, float8 to 6%


def drawn(made: torch.Generator, *shape: int, size: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=made) * size


def run(
    dtype: torch.dtype, names: Collection[str], precision: str = "none", *, recovered: bool = False
) -> dict[str, torch.Tensor]:
    """Output and, where there is a graph, gradients of a block: of what enters it, and of every LoRA."""
    made = torch.Generator().manual_seed(0)
    shapes = linear_shapes(CONFIG)
    weights = {
        name: pack(drawn(made, *shapes[name], size=shapes[name][1] ** -0.5).to(dtype), precision) for name in LINEARS
    }
    plain = {f"{name}.bias": drawn(made, shapes[name][0], size=0.1).to(dtype) for name in LINEARS}
    plain |= {f"{name}.weight": 1 + drawn(made, WIDTH, size=0.1).to(dtype) for name in NORMS}
    plain |= {"norm2.weight": torch.ones(WIDTH), "norm2.bias": torch.zeros(WIDTH)}
    plain["scale_shift_table"] = drawn(made, 1, 6, WIDTH, size=0.3)
    pairs = {n: (drawn(made, 4, shapes[n][1], size=0.1), drawn(made, shapes[n][0], 4, size=0.1)) for n in LINEARS}
    lora: Lora = {n: (pairs[n][0].requires_grad_(), pairs[n][1].requires_grad_()) for n in names}
    adapter = {n: (a.detach().to(dtype), b.detach().to(dtype)) for n, (a, b) in pairs.items()} if recovered else {}
    block = BlockWeights(weights, plain, adapter, lora, torch.tensor(0.7), HEADS, precision)
    x, text = drawn(made, CLIPS, TOKENS, WIDTH).to(dtype).requires_grad_(), drawn(made, CLIPS, TEXT, WIDTH).to(dtype)
    time, angles = drawn(made, CLIPS, 6, WIDTH, size=0.3).to(dtype), drawn(made, 1, TOKENS, 1, WIDTH // HEADS)
    g = drawn(made, CLIPS, TOKENS, WIDTH).to(dtype)
    q, k, v = (t.transpose(1, 2) for t in pre_attention(x, time, angles.cos(), angles.sin(), block))
    a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2, 3)
    y = post_attention(x, a, *text_kv(text, block), time, block, CPU.to_text)
    if not y.requires_grad:
        return {"output": y}
    learning = [t for pair in lora.values() for t in pair]
    grads = torch.autograd.grad(y, [x, *learning], g)
    words = [f"{of} of {name}" for name in lora for of in "AB"]
    return {"output": y.detach(), **dict(zip(["input", *words], grads, strict=True))}


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recovered", [False, True])
def test_bf16_gives_what_fp32_gives_but_for_its_rounding(case: str, recovered: bool) -> None:
    ours, theirs = (run(dtype, CASES[case], recovered=recovered) for dtype in (torch.bfloat16, torch.float32))
    far = {name: apart(ours[name], theirs[name]) for name in theirs if apart(ours[name], theirs[name]) > CLOSE}
    assert not far and len(theirs) == 2 + 2 * len(CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_float8_gives_what_fp32_gives_but_for_its_rounding(case: str) -> None:
    ours, theirs = run(torch.bfloat16, CASES[case], "float8"), run(torch.float32, CASES[case])
    assert max(apart(ours[name], theirs[name]) for name in theirs) < CLOSE_IN_8_BITS


def test_without_a_graph_the_same_bits_come_out() -> None:
    with torch.no_grad():
        without = run(torch.bfloat16, LINEARS)
    assert torch.equal(without["output"], run(torch.bfloat16, LINEARS)["output"]) and list(without) == ["output"]
