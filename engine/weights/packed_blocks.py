"""The frozen blocks of an expert as packed host buffers: one buffer per block, one copy to bring it to the device.

All blocks of an expert have the same layout: each tensor at a fixed, aligned offset of the buffer.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.system.pinned_memory import host_buffer
from engine.wan.block import LINEARS, NORMS, Lora, Plain, Weights
from engine.wan.quantize import pack

ALIGN = 256  # bytes; every kernel's vector loads are happy with it


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies in the buffer."""

    key: str
    part: int  # index within a packed weight; -1 for a plain tensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    slots: tuple[TensorPlace, ...]
    bytes: int

    def views(self, buffer: torch.Tensor) -> tuple[Weights, Plain]:
        """The block's tensors as views of a uint8 buffer on any device."""
        packed: dict[str, list[torch.Tensor]] = {}
        plain: Plain = {}
        for slot in self.slots:
            view = buffer[slot.offset : slot.offset + slot.bytes].view(slot.dtype).view(slot.shape)
            if slot.part < 0:
                plain[slot.key] = view
            else:
                packed.setdefault(slot.key, []).append(view)
        return {key: tuple(parts) for key, parts in packed.items()}, plain


def block_tensors(state: dict[str, torch.Tensor], precision: str) -> tuple[Weights, Plain]:
    """A diffusers block's state dict as packed weights and plain tensors."""
    weights = {name: pack(state[f"{name}.weight"], precision) for name in LINEARS}
    plain = {f"{name}.bias": state[f"{name}.bias"] for name in LINEARS}
    plain |= {f"{name}.weight": state[f"{name}.weight"] for name in NORMS}
    plain |= {name: state[name].float() for name in ("norm2.weight", "norm2.bias", "scale_shift_table")}
    return weights, plain


def layout_of(weights: Weights, plain: Plain) -> Layout:
    slots, offset = [], 0
    named: Iterable[tuple[str, int, torch.Tensor]] = [
        (k, i, t) for k, parts in weights.items() for i, t in enumerate(parts)
    ]
    for key, part, tensor in [*named, *((k, -1, t) for k, t in plain.items())]:
        slot = TensorPlace(key, part, tensor.dtype, tuple(tensor.shape), offset)
        slots.append(slot)
        offset += math.ceil(slot.bytes / ALIGN) * ALIGN
    return Layout(tuple(slots), offset)


@dataclass(frozen=True)
class Branches:
    """Frozen low-rank branches beside the linears, packed as the blocks are: a buffer per block, which travels with
    it."""

    buffers: list[torch.Tensor]
    layout: Layout

    def views(self, buffer: torch.Tensor) -> Lora:
        packed, _ = self.layout.views(buffer)
        return {name: (parts[0], parts[1]) for name, parts in packed.items()}


def pack_lora_branches(per_block: list[Lora], *, pinned: bool) -> Branches | None:
    """The same linears and shapes in every block; None when there are none. Raises HostMemoryRefused."""
    if not per_block or not per_block[0]:
        return None
    first: Weights = dict(per_block[0])
    layout, buffers = layout_of(first, {}), []
    for lora in per_block:
        buffers.append(host_buffer(layout.bytes, pinned=pinned))
        fill(layout, buffers[-1], dict(lora), {})
    return Branches(buffers, layout)


def fill(layout: Layout, buffer: torch.Tensor, weights: Weights, plain: Plain) -> None:
    """Write a block's tensors into its buffer."""
    into_weights, into_plain = layout.views(buffer)
    for key, parts in into_weights.items():
        for target, source in zip(parts, weights[key], strict=True):
            target.copy_(source)
    for key, target in into_plain.items():
        target.copy_(plain[key])
