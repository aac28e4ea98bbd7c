"""How GPUs do at this moment, through NVML: load, memory, temperature, power, clock, and what holds them back. Which
GPUs there are, and what they can do, is presets.machine.gpus's.

Every answer may be missing: slices under MIG, virtual GPUs and old drivers give some of them only. A call may hang in a
driver that is in trouble, so it belongs in a thread.
"""

from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

# NVML's bits, in words; the others (an idle GPU, clocks that its owner or a display has set) hold back nobody
HELD_BACK = (
    (0x60, "too hot"),  # SwThermalSlowdown, HwThermalSlowdown
    (0x80, "power brake"),  # HwPowerBrakeSlowdown: the power supply asks for it
    (0x04, "power limit"),  # SwPowerCap
    (0x600, "board limit"),  # BoardLimit, Reliability, of older drivers
    (0x10, "clock tied to other GPUs"),  # SyncBoost
)
SLOWED = 0x08  # HwSlowdown: heat or power, which newer drivers tell apart above


class GpuHealth(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one GPU; None for what NVML does not say."""

    gpu: str  # as the job has it: its UUID, or its number
    name: str = ""
    busy: int | None = None  # percent of the last moments in which something computed there
    memory_used: int | None = None  # bytes, by all who use it
    memory_total: int | None = None
    temperature: int | None = None  # degrees Celsius
    power: float | None = None  # watts
    power_limit: float | None = None
    clock: int | None = None  # MHz, of the multiprocessors
    clock_most: int | None = None
    held_back: list[str] | None = None  # by what its clock is: too hot, power limit ...; [] for nothing


class Nvml:
    """NVML, kept open between two looks. Not for two threads at once. `nvml` stands in for pynvml in tests."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml, self._open = nvml, False
        self._handles: dict[str, Any] = {}

    def look(self, gpus: Iterable[str]) -> list[GpuHealth]:
        """Those that answer, in the order asked for. Never fails."""
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        try:
            if not self._open:
                self._nvml.nvmlInit()
                self._open = True
            return [found for gpu in gpus if (found := self._look_unless_lost(gpu)) is not None]
        except self._nvml.NVMLError:  # no driver, or it was updated or reloaded: begin anew next time
            self._open = False
            self._handles.clear()
            return []

    def _look_unless_lost(self, gpu: str) -> GpuHealth | None:
        """The others of a job go on without one that has fallen off the bus. It may come back: begin anew next time."""
        try:
            return self._look(gpu)
        except self._nvml.NVMLError_GpuIsLost:
            self._open = False
            self._handles.clear()
            return None

    def _look(self, gpu: str) -> GpuHealth | None:
        n, ask = self._nvml, self._ask
        handle = self._handles.get(gpu)
        if handle is None:
            find = n.nvmlDeviceGetHandleByIndex if gpu.isdecimal() else n.nvmlDeviceGetHandleByUUID
            handle = ask(lambda: find(int(gpu) if gpu.isdecimal() else gpu))
            if handle is None:
                return None
            self._handles[gpu] = handle
        memory = ask(lambda: n.nvmlDeviceGetMemoryInfo(handle))
        milliwatts = ask(lambda: n.nvmlDeviceGetPowerUsage(handle))
        limit = ask(lambda: n.nvmlDeviceGetEnforcedPowerLimit(handle))
        return GpuHealth(
            gpu=gpu,
            name=ask(lambda: str(n.nvmlDeviceGetName(handle))) or "",
            busy=ask(lambda: int(n.nvmlDeviceGetUtilizationRates(handle).gpu)),
            memory_used=int(memory.used) if memory else None,
            memory_total=int(memory.total) if memory else None,
            temperature=ask(lambda: int(n.nvmlDeviceGetTemperature(handle, n.NVML_TEMPERATURE_GPU))),
            power=None if milliwatts is None else milliwatts / 1000,
            power_limit=None if limit is None else limit / 1000,
            clock=ask(lambda: int(n.nvmlDeviceGetClockInfo(handle, n.NVML_CLOCK_SM))),
            clock_most=ask(lambda: int(n.nvmlDeviceGetMaxClockInfo(handle, n.NVML_CLOCK_SM))),
            held_back=ask(lambda: in_words(self._reasons(handle))),
        )

    def _reasons(self, handle: Any) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except (AttributeError, self._nvml.NVMLError_FunctionNotFound):  # before CUDA 12.2 under its older name
            return int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

    def _ask(self, question: Callable[[], Any]) -> Any:
        """None where there is no answer; a GPU that is lost, or a driver that went away, is no such thing."""
        n = self._nvml
        try:
            return question()
        except (n.NVMLError_GpuIsLost, n.NVMLError_Uninitialized):
            raise
        except (n.NVMLError, AttributeError):
            return None


def in_words(reasons: int) -> list[str]:
    """NVML's bits of what holds the clocks back."""
    found = [words for bits, words in HELD_BACK if reasons & bits]
    return found or (["slowed by the hardware"] if reasons & SLOWED else [])
