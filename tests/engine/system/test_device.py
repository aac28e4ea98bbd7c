"""Products in a fixed order, without torch's variable once torch has seen it; a card without room."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from engine.memory import out_of_memory
from engine.run import run_job
from engine.system import device
from engine.system.device import CUBLAS_WORKSPACE, memory_errors, open_device, products_in_order, require_gpu
from presets.errors import UserError
from presets.job.toml_file import load_job, save_job, with_value
from presets.machine.machine import Machine
from presets.machine.torch_build import Build
from presets.machine.visible_gpus import NUMBERS, ORDER, VISIBLE
from tests.helpers.facts import gpu, machine
from tests.helpers.jobs import write_job

NAME, VALUE = CUBLAS_WORKSPACE


class Products:
    """A tensor of a card: its product wants the variable, the first time or every time. `faults`: what the products
    raise, in turn."""

    def __init__(self, *, every_time: bool = False, faults: tuple[str, ...] = ()) -> None:
        self.every_time, self.faults, self.seen = every_time, iter(faults), list[Any]()

    def __matmul__(self, other: object) -> None:
        assert torch.are_deterministic_algorithms_enabled()
        self.seen.append(os.environ.get(NAME))
        if fault := next(self.faults, ""):
            raise RuntimeError(fault)
        if os.environ.get(NAME) != VALUE and (self.every_time or len(self.seen) == 1):
            raise RuntimeError(f"not deterministic because it uses CuBLAS: set {NAME}")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[Products], Products]:
    def card(products: Products) -> Products:
        monkeypatch.setattr(torch, "ones", lambda *size, device: products)
        return products

    monkeypatch.setenv(NAME, "restored after the test")
    return card


def test_the_variable_goes_once_torch_has_seen_it(card):
    products = card(Products())
    products_in_order(torch.device("cpu"))
    assert products.seen == [VALUE, None]
    assert NAME not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_variable_stays_for_a_torch_that_asks_every_time(card):
    card(Products(every_time=True))
    products_in_order(torch.device("cpu"))
    assert os.environ[NAME] == VALUE


@pytest.mark.parametrize("faults", [("CUBLAS_STATUS_EXECUTION_FAILED",), ("", "CUBLAS_STATUS_EXECUTION_FAILED")])
def test_another_fault_is_not_taken_for_it(card, faults):
    card(Products(faults=faults))
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        products_in_order(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("sharers", "processes"), [(1, 32), (4, 8), (64, 1)])
def test_a_gpu_is_asked_for_a_product_once_its_memory_is_settled(monkeypatch, sharers, processes):
    """The first product takes memory: the cap and the way it is taken come before."""
    done: list[object] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", done.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: SimpleNamespace(total_memory=80))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, of: done.append(share))
    monkeypatch.setattr(device, "products_in_order", done.append)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    monkeypatch.setattr(inductor, "quiesce_async_compile_pool", False)
    monkeypatch.setattr(inductor, "compile_threads", 32)
    opened = open_device("cuda:0", vram=20, sharers=sharers)
    assert inductor.quiesce_async_compile_pool, "what compiles does not wait in host memory for days"
    assert inductor.compile_threads == processes, "all ranks of a host have as many as one"
    assert done == ["expandable_segments:True", 0.25, opened]
    done.clear()
    open_device("cpu")
    assert done == []


def test_a_card_that_others_have_taken_whole_is_one_clear_error(card, monkeypatch):
    card(Products(faults=("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",)))

    def open_device(name: str | None, **_: object) -> torch.device:
        with memory_errors():
            products_in_order(torch.device("cpu"))
        raise AssertionError

    monkeypatch.setattr(out_of_memory, "open_device", open_device)
    with pytest.raises(UserError, match=r"no memory left to begin with: .*cublasCreate") as e:
        out_of_memory.open_device_with_room(None, vram=None)
    assert "other programs" in (e.value.fix or "")


def test_cuda_is_shown_the_job_s_gpu_alone_before_it_is_asked(tiny, tmp_path, monkeypatch):
    """The GPU that was planned for is the one that is opened: by UUID, before torch or what imports it counts GPUs."""
    for name in (VISIBLE, ORDER, NUMBERS):  # put back after the test
        monkeypatch.setenv(name, "3,1,0")
    monkeypatch.setattr(
        "presets.facts.gather.read_machine",
        lambda out: machine(gpu(80), gpu(24, index=1, uuid="MIG-2"), gpu(24, index=2, uuid="GPU-2b")),
    )
    job = write_job(tmp_path, tiny, prompts=0)
    save_job(with_value(load_job(job), "job.gpus", [1]), job, fresh=True)
    seen: list[dict[str, str]] = []

    def opened(name: str | None, **_: object) -> torch.device:
        seen.append({k: os.environ[k] for k in (VISIBLE, ORDER)})
        raise UserError("opened")

    monkeypatch.setattr(out_of_memory, "open_device", opened)
    monkeypatch.setattr(
        torch.cuda,
        "is_available",
        lambda: pytest.fail("asked too soon") if not seen and os.environ[VISIBLE] != "MIG-2" else False,
    )
    assert run_job(job, None, resume=False, workers=0) == 1
    assert seen == [{VISIBLE: "MIG-2", ORDER: "PCI_BUS_ID"}]


@pytest.mark.parametrize(
    ("here", "what", "fix"),
    [
        (
            machine(gpu(driver="550.54.14"), torch=Build("2.13.0", "13.0")),
            "torch 2.13.0 is built for CUDA 13.0, which NVIDIA driver 550.54.14 does not serve",
            "'torch>=2.10,<2.11'",
        ),
        (
            machine(gpu(driver="470.82.01"), torch=Build("2.13.0", "13.0")),
            "driver 470.82.01",
            "Update the NVIDIA driver",
        ),
        (machine(gpu(), torch=Build("2.13.0+cpu")), "is a build without CUDA", "pip install"),
        (
            machine(gpu(), torch=Build("2.13.0", "13.0")),
            "The NVIDIA driver on your system is too odd",
            "wanlora doctor",
        ),
        (
            machine(problem="there is no NVIDIA driver on this machine"),
            "there is no NVIDIA driver on this machine",
            "a machine with an NVIDIA GPU",
        ),
    ],
    ids=["CUDA 13", "no torch fits", "no CUDA", "torch's own word", "no GPU"],
)
def test_what_is_too_much_for_the_cpu_is_refused_there(
    monkeypatch: pytest.MonkeyPatch, here: Machine, what: str, fix: str
):
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too odd.\nMore of it.")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UserError) as refused:
        require_gpu(torch.device("cpu"), here)
    assert what in refused.value.what and fix in refused.value.fix and refused.value.where == "job.gpus"
    require_gpu(torch.device("cuda:0"), here)
