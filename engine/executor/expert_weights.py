"""One expert's weights as the executor holds them, and one block of them as its arithmetic takes it.

How they are packed: `engine.weights.packed_blocks`. How blocks reach the device: `engine.executor.weight_ring`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from engine.wan.block import BlockWeights, Lora, Plain
from engine.wan.frozen_linear import as_bytes
from engine.weights.packed_blocks import PackedBlocks


@dataclass(frozen=True)
class ExpertWeights:
    """One expert: its modules outside the blocks, its packed blocks in host memory, and what is added to them.

    `lora` is what trains, by block (empty for an expert that does not), `scaling` its alpha / rank; `recovery` is
    frozen and travels with the blocks. `accelerator` and `shifts` are for previews, by block, in host memory: a frozen
    LoRA, and what is added to plain tensors.
    """

    name: str
    outer: WanTransformer3DModel
    blocks: PackedBlocks
    lora: list[Lora]
    scaling: float
    recovery: PackedBlocks | None = None
    accelerator: Sequence[Lora] = ()
    shifts: Sequence[Plain] = ()

    @property
    def block_bytes(self) -> int:
        """Bytes of one block on the device."""
        return self.blocks.layout.bytes + (self.recovery.layout.bytes if self.recovery else 0)

    def pieces(self, block: int) -> tuple[torch.Tensor, ...]:
        """The host buffers that make up a block, in the order in which they lie on the device."""
        own = self.blocks.buffers[block]
        return (own, self.recovery.buffers[block]) if self.recovery else (own,)

    def on_device(
        self, block: int, buffer: torch.Tensor, strength: torch.Tensor, precision: str, *, e4m3_as_bytes: bool = False
    ) -> BlockWeights:
        """A block, most of it views of a device buffer that holds its pieces."""
        weights, plain = self.blocks.layout.views(buffer)
        if e4m3_as_bytes:
            weights = {name: as_bytes(packed) for name, packed in weights.items()}
        frozen: Lora = {}
        if self.recovery:
            views, _ = self.recovery.layout.views(buffer[self.blocks.layout.bytes :])
            frozen = {name: (a, b) for name, (a, b) in views.items()}
        if self.shifts:
            plain |= {name: plain[name] + shift.to(plain[name]) for name, shift in self.shifts[block].items()}
        for name, pair in self.accelerator[block].items() if self.accelerator else ():
            a, b = (t.to(buffer.device) for t in pair)
            if name in frozen:
                a, b = torch.cat([frozen[name][0], a]), torch.cat([frozen[name][1], b], dim=1)
            frozen[name] = a, b
        heads = self.outer.config.num_attention_heads
        return BlockWeights(weights, plain, frozen, self.lora[block], strength, heads, precision)
