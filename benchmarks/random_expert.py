"""An expert of the real shape with random weights: same bytes, same kernels, no download. For benchmarks only."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from engine.block import LINEARS, Lora
from engine.masters import Layout, block_tensors, fill, layout_of
from engine.pinned import host_buffer

REAL = {"in_channels": 36, "out_channels": 16}  # the rest are the class's defaults: 40 blocks, 40 heads of 128, ffn 13824
TINY = {**REAL, "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "num_layers": 4, "rope_max_seq_len": 64}


def _randomize(module: torch.nn.Module) -> None:
    for name, p in module.named_parameters():
        p.data.fill_(1) if name.endswith("weight") and "norm" in name else p.data.normal_(0, 0.02)
        p.requires_grad_(False)


def empty_model(config: dict[str, Any], device: torch.device, dtype: torch.dtype, *, num_layers: int) -> WanTransformer3DModel:
    """Random weights; norms, modulation tables and the time embedder in fp32, as diffusers loads them."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**{**config, "num_layers": num_layers})
    rope = type(model.rope)(model.config.attention_head_dim, (1, 2, 2), model.config.rope_max_seq_len).to(device)
    for name, p in model.named_parameters():
        fp32 = any(part in name for part in ("time_embedder", "scale_shift_table", "norm2"))
        p.data = p.data.to(torch.float32 if fp32 else dtype)
    model = model.to_empty(device=device)
    model.rope = rope
    _randomize(model)
    return model.eval()


def masters(config: dict[str, Any], precision: str, device: torch.device, dtype: torch.dtype, *, blocks: int) -> tuple[list[torch.Tensor], Layout]:
    """Packed pinned host buffers of random blocks; one block exists on the device at a time."""
    out: list[torch.Tensor] = []
    layout: Layout | None = None
    for _ in range(blocks):
        block = empty_model(config, device, dtype, num_layers=1).blocks[0]
        weights, plain = block_tensors(block.state_dict(), precision)
        layout = layout or layout_of(weights, plain)
        buffer = host_buffer(layout.bytes, pinned=device.type == "cuda")
        fill(layout, buffer, weights, plain)
        out.append(buffer)
    assert layout is not None
    return out, layout


def lora(blocks: int, rank: int, device: torch.device, shapes: dict[str, tuple[int, int]]) -> list[Lora]:
    """A LoRA on all ten linears; `shapes` are (out, in) of each. B is not zero, so that every gradient is alive."""

    def parameter(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(shape, device=device) * 0.01)

    return [{name: (parameter(rank, shapes[name][1]), parameter(shapes[name][0], rank)) for name in LINEARS} for _ in range(blocks)]


def linear_shapes(model: WanTransformer3DModel) -> dict[str, tuple[int, int]]:
    """(out, in) of the ten linears of a block."""
    d = model.config.num_attention_heads * model.config.attention_head_dim
    shapes = dict.fromkeys(LINEARS, (d, d))
    shapes["ffn.net.0.proj"], shapes["ffn.net.2"] = (model.config.ffn_dim, d), (d, model.config.ffn_dim)
    return shapes
