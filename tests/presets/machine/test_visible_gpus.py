"""CUDA_VISIBLE_DEVICES, of a user or a scheduler, decides what job.gpus counts; the driver is a false NVML."""

from pathlib import Path
from typing import Any

import pynvml
import pytest

from presets.errors import UserError
from presets.job.schema import Job
from presets.machine.gpus import visible_gpus
from presets.machine.machine import Machine, read_machine
from presets.machine.visible_gpus import named_in, numbers_in, pick, shown_to_cuda
from presets.rules.check import check_job
from tests.helpers.facts import facts, job
from tests.presets.machine.test_machine import GIB, Card, FakeNvml

SLICES: list[Card | None] = [
    Card("NVIDIA H100 MIG 3g.40gb", 40 * GIB, uuid="MIG-aa11"),
    None,
    Card("NVIDIA H100 MIG 1g.10gb", 10 * GIB, uuid="MIG-bb22"),
]


class Box(FakeNvml):
    """Four cards: two alike, one that MIG divides, a small one."""

    def __init__(self) -> None:
        super().__init__(
            Card("NVIDIA H100", uuid="GPU-0aaa"),
            Card("NVIDIA H100", uuid="GPU-0bbb"),
            Card("NVIDIA H100", uuid="GPU-1ccc", mig=1, slices=SLICES),
            Card("NVIDIA L4", 24 * GIB, uuid="GPU-2ddd"),
        )

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        raise pynvml.NVMLError_NotFound()


def seen(nvml: FakeNvml | None = None, **environ: str) -> Machine:
    return read_machine(Path("/"), nvml=nvml or Box(), environ=environ)


def names(found: Machine) -> list[tuple[int, str]]:
    return [(gpu.index, gpu.error or gpu.uuid) for gpu in found.gpus]


def test_without_the_variable_all_cards_are_seen_and_a_divided_one_is_its_first_slice():
    found = seen()
    assert (
        names(found) == [(0, "GPU-0aaa"), (1, "GPU-0bbb"), (2, "MIG-aa11"), (3, "GPU-2ddd")] and found.visible is None
    )
    assert visible_gpus({}, nvml=Box()) == ["GPU-0aaa", "GPU-0bbb", "MIG-aa11", "GPU-2ddd"]


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        ("1", ["GPU-0bbb"]),
        ("3,0", ["GPU-2ddd", "GPU-0aaa"]),
        (" 3 , 1 ", ["GPU-2ddd", "GPU-0bbb"]),
        ("GPU-1", ["MIG-aa11"]),
        ("GPU-0b,GPU-2ddd", ["GPU-0bbb", "GPU-2ddd"]),
        ("MIG-bb22", ["MIG-bb22"]),
        ("MIG-bb22,MIG-aa11", ["MIG-bb22", "MIG-aa11"]),
        ("MIG-b,0", ["MIG-bb22", "GPU-0aaa"]),
        ("0,-1,1", ["GPU-0aaa"]),
        ("0,,1", ["GPU-0aaa"]),
        ("1,", ["GPU-0bbb"]),
    ],
)
def test_the_list_is_seen_in_its_order_and_counted_from_zero(text, uuids):
    found = seen(CUDA_VISIBLE_DEVICES=text)
    assert names(found) == list(enumerate(uuids)) and found.visible == text
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": text}, nvml=Box()) == uuids


def test_a_slice_has_its_own_memory_and_its_card_s_capability():
    [gpu] = seen(CUDA_VISIBLE_DEVICES="MIG-bb22").gpus
    assert (gpu.mig, gpu.name, gpu.vram_total, gpu.capability, gpu.error) == (
        True,
        "NVIDIA H100 MIG 1g.10gb",
        10 * GIB,
        (9, 0),
        "",
    )


def test_a_slice_that_only_its_uuid_leads_to():
    class Container(Box):
        def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
            raise pynvml.NVMLError_NotFound()

        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
            return next(s for s in SLICES if s is not None and s.uuid == uuid)

        def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: Card) -> Card:
            return self.cards[2]

    assert names(seen(Container(), CUDA_VISIBLE_DEVICES="MIG-bb22")) == [(0, "MIG-bb22")]


@pytest.mark.parametrize("text", ["", "-1", "NoDevFiles", "-1,0"])
def test_a_list_that_hides_everything_says_so(text):
    found = seen(CUDA_VISIBLE_DEVICES=text)
    assert (
        found.gpus == []
        and found.gpu_problem.startswith(f"CUDA_VISIBLE_DEVICES is set to {text!r} and hides all 4 GPUs")
        and "unset it" in found.gpu_problem
    )
    [finding] = [f for f in check_job(job(), facts(machine=found)) if f.code == "gpu-missing"]
    assert "hides all 4 GPUs" in finding.message
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": text}, nvml=Box()) == []


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("0,7", 1, "names 7, and there is no such GPU"),
        ("GPU-9,1", 0, "names GPU-9, and there is no such GPU"),
        ("GPU-0", 0, "several GPUs begin so"),
        ("MIG-zz", 0, "no such GPU"),
        ("all", 0, "names all, and there is no such"),
        ("1,1", 1, "names it twice"),
        ("2,MIG-aa11", 1, "names it twice"),
    ],
)
def test_what_leads_nowhere_is_an_error_of_the_gpu_that_it_would_be(text, number, words):
    found = seen(CUDA_VISIBLE_DEVICES=text)
    assert words in found.gpus[number].error and sum(bool(g.error) for g in found.gpus) == 1
    [finding] = [f for f in check_job(job(job={"gpus": [number]}), facts(machine=found)) if f.code == "gpu-unknown"]
    assert words in finding.message


def test_an_order_that_only_cuda_knows_is_not_guessed():
    unlike = seen(CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="FASTEST_FIRST")
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in unlike.gpus[0].error
    assert names(seen(CUDA_VISIBLE_DEVICES="GPU-2", CUDA_DEVICE_ORDER="FASTEST_FIRST")) == [(0, "GPU-2ddd")]
    alike = FakeNvml(Card(uuid="GPU-1"), Card(uuid="GPU-2"))
    assert names(seen(alike, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="FASTEST_FIRST")) == [(0, "GPU-2")]
    assert names(seen(CUDA_VISIBLE_DEVICES="3", CUDA_DEVICE_ORDER="PCI_BUS_ID")) == [(0, "GPU-2ddd")]


def test_a_number_beyond_the_list_is_told_with_the_list():
    found = seen(CUDA_VISIBLE_DEVICES="1,3")
    [finding] = [f for f in check_job(job(job={"gpus": [2]}), facts(machine=found)) if f.code == "gpu-unknown"]
    assert (
        "there is no GPU 2 among those that CUDA_VISIBLE_DEVICES=1,3 shows, only 0, 1" in finding.message
        and finding.set == {"job.gpus": [0]}
    )


def test_a_trainer_of_the_daemon_counts_as_its_job_does():
    found = seen(**shown_to_cuda({1: "GPU-0b", 3: "GPU-2"}))
    assert names(found) == [(1, "GPU-0bbb"), (3, "GPU-2ddd")] and found.visible is None
    checked: Job = job(job={"gpus": [3]})
    assert not [f for f in check_job(checked, facts(machine=found)) if f.code == "gpu-unknown"]
    assert numbers_in({"WANLORA_GPUS": "1,3"}, 3) == [0, 1, 2], "of another list"


def test_a_machine_without_a_driver_takes_the_names_as_they_are():
    none = FakeNvml(init=pynvml.NVMLError_LibraryNotFound())
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,GPU-x"}, nvml=none) == ["2", "GPU-x"]
    assert visible_gpus({}, nvml=none) is None
    assert named_in({}) is None


def test_picking() -> None:
    assert pick([1, 0], ["GPU-a", "MIG-b"]) == ["MIG-b", "GPU-a"]
    assert pick([3, 1], None) == ["3", "1"] and pick([0], []) == []
    assert pick([0, 5], ["GPU-a"], all_of_them=True) == ["GPU-a", "5"]
    with pytest.raises(UserError, match=r"there is no GPU 2 among the 2 that CUDA_VISIBLE_DEVICES shows \(2,3\)"):
        pick([2], ["2", "3"])


def test_shown() -> None:
    told: dict[str, Any] = shown_to_cuda({0: "GPU-a"})
    assert told == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-a", "WANLORA_GPUS": "0"}
