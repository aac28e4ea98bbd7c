"""An expert of the real shape with random weights: same bytes, same kernels, no download. For benchmarks only."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from engine.adapters import lora
from engine.executor.block_executor import ExpertWeights
from engine.system.pinned_memory import host_buffer
from engine.weights.packed_blocks import Layout, block_tensors, fill, layout_of

# the rest are the class's defaults: 40 blocks, 40 heads of 128, ffn 13824
REAL = {"in_channels": 36, "out_channels": 16}
TINY = {
    **REAL,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
    "rope_max_seq_len": 64,
}


def empty_model(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype, *, num_layers: int
) -> WanTransformer3DModel:
    """Random weights; norms, modulation tables and the time embedder in fp32, as diffusers loads them."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**{**config, "num_layers": num_layers})
    rope = type(model.rope)(model.config.attention_head_dim, (1, 2, 2), model.config.rope_max_seq_len).to(device)
    for name, p in model.named_parameters():
        p.data = p.data.to(
            torch.float32 if any(part in name for part in ("time_embedder", "scale_shift_table", "norm2")) else dtype
        )
    model = model.to_empty(device=device)
    model.rope = rope
    for name, p in model.named_parameters():
        p.data.fill_(1) if name.endswith("weight") and "norm" in name else p.data.normal_(0, 0.02)
        p.requires_grad_(False)
    return model.eval()


def blocks(
    config: dict[str, Any], precision: str, device: torch.device, dtype: torch.dtype
) -> tuple[list[torch.Tensor], Layout]:
    """Packed pinned host buffers of random blocks; one block exists on the device at a time."""
    out: list[torch.Tensor] = []
    layout: Layout | None = None
    for _ in range(config.get("num_layers", 40)):
        weights, plain = block_tensors(
            empty_model(config, device, dtype, num_layers=1).blocks[0].state_dict(), precision
        )
        layout = layout or layout_of(weights, plain)
        buffer = host_buffer(layout.bytes, pinned=device.type == "cuda")
        fill(layout, buffer, weights, plain)
        out.append(buffer)
    assert layout is not None
    return out, layout


def expert(
    name: str, config: dict[str, Any], precision: str, device: torch.device, dtype: torch.dtype, *, rank: int = 16
) -> tuple[ExpertWeights, lora.Parameters]:
    """A random expert with a LoRA whose B is not zero, so that every gradient is alive."""
    stem = empty_model(config, device, dtype, num_layers=0)
    masters, layout = blocks(config, precision, device, dtype)
    parameters = lora.make(stem.config, "high_noise", rank=rank, alpha=rank, seed=0, blocks=len(masters), device=device)
    for parameter in parameters.values():
        parameter.data.normal_(0, 0.01)
    return ExpertWeights(name, stem, masters, layout, lora.by_block(parameters, len(masters)), 1.0), parameters
