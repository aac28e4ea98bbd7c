"""Memory that runs out when the card is opened, or while the base model is loaded: what the part takes, who holds the
rest, and what would help.

A smaller plan would not: nothing of the plan itself is on the card yet. What is done from then on is in
engine.training.placement.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
import torch

from engine.memory.planning import Planning, card_memory, shortage
from engine.system.device import memory_errors, open_device
from engine.system.pinned_memory import HostMemoryRefused
from presets.errors import UserError
from presets.planner.memory_costs import MemoryCosts, block_bytes
from presets.text import human

Part = Literal["text encoder", "VAE", "experts"]
DOING: dict[Part, str] = {
    "text encoder": "the text encoder was at work",
    "VAE": "the VAE was at work",
    "experts": "the experts were loaded",
}
END_OTHERS = "end other programs on the card, or use one with more memory"


def open_device_with_room(name: str | None, *, vram: int | None, sharers: int = 1) -> torch.device:
    """`open_device`, or one UserError where other programs have the whole card."""
    try:
        return open_device(name, vram=vram, sharers=sharers)
    except torch.OutOfMemoryError as e:
        raise UserError(
            f"the GPU has no memory left to begin with: {str(e).splitlines()[0]}",
            where="the card's memory",
            fix=END_OTHERS.capitalize(),
        ) from e


@contextmanager
def loading(part: Part, device: torch.device, planning: Planning) -> Iterator[None]:
    """Inside, a part of the base model is brought to memory. When that runs out: one UserError."""
    try:
        with memory_errors():
            yield
    except torch.OutOfMemoryError as e:
        why = shortage(card_memory(device), planning)
        takes, helps = _takes(part, planning)
        raise UserError(
            f"out of memory while {DOING[part]}{f', which takes {takes} of the card' if takes else ''}: {why.text}",
            where="the card's memory",
            fix=helps,
        ) from e
    except (HostMemoryRefused, MemoryError) as e:
        raise _no_ram(part, planning, e.what if isinstance(e, HostMemoryRefused) else "the system has no more") from e
    except RuntimeError as e:
        if "DefaultCPUAllocator" not in str(e):
            raise
        raise _no_ram(part, planning, "the system has no more") from e


def _takes(part: Part, planning: Planning) -> tuple[str, str]:
    """(what a part takes of the card at the least, as far as it is known; what would help)."""
    work, hardware = planning.work, planning.hardware
    if hardware is None:
        return "", END_OTHERS.capitalize()
    costs = MemoryCosts(work, hardware, planning.shape)
    held = costs.held(planning.plan)
    match part:
        case "text encoder":
            size, helps = costs.text(), []
            if work.text_precision == "none":
                less = MemoryCosts(
                    msgspec.structs.replace(work, text_precision="float8"), hardware, planning.shape
                ).text()
                helps = [f'set quantization.text_encoder = "float8", which takes {human(less)}']
        case "VAE":
            size, helps = held["vae"], []
        case "experts":
            size = held["vae"] + held["stem"] + held["lora"]
            helps = (
                ["choose a smaller target.rank"]
                + (['set training.optimizer = "adamw8bit"'] if work.optimizer != "adamw8bit" else [])
                + (["leave training.ema off"] if work.ema else [])
            )
    fix = "; ".join([*helps, END_OTHERS])
    return human(size), fix[0].upper() + fix[1:]


def _no_ram(part: Part, planning: Planning, what: str) -> UserError:
    fix = "end other programs on this machine, or raise the container's memory limit"
    whole = ""
    if part == "experts" and planning.hardware is not None:
        ram = MemoryCosts(planning.work, planning.hardware, planning.shape).ram(planning.plan)
        whole = (
            f" ({human(ram['weights'])} for the frozen weights of {planning.work.needed}"
            f" expert{'s' if planning.work.needed > 1 else ''})"
        )
        if planning.plan.precision != "qint4":
            blocks = planning.shape.layers * planning.work.needed
            fix = (
                'set quantization.transformer = "qint4", which takes'
                f" {human(blocks * block_bytes(planning.shape, 'qint4'))}; {fix}"
            )
    return UserError(
        f"out of memory while {DOING[part]}{whole}: {what}", where="the host's memory", fix=fix[0].upper() + fix[1:]
    )
