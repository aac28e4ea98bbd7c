"""cuDNN's open backward as it is called, without a card: the package's kernels are the CPU's."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from engine.kernels import cudnn_attention
from engine.wan import attention

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {"tokens": 24, "heads": 2, "width": 16, "dtype": torch.float32}


class Kernels:
    """As the package has them: made of tensors that look like the real ones, and run on such alone."""

    made: list["Kernels"]

    def __init__(self, *samples: torch.Tensor, deterministic: bool) -> None:
        self.layouts = [(t.shape, t.stride()) for t in samples]
        self.deterministic, self.ready = deterministic, False
        self.made.append(self)

    def check_support(self) -> None:
        if len(self.made) > 1 and self.layouts[0][0][2] > 1000:
            raise ValueError("Q is too long for me\nand why")

    def compile(self) -> None:
        self.ready = True

    def scratch_workspace_bytes(self) -> int:
        return 8 * self.layouts[0][0][2]

    def execute(self, *tensors: torch.Tensor, workspace: torch.Tensor) -> None:
        assert self.ready and [(t.shape, t.stride()) for t in tensors] == self.layouts
        assert workspace.dtype == torch.uint8 and workspace.numel() == self.scratch_workspace_bytes()
        q, k, v, out, grad, stats, *gradients = tensors
        for t in (q, k, v, out, grad):
            assert t.stride(-1) == 1 and not any(stride * t.element_size() % 16 for stride in t.stride()[:3])
        assert stats.shape == (*q.shape[:3], 1) and stats.is_contiguous()
        found = attention.backward("cpu", grad, q, k, v, out, stats[..., 0], deterministic=True)
        for into, gradient in zip(gradients, found, strict=True):
            into.copy_(gradient)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> type[Kernels]:
    """The package, on an RTX 50."""
    for name in ("cudnn", "cudnn.sdpa", "cudnn.sdpa.bwd"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    bwd: Any = sys.modules["cudnn.sdpa.bwd"]
    monkeypatch.setattr(sys.modules["cudnn.sdpa"], "bwd", bwd, raising=False)
    bwd.SdpaBwdDslSm120 = type("SdpaBwdDslSm120", (Kernels,), {"made": []})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(cudnn_attention, "_compiled", {})
    made: type[Kernels] = bwd.SdpaBwdDslSm120
    return made


def drawn(tokens: int, seed: int, batch: int = 1, heads: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, heads, 16, generator=generator).transpose(1, 2)


def given(layout: str) -> tuple[torch.Tensor, ...]:
    """grad, q, k, v, output and logsumexp."""
    batch, keys = (2, 9) if layout == "a text and a batch" else (1, 24)
    grad, q = (drawn(24, seed, batch) for seed in (0, 1))
    k, v = (drawn(keys, seed, batch) for seed in (2, 3))
    out, lse = attention.CPU.forward(q, k, v)
    if layout == "each its own":
        q, k = q.contiguous(), torch.cat([k, k], -1)[..., :16]  # the second is a part of something wider
        v = torch.cat([v, v[..., :1]], -1)[..., :16]  # rows that begin at no multiple of 16 bytes
        out, lse = out.transpose(-1, -2).contiguous().transpose(-1, -2), torch.stack([lse, lse], -1)[..., 0]
        assert v.stride(2) == 17 and not lse.is_contiguous()
    if layout == "an expanded gradient":  # as that of a sum is
        grad = torch.ones(()).expand(grad.shape)
    return grad, q, k, v, out, lse


@pytest.mark.parametrize("layout", ["as in a block", "a text and a batch", "each its own", "an expanded gradient"])
def test_every_layout_comes_to_the_kernels_as_they_read_it(package: type[Kernels], layout: str) -> None:
    tensors = given(layout)
    exact = attention.backward("cpu", *(t.contiguous() for t in tensors), deterministic=True)
    found = attention.backward("cudnn-open", *tensors, deterministic=True)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(attention.backward_of_queries("cudnn-open", *tensors, deterministic=True), found[0])


def test_the_queries_gradient_is_written_so_that_no_scores_are_kept(package: type[Kernels]) -> None:
    """Into (B, T, N, K) the package would write it by way of a workspace of all scores."""
    found = attention.backward("cudnn-open", *given("as in a block"), deterministic=True)
    (kernels,) = package.made
    (shape, stride), *others = kernels.layouts[6:]
    assert torch.empty_strided(shape, stride).is_contiguous()
    for layout in others:
        assert torch.empty_strided(*layout).transpose(1, 2).is_contiguous()
    assert all(t.transpose(1, 2).is_contiguous() for t in found), "as the projections before it want it"


def test_they_are_compiled_once_for_each_layout_and_order(package: type[Kernels]) -> None:
    for layout, fixed in (("as in a block", True), ("as in a block", True), ("a text and a batch", True)):
        attention.backward("cudnn-open", *given(layout), deterministic=fixed)
    attention.backward("cudnn-open", *given("as in a block"), deterministic=False)
    assert [kernels.deterministic for kernels in package.made] == [True, True, False]


def test_it_is_one_of_the_candidates(package: type[Kernels], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernels", lambda device: ["cpu", "cudnn-open"])
    found = attention.benchmark_kernels(CPU, **SIZE, deterministic=True)
    assert set(found.forward) == {"cpu"} and set(found.backward) == {"cpu", "cudnn-open"} and not found.refused
    found = attention.benchmark_kernels(CPU, **SIZE | {"tokens": 1001}, deterministic=True)
    assert found.refused == {"cudnn-open": "Q is too long for me"} and set(found.backward) == {"cpu"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = attention.benchmark_kernels(CPU, **SIZE, deterministic=False)
    assert found.refused == {"cudnn-open": "no kernels for compute capability 9.0"}


@pytest.mark.parametrize(
    ("installed", "why"),
    [({}, "the package nvidia-cudnn-frontend is not installed"), ({"nvidia-cudnn-frontend": "1.5.0"}, "is incomplete")],
)
def test_without_the_package_or_with_an_old_one_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], why: str
) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", ModuleType("cudnn") if installed else None)
    for name in ("cudnn.sdpa", "cudnn.sdpa.bwd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(cudnn_attention, "_compiled", {})
    monkeypatch.setattr(attention, "versions", lambda: installed)
    monkeypatch.setattr(attention, "kernels", lambda device: ["cpu", "cudnn-open"])
    assert why in attention.benchmark_kernels(CPU, **SIZE, deterministic=True).refused["cudnn-open"]
