"""Attention against float64, and the choice among kernels of which some fail, lie or are not there."""

import os
import sys
from functools import partial
from importlib.metadata import version

import pytest
import torch

from engine.system.device import fixed_order
from engine.wan import attention
from presets.caches.cache_files import caches_dir
from presets.errors import UserError

CPU = torch.device("cpu")
SIZE = {"tokens": 24, "heads": 2, "width": 16, "dtype": torch.float32}


def drawn(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, tokens, 2, 16, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


def test_output_and_gradients_are_those_of_the_definition():
    q, k, v, grad = (drawn(24, seed) for seed in range(4))
    exact = [t.double().detach().requires_grad_(True) for t in (q, k, v)]
    scores = exact[0] @ exact[1].transpose(-1, -2) / 16**0.5
    (scores.softmax(-1) @ exact[2]).backward(grad.double())
    out, lse = attention.CPU.forward(q, k, v)
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ exact[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    for ours, t in zip(attention.CPU.backward(grad, q, k, v, out, lse), exact, strict=True):
        torch.testing.assert_close(ours.double(), t.grad, rtol=1e-5, atol=1e-5)


@pytest.fixture
def card(monkeypatch):
    """A card whose kernels are the CPU's, each with a fault: {name: fault}."""
    true_forward, true_backward = attention.forward, attention.backward

    def forward(faults, kernel, q, k, v):
        if faults[kernel] == "absent":
            raise ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")
        if faults[kernel] == "incomplete":
            raise ModuleNotFoundError("No module named 'cutlass'", name="cutlass")
        if faults[kernel] == "a part of torch is absent":
            raise ModuleNotFoundError("No module named 'torch.part'", name="torch.part")
        if faults[kernel] == "no memory":
            raise torch.OutOfMemoryError("out of memory")
        if faults[kernel] == "no memory in cuDNN":
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        if faults[kernel] == "unsupported":
            raise RuntimeError("no engine for this card\nand a long trace")
        out, lse = true_forward("cpu", q, k, v)
        return (out, lse / 0.693) if faults[kernel] == "lse to another base" else (out, lse)

    def backward(faults, kernel, grad, q, k, v, out, lse, *, deterministic):
        if faults[kernel] == "forward only":
            raise NotImplementedError
        dq, dk, dv = true_backward("cpu", grad, q, k, v, out, lse, deterministic=deterministic)
        if faults[kernel] == "any order":
            dq = dq * (1 + 1e-3 * torch.rand(()))
        if faults[kernel] == "wrong gradient":
            dk = dk * 1.1
        return dq, dk, dv

    def with_kernels(**faults):
        monkeypatch.setattr(attention, "kernels", lambda device: list(faults))
        monkeypatch.setattr(attention, "forward", partial(forward, faults))
        monkeypatch.setattr(attention, "backward", partial(backward, faults))

    return with_kernels


@pytest.mark.parametrize(
    ("fault", "forward", "why"),
    [
        ("absent", False, "not installed"),
        ("incomplete", False, "incomplete: No module named 'cutlass'"),
        ("unsupported", False, "no engine for this card"),
        ("lse to another base", False, "away from"),
        ("forward only", True, "NotImplementedError"),
        ("any order", True, "no fixed order"),
        ("wrong gradient", True, "away from"),
    ],
)
@pytest.mark.parametrize("keys", [None, 7])
def test_a_kernel_with_a_fault_is_refused_with_the_reason(card, fault, forward, why, keys):
    card(flash="", flash4=fault)
    found = attention.benchmark_kernels(CPU, **SIZE, deterministic=True, keys=keys)
    assert set(found.backward) == {"flash"} and ("flash4" in found.forward) == forward
    assert why in found.refused["flash4"] and "flash" not in found.refused
    assert f"flash4: {found.refused['flash4']}" in found.text


def test_a_kernel_without_a_forward_goes_back_from_anothers(card):
    card(flash="", **{"triton-large": "", "triton-small": "any order"})
    found = attention.benchmark_kernels(CPU, **SIZE, deterministic=True)
    assert (
        set(found.forward) == {"flash"}
        and set(found.backward) == {"flash", "triton-large"}
        and "no fixed order" in found.refused["triton-small"]
    )
    card(flash="a part of torch is absent")
    assert (
        attention.benchmark_kernels(CPU, **SIZE, deterministic=True).refused["flash"] == "No module named 'torch.part'"
    )
    card(flash="unsupported", **{"triton-large": ""})
    assert (
        attention.benchmark_kernels(CPU, **SIZE, deterministic=True).refused["triton-large"]
        == "no other kernel goes forward"
    )


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ((8, 0), {"cudnn-open"}),
        ((8, 9), set()),
        ((9, 0), {"flash4"}),
        ((10, 3), {"flash4"}),
        ((12, 0), {"cudnn-open"}),
        ((12, 1), {"cudnn-open"}),
    ],
)
def test_a_card_has_the_kernels_that_were_written_for_it(monkeypatch, capability, names):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert set(attention.kernels(torch.device("cuda"))) == names | {"cudnn", "flash", "triton-large", "triton-small"}


def test_cudnn_goes_forward_alone_where_an_order_is_asked_for(card):
    """Whatever the comparison of two calls says: on small tensors chance may hide it."""
    card(flash="", cudnn="")
    found = attention.benchmark_kernels(CPU, **SIZE, deterministic=True)
    assert (
        set(found.forward) == {"flash", "cudnn"}
        and set(found.backward) == {"flash"}
        and "no fixed order" in found.refused["cudnn"]
    )
    assert set(attention.benchmark_kernels(CPU, **SIZE, deterministic=False).backward) == {"flash", "cudnn"}


def test_any_order_will_do_where_none_is_asked_for(card):
    card(good="", loose="any order")
    assert set(attention.benchmark_kernels(CPU, **SIZE, deterministic=False).backward) == {"good", "loose"}


def test_each_direction_has_its_own_fastest_kernel():
    found = attention.KernelBenchmark({"a": 1.0, "b": 2.0}, {"b": 3.0, "c": 4.0}, {})
    assert found.fastest == ("a", "b")
    assert attention.Attention(*found.fastest, deterministic=True).text == "a forward, b backward, in a fixed order"


def test_no_kernel_at_all_is_an_error_that_says_why(card):
    card(one="unsupported", two="forward only")
    with pytest.raises(UserError, match=r"one: no engine for this card; two: NotImplementedError"):
        _ = attention.benchmark_kernels(CPU, **SIZE, deterministic=True).fastest


@pytest.mark.parametrize("fault", ["no memory", "no memory in cuDNN"])
def test_running_out_of_memory_is_no_fault_of_the_kernel(card, fault):
    card(good="", one=fault)
    with pytest.raises(torch.OutOfMemoryError):
        attention.benchmark_kernels(CPU, **SIZE, deterministic=True)


def test_the_fixed_order_ends_where_it_began():
    with fixed_order():
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        with pytest.raises(ZeroDivisionError), fixed_order():
            _ = 1 / 0
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with fixed_order(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_packages_with_kernels_are_told_with_their_versions():
    """Rates are measured anew, and a resume says so, when one of them changes."""
    assert attention.versions()["triton"] == version("triton")


def test_the_package_of_flash4_is_told_to_keep_its_kernels_before_it_is_imported(tmp_path, monkeypatch):
    """In the caches folder. A stand-in for the package, which needs CUDA: it reads its settings when it is imported."""
    cute = tmp_path / "flash_attn" / "cute"
    cute.mkdir(parents=True)
    for package in (cute.parent, cute):
        (package / "__init__.py").touch()
    (cute / "interface.py").write_text("import os\nfound = dict(os.environ)\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"ENABLED": "1", "DIR": str(caches_dir() / "flash-attn-4")}
    settings = {f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}": value for name, value in settings.items()}
    left = [(os.environ, name) for name in settings]
    left += [(sys.modules, f"flash_attn{rest}") for rest in ("", ".cute", ".cute.interface")]
    for where, name in left:
        monkeypatch.setitem(where, name, "")  # so that what stands there by the end is taken back
        del where[name]
    found = attention._flash4.__wrapped__().found
    assert settings.items() <= found.items()
