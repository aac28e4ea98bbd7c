"""The attention to the text as an operator: torch's own bits, the kernels it is told, and all that the compiler asks of
an operator."""

import pytest
import torch
from torch.nn import functional as F

from engine.encode.text_embeddings import MAX_TOKENS
from engine.wan import attention, text_attention
from engine.wan.attention import CPU, TextKernels

KERNELS = CPU.to_text


def drawn(*, text_learns: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v of more queries than keys."""
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, rows, 3, 16, generator=made) for rows in (24, 9, 9))
    return q.requires_grad_(), k.requires_grad_(text_learns), v.requires_grad_(text_learns)


def test_as_many_keys_are_measured_as_a_text_has():
    assert attention.TEXT_TOKENS == MAX_TOKENS


@pytest.mark.parametrize("text_learns", [True, False])
def test_output_and_gradients_are_those_of_torch_to_the_bit(text_learns):
    q, k, v = drawn(text_learns=text_learns)
    leaves = (q, k, v) if text_learns else (q,)
    out = text_attention.text_attention(q, k, v, KERNELS)
    torchs = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    assert torch.equal(out, torchs)
    for grad in (torch.randn_like(out), torch.ones(()).expand(out.shape)):
        ours, theirs = (torch.autograd.grad(y, leaves, grad, retain_graph=True) for y in (out, torchs))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(text_attention.text_attention(q, k, v, KERNELS), torchs)


@pytest.mark.parametrize("text_learns", [True, False])
def test_the_compiler_may_take_it_as_it_is(text_learns):
    """Sizes, strides and gradients are those that it is told without running it, for any number of tokens."""
    torch.library.opcheck(text_attention._forward, (*drawn(text_learns=text_learns), *KERNELS))
    q, k, v = (t.detach() for t in drawn())
    out, lse = text_attention._forward(q, k, v, *KERNELS)
    torch.library.opcheck(text_attention._backward, (q, q, k, v, out, lse, "cpu", True, text_learns))


@pytest.mark.parametrize("text_learns", [True, False])
def test_it_runs_the_kernels_it_is_told_and_leaves_out_what_nobody_learns_from(monkeypatch, text_learns):
    ran = []

    def told(way, run):
        def kernel(name, *tensors, **options):
            ran.append((way, name, options))
            return run("cpu", *tensors, **options)

        return kernel

    for way in ("forward", "backward", "backward_of_queries"):
        monkeypatch.setattr(attention, way, told(way, getattr(attention, way)))
    q, k, v = drawn(text_learns=text_learns)
    text_attention.text_attention(q, k, v, TextKernels("one", "two", False)).sum().backward()
    way = "backward" if text_learns else "backward_of_queries"
    assert ran[:2] == [("forward", "one", {}), (way, "two", {"deterministic": False})]
    assert (k.grad is None) == (v.grad is None) == (not text_learns)
