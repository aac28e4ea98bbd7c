"""One expert of a base model, read block by block and unpacked, as a recovery adapter is built: the rest of it stays on
the disk. A run loads its experts packed, by `engine.weights.load_expert`."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from engine.system.placement import Placement
from engine.wan.block import linear_shapes
from engine.weights.load_expert import KEYS, open_expert, type_of
from engine.weights.model_files import FLOAT8, ModelFiles, weight_of
from presets.job.expert_schedule import Expert


class ExpertReader:
    """Config and blocks of one expert. Raises UserError when its files are damaged or of another model."""

    def __init__(self, source: ModelFiles, expert: Expert) -> None:
        self.source, self.expert = source, expert
        self._part = open_expert(source, expert)
        self.config = self._part.config
        self.blocks: int = self.config["num_layers"]
        self.shapes = linear_shapes(self.config)

    def block(self, number: int) -> dict[str, torch.Tensor]:
        """A block's tensors by their names inside the block, in host memory; in the file's dtype, 8-bit ones in
        fp32."""
        out = {}
        for key in KEYS:
            raw, scale = self._part.stored[f"blocks.{number}.{key}"].raw()
            out[key] = weight_of(raw, scale, torch.float32) if scale is not None or raw.dtype in FLOAT8 else raw
        return out


def block_module(config: Any, state: dict[str, torch.Tensor], placement: Placement) -> WanTransformerBlock:
    """diffusers' own block around a block's tensors, frozen."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    with torch.device("meta"):
        block: Any = WanTransformerBlock(
            width,
            config["ffn_dim"],
            config["num_attention_heads"],
            config["qk_norm"],
            config["cross_attn_norm"],
            config["eps"],
            config["added_kv_proj_dim"],
        )
    block.load_state_dict(
        {k: v.to(placement.device, type_of(k, placement.dtype)) for k, v in state.items()}, assign=True
    )
    return block.requires_grad_(False).eval()
