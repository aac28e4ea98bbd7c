"""The frozen blocks of an expert as packed host buffers: one buffer per block, one copy to bring it to the device.

All blocks of an expert have the same layout: each tensor at a fixed, aligned offset of the buffer. They are read from
the model's files by `engine.weights.load_expert`, and kept on disk by `engine.weights.weight_cache`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine.system.pinned_memory import host_buffer
from engine.wan.block import Lora, Plain, Weights

Allocate = Callable[[int, int], torch.Tensor]  # (number of a block, bytes) -> its buffer
ALIGN = 256  # bytes; every kernel's vector loads are happy with it


@dataclass(frozen=True)
class PackedTensor:
    """Where one tensor lies in the buffer of a block."""

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
    """Of one block's buffer, `bytes` long."""

    tensors: tuple[PackedTensor, ...]
    bytes: int

    def views(self, buffer: torch.Tensor) -> tuple[Weights, Plain]:
        """The block's tensors as views of a uint8 buffer on any device."""
        packed: dict[str, list[torch.Tensor]] = {}
        plain: Plain = {}
        for t in self.tensors:
            view = buffer[t.offset : t.offset + t.bytes].view(t.dtype).view(t.shape)
            if t.part < 0:
                plain[t.key] = view
            else:
                packed.setdefault(t.key, []).append(view)
        return {key: tuple(parts) for key, parts in packed.items()}, plain

    def fill(self, buffer: torch.Tensor, weights: Weights, plain: Plain) -> None:
        """Write a block's tensors into its buffer."""
        into_weights, into_plain = self.views(buffer)
        for key, parts in into_weights.items():
            for target, source in zip(parts, weights[key], strict=True):
                target.copy_(source)
        for key, target in into_plain.items():
            target.copy_(plain[key])


class PackedBlocks(NamedTuple):
    """The blocks of one expert, or low-rank branches beside their linears: a uint8 host buffer for each block. To ask
    for one that is still being read waits for it (engine.weights.read_behind)."""

    buffers: Sequence[torch.Tensor]
    layout: Layout


def layout_of(weights: Weights, plain: Plain) -> Layout:
    """Of blocks with tensors such as these."""
    named = [(key, i, t) for key, parts in weights.items() for i, t in enumerate(parts)]
    tensors, offset = [], 0
    for key, part, tensor in [*named, *((key, -1, t) for key, t in plain.items())]:
        tensors.append(PackedTensor(key, part, tensor.dtype, tuple(tensor.shape), offset))
        offset += math.ceil(tensors[-1].bytes / ALIGN) * ALIGN
    return Layout(tuple(tensors), offset)


def pack_lora(lora: Sequence[Lora], *, pinned: bool) -> PackedBlocks | None:
    """A frozen LoRA, by block: the same linears and shapes in each; None when there is none. Raises
    HostMemoryRefused."""
    if not lora or not lora[0]:
        return None
    layout, buffers = layout_of(dict(lora[0]), {}), []
    for factors in lora:
        buffers.append(host_buffer(layout.bytes, pinned=pinned))
        layout.fill(buffers[-1], dict(factors), {})
    return PackedBlocks(buffers, layout)
