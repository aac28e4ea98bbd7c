"""Rates measured on this machine, remembered for the next run: a small JSON file in the user's state directory.

The trainer measures once per card and driver, and calls `remember`; the planner asks `recall`.
"""

from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from presets.atomic_file import write_file
from presets.machine.gpus import Gpu

KEPT = 32  # measurements of other cards and drivers that stay in the file


class AttentionRates(Struct, frozen=True):
    """The fastest kernel of each direction, and its TFLOP/s: 4 T^2 D operations a layer forward, twice that
    backward. Of the attention to the text, the fastest kernels alone."""

    forward_kernel: str
    forward_tflops: float
    backward_kernel: str
    backward_tflops: float
    text_forward_kernel: str = ""  # none: measured before these were
    text_backward_kernel: str = ""

    @property
    def kernels(self) -> tuple[str, str]:
        """Of the self-attention: forward, backward."""
        return self.forward_kernel, self.backward_kernel


class Rates(Struct, frozen=True, kw_only=True):
    """What one card really reaches. Copies and memory in GB/s, products in TFLOP/s."""

    name: str
    uuid: str
    driver: str
    software: str = ""  # versions of what brings kernels of its own
    copy_gbps: float  # pinned host memory to device, one way
    bf16_tflops: float
    fp8_tflops: float = 0.0  # row-wise scaled; 0 where the card has none
    # with rotations and quantizing; 0 where its kernels do not run, or give something wrong; None: not measured yet
    int8_tops: float | None = None
    attention: AttentionRates
    deterministic_attention: AttentionRates  # its backward adds in a fixed order
    memory_gbps: float  # of a device-to-device copy, bytes read and written
    convolutions: str = ""  # of the VAE's encoder, those in which our kernel is the faster one
    date: str = ""  # of the measurement, ISO

    @property
    def key(self) -> str:
        return rates_key(self.uuid or self.name, self.driver)


def rates_key(card: str, driver: str) -> str:
    """A card in a machine under a driver: another driver may bring other kernels."""
    return f"{card} {driver}"


def rates_path() -> Path:
    return platformdirs.user_state_path("wanlora") / "rates.json"


def recall(gpu: Gpu, path: Path | None = None) -> Rates | None:
    """What was measured on this GPU with its present driver; None when nothing was, or the file is damaged."""
    return _read(path or rates_path()).get(rates_key(gpu.uuid or gpu.name, gpu.driver))


def remember(rates: Rates, path: Path | None = None) -> None:
    """Keep a measurement in place of an older one of the same card and driver. Raises OSError when it cannot be
    written."""
    path = path or rates_path()
    known = _read(path)
    known.pop(rates.key, None)
    newest = dict([*known.items(), (rates.key, rates)][-KEPT:])
    write_file(path, msgspec.json.format(msgspec.json.encode(newest)))


def _read(path: Path) -> dict[str, Rates]:
    """The file's measurements. A damaged file holds none: what it knew is measured again and written over it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Rates])
    except (OSError, msgspec.DecodeError, RecursionError):
        return {}
