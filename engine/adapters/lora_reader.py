"""A finished LoRA file's tensors, to be run beside the frozen model: checked, with alpha and strength folded in.

What the file holds is known from its header (`presets.base.lora_file`). Read so are accelerators and accuracy recovery
adapters; the LoRA that trains is `engine.adapters.lora`'s.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from engine.wan.block import LINEARS, Lora
from presets.base.lora_file import Changes, Kind, Target
from presets.base.safetensors_header import AGAIN
from presets.errors import UserError

# of one module, fp32: A (rank, in) and B (out, rank) with their scale folded into B, or differences
Change = dict[Kind, torch.Tensor]


def read_changes(path: Path, changes: Changes, *, strength: float = 1.0) -> dict[Target, Change]:
    """The tensors of these changes, by target. Raises UserError."""
    where = str(path)
    try:
        with safe_open(path, framework="pt") as f:
            factor = _alpha_over_rank(f.metadata() or {}, where)
            return {
                target: _folded(
                    {k: _finite(f.get_tensor(key), key, where) for k, key in kinds.items()}, factor, strength
                )
                for target, kinds in changes.items()
            }
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot be read as safetensors: {e}", where=where, fix=AGAIN) from None


def _finite(tensor: torch.Tensor, key: str, where: str) -> torch.Tensor:
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
        raise UserError(f"{key} holds numbers that are not finite", where=where, fix=AGAIN)
    return tensor.float()


def _folded(read: Change, factor: float, strength: float) -> Change:
    """alpha / rank (`factor` where the file has no alpha) and the strength folded in."""
    scale = float(read["alpha"]) / read["A"].shape[0] if "alpha" in read else factor
    out: Change = {kind: t * strength for kind, t in read.items() if kind in ("weight", "bias")}
    if "A" in read:
        out |= {"A": read["A"], "B": read["B"] * (scale * strength)}
    return out


def _alpha_over_rank(metadata: dict[str, str], where: str) -> float:
    """The factor of linears without an alpha tensor: 1, or what diffusers notes in its metadata."""
    try:
        notes = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        notes = {key.rpartition(".")[2]: value for key, value in notes.items()}
        if notes.get("rank_pattern") or notes.get("alpha_pattern"):
            raise UserError(
                "has a rank or alpha per layer in its metadata",
                where=where,
                fix="Save it with one rank, or with alpha tensors",
            )
        return float(notes.get("lora_alpha", 1.0)) / float(notes.get("r", 1.0)) if "lora_alpha" in notes else 1.0
    except (TypeError, AttributeError, ZeroDivisionError, json.JSONDecodeError):
        raise UserError("has damaged metadata", where=where, fix=AGAIN) from None


def at_one_rank(blocks: Sequence[dict[str, Change]], dtype: torch.dtype) -> list[Lora]:
    """Each linear that any block changes, in every block at one rank: zeros fill up. So one compilation serves all."""
    out: list[Lora] = [{} for _ in blocks]
    for name in LINEARS:
        found = [block[name] for block in blocks if name in block]
        if not found:
            continue
        rank, into, outputs = max(c["A"].shape[0] for c in found), found[0]["A"].shape[1], found[0]["B"].shape[0]
        for block, lora in zip(blocks, out, strict=True):
            a, b = torch.zeros(rank, into, dtype=dtype), torch.zeros(outputs, rank, dtype=dtype)
            if name in block:
                own = block[name]["A"].shape[0]
                a[:own], b[:, :own] = block[name]["A"], block[name]["B"]
            lora[name] = a, b
    return out
