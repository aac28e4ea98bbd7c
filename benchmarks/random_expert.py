"""An expert of the real shape with random weights: same bytes, same kernels, no download. For benchmarks only."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from engine.adapters import lora
from engine.executor.expert_weights import ExpertWeights
from engine.weights.packed_blocks import PackedBlocks
from tests.helpers.training.packing import packed_blocks

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


def blocks(config: dict[str, Any], precision: str, device: torch.device, dtype: torch.dtype) -> PackedBlocks:
    """Random blocks, packed in pinned memory; one block exists on the device at a time."""
    count = config.get("num_layers", 40)
    states = (empty_model(config, device, dtype, num_layers=1).blocks[0].state_dict() for _ in range(count))
    return packed_blocks(states, precision, pinned=device.type == "cuda")


def expert(
    name: str, config: dict[str, Any], precision: str, device: torch.device, dtype: torch.dtype, *, rank: int = 16
) -> tuple[ExpertWeights, lora.LoraParameters]:
    """A random expert with a LoRA whose B is not zero, so that every gradient is alive."""
    outer, packed = empty_model(config, device, dtype, num_layers=0), blocks(config, precision, device, dtype)
    count = len(packed.buffers)
    parameters = lora.make(outer.config, "high_noise", rank=rank, seed=0, blocks=count, device=device)
    for parameter in parameters.values():
        parameter.data.normal_(0, 0.01)
    return ExpertWeights(name, outer, packed, lora.by_block(parameters, count), 1.0), parameters
