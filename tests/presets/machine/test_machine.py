import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from presets.machine.gpus import Gpu
from presets.machine.machine import Machine, is_wsl, read_machine
from presets.machine.torch_build import installed_build
from presets.machine.visible_gpus import VISIBLE

GIB = 2**30
NO_MIG = pynvml.NVMLError_NotSupported()


class Card:
    """One card of the fake driver. A value that is an exception is raised when it is asked for."""

    def __init__(
        self,
        name: str = "NVIDIA H100",
        total: Any = 80 * GIB,
        free: int = 79 * GIB,
        mig: Any = NO_MIG,
        slices: "list[Card | None] | None" = None,
        computing: Any = (),
        drawing: Any = (),
        handle: Any = None,
        uuid: str = "GPU-1",
    ):
        (
            self.name,
            self.total,
            self.free,
            self.mig,
            self.slices,
            self.computing,
            self.drawing,
            self.handle,
            self.uuid,
        ) = (name, total, free, mig, slices or [], computing, drawing, handle, uuid)


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the driver's cards, by the shell that the tests run in."""
    monkeypatch.delenv(VISIBLE, raising=False)


class FakeNvml:
    """NVML with the given cards; everything else (errors, constants) is pynvml's own."""

    def __init__(self, *cards: Card, init: Exception | None = None, count: Exception | None = None, cuda: Any = 13000):
        self.cards, self.init, self.count, self.cuda, self.open = cards, init, count, cuda, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    @staticmethod
    def said(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def nvmlInit(self) -> None:
        self.said(self.init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return int(self.said(self.cuda))

    def nvmlDeviceGetCount(self) -> int:
        return int(self.said(self.count or len(self.cards)))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        self.said(self.cards[index].handle)
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(total=self.said(card.total), free=card.free)

    def nvmlDeviceGetMigMode(self, card: Card) -> tuple[int, int]:
        return self.said(card.mig), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        if index >= len(card.slices) or card.slices[index] is None:
            raise pynvml.NVMLError_NotFound()
        return card.slices[index]  # type: ignore[return-value]

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> Any:
        return self.said(card.computing)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> Any:
        return self.said(card.drawing)


def machine(*cards: Card, **driver: Any) -> Machine:
    fake = FakeNvml(*cards, **driver)
    found = read_machine(Path("/"), nvml=fake)
    assert fake.open == 0, "the driver was not let go"
    return found


def using(pid: int, memory: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


def test_every_fact_of_a_card() -> None:
    me = os.getpid()
    gone = 2**22 + 5  # above the largest pid of Linux
    found = machine(
        Card(computing=[using(me, 3 * GIB), using(gone, None)], drawing=[using(me, 1 * GIB)]),
        Card(name="NVIDIA L4", total=24 * GIB, free=20 * GIB, uuid="GPU-2"),
    )
    assert found.gpu_problem == ""
    first, second = found.gpus
    assert (first.index, first.name, first.uuid, first.capability, first.driver) == (
        0,
        "NVIDIA H100",
        "GPU-1",
        (9, 0),
        "580.65.06",
    )
    assert (first.vram_total, first.vram_free, first.mig, first.error, first.note) == (
        80 * GIB,
        79 * GIB,
        False,
        "",
        "",
    )
    assert [(p.pid, p.name, p.memory) for p in first.processes] == [
        (me, psutil.Process().name(), 3 * GIB),
        (gone, "", 0),
    ]
    assert second == Gpu(
        index=1,
        name="NVIDIA L4",
        uuid="GPU-2",
        capability=(9, 0),
        vram_total=24 * GIB,
        vram_free=20 * GIB,
        driver="580.65.06",
        cuda=13,
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVMLError_LibraryNotFound(), "no NVIDIA driver"),
        (pynvml.NVMLError_DriverNotLoaded(), "not loaded"),
        (pynvml.NVMLError_LibRmVersionMismatch(), "reboot"),
        (pynvml.NVMLError_NoPermission(), "/dev/nvidia"),
        (pynvml.NVMLError_Unknown(), "does not answer, unknown error"),
    ],
)
def test_no_usable_driver_is_one_sentence_with_a_remedy(error: Exception, words: str) -> None:
    found = machine(init=error)
    assert found.gpus == [] and words in found.gpu_problem and ": " in found.gpu_problem
    assert found.ram_total > 0 and found.cores >= 1 and found.disk_free > 0


@pytest.mark.parametrize(
    ("said", "cuda"),
    [(12040, 12), (13010, 13), (pynvml.NVMLError_LibraryNotFound(), 0), (AttributeError("an old binding"), 0)],
)
def test_the_cuda_that_the_driver_serves(said: Any, cuda: int) -> None:
    assert machine(Card(), cuda=said).gpus[0].cuda == cuda


def test_the_installed_torch_is_a_fact_of_the_machine() -> None:
    found = machine(Card())
    assert found.torch == installed_build() and found.torch is not None
    assert (found.torch_misfit is None) == bool(found.torch.cuda), "this driver serves CUDA 13"
    assert machine().torch_misfit is None, "without a GPU there is nothing to fit"


def test_a_driver_without_gpus() -> None:
    found = machine()
    assert found.gpus == [] and "sees no GPU" in found.gpu_problem


def test_a_driver_that_stops_answering() -> None:
    found = machine(Card(), count=pynvml.NVMLError_Timeout())
    assert found.gpus == [] and "stopped answering" in found.gpu_problem


@pytest.mark.parametrize("where", ["handle", "total", "computing"])
def test_a_gpu_that_vanishes_leaves_the_others(where: str) -> None:
    found = machine(Card(**{where: pynvml.NVMLError_GpuIsLost()}), Card(name="NVIDIA L4"))
    assert "lost this GPU" in found.gpus[0].error and found.gpus[0].index == 0
    assert found.gpus[1].error == "" and found.gpus[1].name == "NVIDIA L4"


def test_what_was_read_before_a_failure_is_kept() -> None:
    [gpu] = machine(Card(total=pynvml.NVMLError_Unknown())).gpus
    assert (
        gpu.name == "NVIDIA H100"
        and gpu.capability == (9, 0)
        and gpu.error == "it cannot be read, unknown error: look at nvidia-smi"
    )


def test_processes_that_may_not_be_seen_do_not_make_a_gpu_unusable() -> None:
    [gpu] = machine(Card(computing=pynvml.NVMLError_NoPermission())).gpus
    assert (
        gpu.error == ""
        and gpu.processes == []
        and gpu.vram_total == 80 * GIB
        and "insufficient permissions" in gpu.note
    )


def test_a_mig_slice_stands_for_its_card() -> None:
    slice_ = Card(name="NVIDIA H100 MIG 3g.40gb", total=40 * GIB, free=39 * GIB, uuid="MIG-7")
    [gpu] = machine(Card(mig=1, total=pynvml.NVMLError_NoPermission(), slices=[None, slice_, Card()])).gpus
    assert (gpu.mig, gpu.name, gpu.uuid, gpu.vram_total, gpu.error) == (
        True,
        "NVIDIA H100 MIG 3g.40gb",
        "MIG-7",
        40 * GIB,
        "",
    )
    assert gpu.capability == (9, 0)


def test_mig_without_a_slice() -> None:
    [gpu] = machine(Card(mig=1)).gpus
    assert gpu.mig and "no slice" in gpu.error


def test_mig_possible_but_off() -> None:
    [gpu] = machine(Card(mig=0)).gpus
    assert not gpu.mig and gpu.vram_total == 80 * GIB


def test_memory_shared_with_the_cpu() -> None:
    found = machine(Card(name="NVIDIA GB10", total=pynvml.NVMLError_NotSupported()))
    assert found.gpus[0].vram_total == found.ram_total and "share" in found.gpus[0].note and found.gpus[0].error == ""


def test_the_real_driver_of_this_machine_or_its_absence() -> None:
    found = read_machine(Path("/"))
    assert bool(found.gpus) != bool(found.gpu_problem)


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = read_machine(tmp_path / "runs" / "orbit", nvml=FakeNvml())
    assert found.disk_path == str(tmp_path) and found.disk_free > 0
    assert read_machine(tmp_path / "file" / "below", nvml=FakeNvml()).disk_path == str(tmp_path / "file")


def test_importing_costs_neither_torch_nor_the_driver() -> None:
    code = "import sys, presets.machine.machine; print([m for m in ('torch', 'pynvml', 'numpy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    ("version", "wsl"),
    [
        ("Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f) (gcc 11.2.0) #1 SMP", True),
        ("Linux version 6.8.0-45-generic (buildd@lcy02) (x86_64-linux-gnu-gcc-13) #45-Ubuntu SMP", False),
        (None, False),
    ],
)
def test_wsl_is_known_by_its_kernel(tmp_path, version, wsl):
    if version:
        (tmp_path / "version").write_text(version)
    assert is_wsl(tmp_path / "version") == wsl
