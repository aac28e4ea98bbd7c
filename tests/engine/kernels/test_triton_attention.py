"""Our attention backward against float64, in Triton's interpreter: the same kernels as on a card, element by
element."""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.kernels import SHARED, assembled

# Triton asks when it is imported whether to interpret, so the kernels run in a process of their own: all cases at once.
INTERPRETED = """
import sys, torch
from engine.kernels import triton_attention
def run(tiles, tensors):
    try:
        return triton_attention.backward(tiles, *tensors)
    except RuntimeError as e:
        return str(e)
cases = torch.load(sys.argv[1])
results = {name: {tiles: run(of, case) for tiles, of in triton_attention.TILES.items()} for name, case in cases.items()}
of_queries = {
    tiles: triton_attention.backward_of_queries(of, *cases["as to a text, with edges and a batch"])
    for tiles, of in triton_attention.TILES.items()
}
torch.save((results, of_queries), sys.argv[2])
"""
SHAPES = {  # batch, queries, keys, heads, width
    "whole tiles": (1, 128, 256, 1, 32),
    "edges and a batch": (2, 100, 75, 3, 16),
    "fewer queries": (1, 33, 150, 1, 64),
    "one query": (1, 1, 300, 2, 16),
    "one key": (1, 300, 1, 2, 16),
    "as to a text, in whole tiles": (1, 256, 128, 1, 16),
    "as to a text, with edges and a batch": (2, 190, 45, 1, 16),
    "other layouts": (2, 70, 90, 3, 16),
    "scores far below zero": (1, 64, 75, 2, 16),
    "an expanded gradient": (1, 40, 40, 2, 16),
    "heads of 8": (1, 4, 4, 1, 8),
    "heads of 24": (1, 4, 4, 1, 24),
}
REFUSED = [name for name in SHAPES if name.startswith("heads of")]
TILES = ("triton-large", "triton-small")


def drawn(batch: int, tokens: int, heads: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, tokens, heads, width, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


def exact(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """(output, logsumexp, gradients of q, k, v) by autograd in float64."""
    leaves = [t.double().requires_grad_(True) for t in (q, k, v)]
    scores = leaves[0] @ leaves[1].transpose(-1, -2) / q.shape[-1] ** 0.5
    out = scores.softmax(-1) @ leaves[2]
    out.backward(grad.double())
    return out.detach().float(), scores.logsumexp(-1).detach().float(), [t.grad for t in leaves if t.grad is not None]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """name of a shape -> (what the kernels gave for each size of tiles, what is right); "of queries" -> the gradient
    of queries alone."""
    cases, right = {}, {}
    for name, (batch, queries, keys, heads, width) in SHAPES.items():
        q, grad = (drawn(batch, queries, heads, width, seed) for seed in (0, 1))
        k, v = (drawn(batch, keys, heads, width, seed) for seed in (2, 3))
        if name == "an expanded gradient":  # as that of a sum is
            grad = torch.ones(()).expand(grad.shape)
        # keys that are not there must not count as zeros, which would be the likeliest of all
        if name == "scores far below zero":
            q, k = q + 5.5, k - 5.5
        out, lse, right[name] = exact(grad, q, k, v)
        # each its own: (N, B, T, K) in memory, part of a wider tensor, with the width not innermost, expanded
        if name == "other layouts":
            q, k, v = q.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([k, k], 2)[:, :, :keys], v.contiguous()
            out, lse = out.transpose(-1, -2).contiguous().transpose(-1, -2), torch.stack([lse, lse], -1)[..., 0]
            assert len({t.stride()[:3] for t in (q, k, v, out, grad)}) == 5
        if name == "an expanded gradient":
            assert grad.stride() == (0, 0, 0, 0)
        cases[name] = (grad, q, k, v, out, lse)
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(cases, folder / "in.pt")
    command = [sys.executable, "-c", INTERPRETED, str(folder / "in.pt"), str(folder / "out.pt")]
    said = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert said.returncode == 0, said.stderr
    gave, of_queries = torch.load(folder / "out.pt")
    return {**{name: (gave[name], right[name]) for name in SHAPES}, "of queries": of_queries}


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in REFUSED])
def test_gradients_are_those_of_the_definition(found, shape, tiles):
    gave, right = found[shape]
    # fp32 has so much fewer digits behind the point there
    tolerance = 1e-3 if shape == "scores far below zero" else 1e-5
    for ours, theirs in zip(gave[tiles], right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=tolerance)
        assert ours.transpose(1, 2).is_contiguous()  # as the projections before it want it


@pytest.mark.parametrize("tiles", TILES)
def test_the_gradient_of_queries_alone_is_the_same(found, tiles):
    gave, _ = found["as to a text, with edges and a batch"]
    assert torch.equal(found["of queries"][tiles], gave[tiles][0])


@pytest.mark.parametrize("shape", REFUSED)
def test_other_widths_are_refused(found, shape):
    assert found[shape][0] == dict.fromkeys(TILES, f"{shape} are not a power of two from 16")


@pytest.mark.process  # Triton's assembler is a program
@pytest.mark.parametrize("of", ["keys", "queries"])
def test_the_small_tiles_fit_an_rtx_50(of):
    """Compute capability 8.6 and 8.9 have as much shared memory and take as much of it."""
    kernels = pytest.importorskip("engine.kernels.triton_attention", reason="Triton is there on Linux")
    kernel, tile = getattr(kernels, f"_of_{of}"), getattr(kernels.TILES["triton-small"], f"of_{of}")
    options = kernels._options(tile, 11264, 11264, 128)
    constants = {name: options.pop(name) for name in list(options) if name.isupper()}
    constants |= {"PARTS": 1} if of == "keys" else {}
    types = {name: "i32" for name in kernel.arg_names if name not in constants}
    types |= {name: "*bf16" for name in ("q", "k", "v", "grad", "dq", "dk", "dv") if name in types}
    types |= {"lse": "*fp32", "delta": "*fp32", "scale": "fp32"}
    whole = " ".join(types.keys() - {"heads"})
    made = assembled(kernel, types, constants, 120, whole=whole, **options)
    assert made.metadata.shared <= SHARED[120] * 1024
