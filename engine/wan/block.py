"""One Wan transformer block as two token-wise functions around its self-attention, and what the text is to it.

    pre_attention(x)             -> q, k, v    norm, modulation, three linears, qk-norm, rope
    pre_attention_again(x, g)    -> q, k, v    the same, with g added to x's gradient on its way back
    text_kv(text)                -> k, v       of the cross-attention: once a visit, for any number of chunks
    post_attention(x, a, k, v)   -> y          output projection, cross-attention to the text, feed-forward
    post_attention_again(...)    -> y          the same for its gradients alone: y's values are not the output's

`pre_attention` and `post_attention` work on any run of tokens by themselves; only self-attention needs them all
(`engine.wan.attention`). Weights come in as plain tensors, so one compilation serves all blocks. The arithmetic is that
of diffusers' WanTransformerBlock, operation for operation (a test compares them bit for bit in fp32).

B batch, T tokens, S text tokens, D width, N heads, K head width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from engine.wan.attention import TextKernels
from engine.wan.frozen_linear import (
    Packed,
    frozen_linear,
    frozen_linear_and_lora_input,
    lora_branch,
    lora_inputs,
    plus_lora,
)
from engine.wan.norm_rope import EPS, NormRope
from engine.wan.text_attention import text_attention

LINEARS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ffn.net.0.proj",
    "ffn.net.2",
)
BEFORE_LINEARS, TEXT_LINEARS = LINEARS[:3], LINEARS[5:7]
NORMS = ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k")

Weights = dict[str, Packed]  # "attn1.to_q" -> packed weight
# "attn1.to_q.bias", "attn1.norm_q.weight", "norm2.weight", "norm2.bias", "scale_shift_table"
Plain = dict[str, torch.Tensor]
# of one block: "attn1.to_q" -> (A (R, in), B (out, R)); empty when there is none
Lora = dict[str, tuple[torch.Tensor, torch.Tensor]]


class BlockWeights(NamedTuple):
    """All that one block computes with beside activations. The tensors lie on the device."""

    weights: Weights
    plain: Plain
    recovery: Lora  # frozen: an accuracy recovery adapter, an accelerator, or both in one
    lora: Lora  # trained
    strength: torch.Tensor  # () of the trained LoRA; a tensor, so that its value is not compiled in
    heads: int
    precision: str  # of `weights`


class PassInputs(NamedTuple):
    """What all blocks of one pass are given beside the hidden state. `strength` () is the trained LoRA's."""

    text_BSD: torch.Tensor
    time_B6D: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    strength: torch.Tensor


def _linears(names: Sequence[str], x: torch.Tensor, block: BlockWeights, *, gelu: bool = False) -> list[torch.Tensor]:
    """Frozen linears that read the same rows, each with the frozen low-rank branch beside it (if any) and the LoRA at
    its strength (if any), or the GELU of that. In fp32 each by itself, to the bit as in diffusers and peft."""
    lora = {name: block.lora[name] for name in names if name in block.lora}
    exact, inputs = x.dtype == torch.float32, {}
    if lora and len(names) > 1 and not exact:
        inputs = dict(zip(lora, lora_inputs(x, [a for a, _ in lora.values()]), strict=True))
    out = []
    for name in names:
        frozen = (x, block.weights[name], block.plain[f"{name}.bias"], block.precision)
        if lora and len(names) == 1 and not exact:
            y, inputs[name] = frozen_linear_and_lora_input(*frozen, lora[name][0])
        else:
            y = frozen_linear(*frozen)
        if name in block.recovery:
            down, up = block.recovery[name]
            y = y + F.linear(F.linear(x, down), up)
        if name in inputs:
            out.append(plus_lora(y, inputs[name], lora[name][1], block.strength, gelu=gelu))
            continue
        if name in lora:
            y = y + lora_branch(x, *lora[name], block.strength)
        out.append(F.gelu(y, approximate="tanh") if gelu else y)
    return out


def _linear(name: str, x: torch.Tensor, block: BlockWeights, *, gelu: bool = False) -> torch.Tensor:
    return _linears((name,), x, block, gelu=gelu)[0]


def _modulated(x_BTD: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    normed = F.layer_norm(x_BTD.float(), x_BTD.shape[-1:], eps=EPS)
    return (normed * (1 + scale) + shift).type_as(x_BTD)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def _rotated(x_BTNK: torch.Tensor, cos_1T1K: torch.Tensor, sin_1T1K: torch.Tensor) -> torch.Tensor:
    x1, x2 = x_BTNK.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_1T1K[..., 0::2], sin_1T1K[..., 1::2]
    return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1).flatten(-2).type_as(x_BTNK)


def _placed(
    x_BTD: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int
) -> torch.Tensor:
    """Queries or keys (B, T, N, K), normalized and turned by their position."""
    if x_BTD.dtype == torch.float32:  # to the bit as in diffusers
        return _rotated(_rms_norm(x_BTD, weight).unflatten(2, (heads, -1)), cos, sin)
    out_MD = NormRope.apply(x_BTD.flatten(0, 1), weight, cos.flatten(0, 2), sin.flatten(0, 2))
    return out_MD.view(*x_BTD.shape[:2], heads, -1)


def pre_attention(
    x_BTD: torch.Tensor, time_B6D: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, block: BlockWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v as (B, T, N, K)."""
    shift, scale, *_ = (block.plain["scale_shift_table"] + time_B6D.float()).chunk(6, dim=1)
    h = _modulated(x_BTD, scale, shift)
    q, k, v = _linears(BEFORE_LINEARS, h, block)
    q = _placed(q, block.plain["attn1.norm_q.weight"], cos, sin, block.heads)
    k = _placed(k, block.plain["attn1.norm_k.weight"], cos, sin, block.heads)
    return q, k, v.unflatten(2, (block.heads, -1))


def pre_attention_again(
    x_BTD: torch.Tensor,
    g_BTD: torch.Tensor,
    time_B6D: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    block: BlockWeights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`pre_attention`, where a block is recomputed: x's gradient comes with `g_BTD`, what x is given behind the
    attention, added. So the compiler adds it in the kernel that writes that gradient."""
    x: torch.Tensor = _PlusGradient.apply(x_BTD, g_BTD)
    return pre_attention(x, time_B6D, cos, sin, block)


def text_kv(text_BSD: torch.Tensor, block: BlockWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the cross-attention, as (B, S, N, K)."""
    k, v = _linears(TEXT_LINEARS, text_BSD, block)
    k = _rms_norm(k, block.plain["attn2.norm_k.weight"])
    return k.unflatten(2, (block.heads, -1)), v.unflatten(2, (block.heads, -1))


def _before_last(
    x_BTD: torch.Tensor,
    a_BTD: torch.Tensor,
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    time_B6D: torch.Tensor,
    block: BlockWeights,
    kernels: TextKernels,
    saved: Sequence[torch.Tensor] = (),
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """(the hidden state behind self-attention and behind the attention to the text, both (B, T, D): `saved`, where
    given; what the last linear reads; the gate behind that)."""
    plain = block.plain
    _, _, gate, c_shift, c_scale, c_gate = (plain["scale_shift_table"] + time_B6D.float()).chunk(6, dim=1)
    x = (x_BTD.float() + _linear("attn1.to_out.0", a_BTD, block) * gate).type_as(x_BTD)
    behind_self = _given(x, saved[0]) if saved else x

    x = behind_self
    h = F.layer_norm(x.float(), x.shape[-1:], plain["norm2.weight"].float(), plain["norm2.bias"].float(), EPS)
    q = _linear("attn2.to_q", h.type_as(x), block)
    q = _rms_norm(q, plain["attn2.norm_q.weight"]).unflatten(2, (block.heads, -1))
    c = text_attention(q, k_BSNK, v_BSNK, kernels)
    x = x + _linear("attn2.to_out.0", c.flatten(2, 3), block)
    behind_text = _given(x, saved[1]) if saved else x

    h = _linear("ffn.net.0.proj", _modulated(behind_text, c_scale, c_shift), block, gelu=True)
    return (behind_self, behind_text), h, c_gate


def _output(x_BTD: torch.Tensor, last_BTD: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return (x_BTD.float() + last_BTD.float() * gate).type_as(x_BTD)


def post_attention(
    x_BTD: torch.Tensor,
    a_BTD: torch.Tensor,
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    time_B6D: torch.Tensor,
    block: BlockWeights,
    kernels: TextKernels,
) -> torch.Tensor:
    """The block's output from its input, its self-attention's output, and the text's keys and values."""
    return post_attention_saving(x_BTD, a_BTD, k_BSNK, v_BSNK, time_B6D, block, kernels)[0]


def post_attention_saving(
    x_BTD: torch.Tensor,
    a_BTD: torch.Tensor,
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    time_B6D: torch.Tensor,
    block: BlockWeights,
    kernels: TextKernels,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The block's output, and the hidden state behind self-attention and behind the attention to the text."""
    hidden, h, gate = _before_last(x_BTD, a_BTD, k_BSNK, v_BSNK, time_B6D, block, kernels)
    return _output(hidden[1], _linear("ffn.net.2", h, block), gate), *hidden


def post_attention_again(
    x_BTD: torch.Tensor,
    a_BTD: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    k_BSNK: torch.Tensor,
    v_BSNK: torch.Tensor,
    time_B6D: torch.Tensor,
    block: BlockWeights,
    kernels: TextKernels,
) -> torch.Tensor:
    """What `post_attention` is recomputed for: a tensor with the gradients of the output, and not its values. `saved`:
    what `post_attention_saving` gave beside the output, or nothing. Left out are the product of the last linear and, of
    what was saved, those of both output projections, each with the second half of its LoRA. Without the compiler all of
    it is computed."""
    (_, x), h, gate = _before_last(x_BTD, a_BTD, k_BSNK, v_BSNK, time_B6D, block, kernels, saved)
    last = _linear("ffn.net.2", h, block)
    # not `zeros_like`: in a graph they would come after what they stand for
    return _output(x, _given(last, torch.zeros(last.shape, dtype=last.dtype, device=last.device)), gate)


class _Given(torch.autograd.Function):
    """`value` in y's place, with y's gradient. A new tensor: where this gives a view of what it is given, the compiler
    of torch 2.11 has its gradient go to what it is a view of, and nothing in between learns."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return g, None


class _PlusGradient(torch.autograd.Function):
    """x, whose gradient comes with `g` added. A new tensor, as in `_Given`; the compiler makes none of it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(g)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (g,) = ctx.saved_tensors
        return g + grad, None


def _given(y: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    given: torch.Tensor = _Given.apply(y, value)
    return given


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the ten linears of a block, from a transformer's config."""
    width, ffn = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    shapes = dict.fromkeys(LINEARS, (width, width))
    shapes["ffn.net.0.proj"], shapes["ffn.net.2"] = (ffn, width), (width, ffn)
    return shapes
