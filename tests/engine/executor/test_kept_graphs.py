"""What a block's graph holds that is kept from the forward to the backward."""

from typing import Any

import pytest
import torch
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from engine.executor.executor_resources import _compiled, mark_frozen, norms_again, norms_and_gelu_again
from engine.wan import attention
from engine.wan.block import NORMS, TEXT_LINEARS, BlockWeights, linear_shapes, post_attention, pre_attention
from engine.wan.quantize import pack
from presets.planner.memory_costs import KEPT_CODES
from tests.engine.executor.test_compiled_again import WITHOUT_CPP
from tests.helpers.tiers import thorough

pytestmark = pytest.mark.process  # for its length
TOKENS, WIDTH, HEADS, FFN = 600, 64, 2, 176
ROW = TOKENS * WIDTH
SHAPES = linear_shapes({"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "ffn_dim": FFN})


def block_of(precision: str) -> BlockWeights:
    torch.manual_seed(2)
    plain = {f"{name}.bias": torch.randn(n).bfloat16() for name, (n, _) in SHAPES.items()}
    plain |= {f"{name}.weight": torch.randn(WIDTH).bfloat16() for name in (*NORMS, "norm2")}
    plain |= {"norm2.bias": torch.randn(WIDTH).bfloat16(), "scale_shift_table": torch.randn(1, 6, WIDTH)}
    packed = {name: pack((torch.randn(shape) / 8).bfloat16(), precision) for name, shape in SHAPES.items()}
    lora = {
        name: (torch.randn(4, k).requires_grad_(), torch.randn(n, 4).requires_grad_())
        for name, (n, k) in SHAPES.items()
    }
    return BlockWeights(packed, plain, {}, lora, torch.ones(()), HEADS, precision)


def held_and_gradients(block: BlockWeights, backend: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the graphs of both functions hold beside the block's own tensors and the angles; the LoRA's gradients."""
    torch.manual_seed(3)
    x, a = (torch.randn(1, TOKENS, WIDTH).bfloat16().requires_grad_() for _ in range(2))
    k, v = (torch.randn(1, 8, HEADS, WIDTH // HEADS).bfloat16() for _ in range(2))
    cos, sin = (torch.randn(1, TOKENS, 1, WIDTH // HEADS) for _ in range(2))
    time = torch.randn(1, 6, WIDTH)
    held: dict[int, torch.Tensor] = {}

    def hold(t: torch.Tensor) -> torch.Tensor:
        held[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        qkv = _compiled(pre_attention, backend)(x, time, cos, sin, block)
        y = _compiled(post_attention, backend)(x, a, k, v, time, block, attention.CPU.to_text)
    leaves = [p for name, pair in block.lora.items() if name not in TEXT_LINEARS for p in pair]
    gradients = torch.autograd.grad(sum(t.float().square().sum() for t in (*qkv, y)), leaves)
    own = {t.data_ptr() for packed in block.weights.values() for t in packed} | {cos.data_ptr(), sin.data_ptr()}
    return [t for at, t in held.items() if at not in own], list(gradients)


# one whose codes no graph keeps, and the one of which codes are kept; the others are as the first
@pytest.mark.parametrize("precision", ["float8", "qint4", *thorough("qfloat8", "int8")])
def test_a_kept_graph_holds_no_weight_but_qint4s_codes_no_norm_and_no_gelu(precision: str) -> None:
    block = block_of(precision)
    mark_frozen(block)
    with fresh_cache(), inductor.patch(WITHOUT_CPP):
        torch._dynamo.reset()
        held, gradients = held_and_gradients(block, norms_and_gelu_again)
        with_gelu, alike = held_and_gradients(block, norms_again)
        more, same = held_and_gradients(block, "inductor")
    torch._dynamo.reset()
    sizes = [n * k for n, k in SHAPES.values()]  # in whatever shape: no rows' sizes are among them
    weights = sum(t.nbytes for t in held if t.numel() in sizes)
    assert weights <= KEPT_CODES.get(precision, 0) * sum(sizes)
    # eight rows of width D, their sums and one row of width F: what norms and the GELU give is made again, no product
    rows, rows_gelu, rows_more = (
        sum(t.numel() for t in tensors if t.numel() not in sizes) / ROW for tensors in (held, with_gelu, more)
    )
    wide = FFN / WIDTH
    assert rows == pytest.approx(8.8 + wide, abs=0.1) and rows_more - rows == pytest.approx(4 + wide, abs=0.1)
    assert rows_gelu - rows == pytest.approx(wide, abs=0.1)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, alike, strict=True))
