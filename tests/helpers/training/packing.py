"""Blocks packed from diffusers' state dicts, as the executor takes them: for tests and benchmarks."""

from collections.abc import Iterable

import torch

from engine.system.pinned_memory import host_buffer
from engine.wan.block import LINEARS, NORMS, Plain, Weights
from engine.wan.quantize import pack
from engine.weights.packed_blocks import Layout, PackedBlocks, layout_of


def block_tensors(state: dict[str, torch.Tensor], precision: str) -> tuple[Weights, Plain]:
    """A block's state dict as packed weights and plain tensors."""
    weights = {name: pack(state[f"{name}.weight"], precision) for name in LINEARS}
    plain = {f"{name}.bias": state[f"{name}.bias"] for name in LINEARS}
    plain |= {f"{name}.weight": state[f"{name}.weight"] for name in NORMS}
    plain |= {name: state[name].float() for name in ("norm2.weight", "norm2.bias", "scale_shift_table")}
    return weights, plain


def packed_blocks(states: Iterable[dict[str, torch.Tensor]], precision: str, *, pinned: bool = False) -> PackedBlocks:
    """Of the blocks of one expert."""
    buffers: list[torch.Tensor] = []
    layout: Layout | None = None
    for state in states:
        weights, plain = block_tensors(state, precision)
        layout = layout or layout_of(weights, plain)
        buffers.append(host_buffer(layout.bytes, pinned=pinned))
        layout.fill(buffers[-1], weights, plain)
    assert layout is not None, "an expert without blocks"
    return PackedBlocks(buffers, layout)
