"""What NVML says of a GPU's health, with NVML alone faked: all of it, a part of it, nothing."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from presets.machine.gpu_health import GpuHealth, Nvml, in_words


class Fake:
    """As pynvml; `missing` questions are not supported."""

    def __init__(self, *missing: str, lost: str = "") -> None:
        self.missing, self.lost, self.opened = missing, lost, 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML"):
            return getattr(pynvml, name)
        if name == "nvmlInit":
            return self._open
        if name in self.missing:
            return self._unsupported
        answers = {
            "nvmlDeviceGetHandleByIndex": lambda i: ("index", i),
            "nvmlDeviceGetHandleByUUID": lambda uuid: ("uuid", uuid),
            "nvmlDeviceGetName": lambda handle: f"card {handle[1]}",
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=97),
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=20 * 2**30, total=24 * 2**30),
            "nvmlDeviceGetTemperature": lambda handle, kind: self._lost(handle) or 71,
            "nvmlDeviceGetPowerUsage": lambda handle: 310_000,
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 350_000,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1755,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x4,
        }
        if name in answers:
            return answers[name]
        raise AttributeError(name)

    def _open(self) -> None:
        self.opened += 1

    def _lost(self, handle: tuple[str, Any]) -> None:
        if self.lost == handle[1]:
            raise pynvml.NVMLError_GpuIsLost()

    def _unsupported(self, *args: Any) -> None:
        raise pynvml.NVMLError_NotSupported()


def test_everything_that_a_card_says():
    fake = Fake()
    nvml = Nvml(fake)
    (card,) = nvml.look(["GPU-1"])
    assert card == GpuHealth(
        gpu="GPU-1", name="card GPU-1", busy=97, memory_used=20 * 2**30, memory_total=24 * 2**30, temperature=71,
        power=310.0, power_limit=350.0, clock=1755, clock_most=1980, held_back=["power limit"],
    )  # fmt: skip
    assert [g.name for g in nvml.look(["0", "GPU-1"])] == ["card 0", "card GPU-1"] and fake.opened == 1


def test_what_a_slice_does_not_say_is_missing():
    fake = Fake("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons")
    (card,) = Nvml(fake).look(["MIG-1"])
    assert (card.busy, card.power, card.held_back, card.temperature) == (None, None, None, 71)


def test_a_gpu_that_is_lost_says_nothing_and_is_looked_for_anew():
    """The other of the job speaks on."""
    fake = Fake(lost="GPU-1")
    nvml = Nvml(fake)
    assert [g.gpu for g in nvml.look(["GPU-1", "GPU-2"])] == ["GPU-2"]
    fake.lost = ""
    assert [g.temperature for g in nvml.look(["GPU-1", "GPU-2"])] == [71, 71] and fake.opened == 2


def test_a_machine_without_a_driver():
    fake = Fake("nvmlDeviceGetHandleByIndex")
    assert Nvml(fake).look(["0"]) == []


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0, []),
        (0x1 | 0x2, []),  # idle, clocks set by its owner
        (0x4, ["power limit"]),
        (0x20, ["too hot"]),
        (0x8 | 0x40, ["too hot"]),
        (0x8, ["slowed by the hardware"]),
        (0x8 | 0x80 | 0x4, ["power brake", "power limit"]),
    ],
)
def test_what_holds_it_back_is_said_in_words(bits: int, words: list[str]):
    assert in_words(bits) == words
