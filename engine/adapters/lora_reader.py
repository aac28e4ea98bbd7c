"""A finished LoRA file's tensors: checked, with alpha and strength folded in.

What the file holds is known from its header (`presets.base.lora_file`). Read so are accelerators and accuracy recovery
adapters, which run beside the frozen model, LoRAs that are merged into it, and those that a run starts from; the LoRA
that trains is `engine.adapters.lora`'s.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.wan.block import LINEARS, Lora
from engine.weights.load_expert import tensor_shapes
from presets.base.lora_file import OUTSIDE_TABLE, PATCHES, TABLE, Changes, Kind, Target
from presets.base.lora_metadata import read_scales
from presets.base.safetensors_header import AGAIN
from presets.errors import UserError

# of one module, fp32: A (rank, in) and B (out, rank) with their scale folded into B, or differences
Change = dict[Kind, torch.Tensor]


def read_changes(path: Path, changes: Changes, *, strength: float = 1.0) -> dict[Target, Change]:
    """The tensors of these changes, by target. Raises UserError."""
    where = str(path)
    scales = read_scales(path)
    try:
        with safe_open(path, framework="pt") as f:
            read = {
                target: {k: _finite(f.get_tensor(key), key, where, whole=k == "alpha") for k, key in kinds.items()}
                for target, kinds in changes.items()
            }
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot be read as safetensors: {e}", where=where, fix=AGAIN) from None
    return {
        target: _folded(
            own,
            scales.of(changes[target]["A"], own["A"].shape[0]) if "A" in own else 1.0,
            strength,
            multiplied=target[1] == PATCHES,
        )
        for target, own in read.items()
    }


def _finite(tensor: torch.Tensor, key: str, where: str, *, whole: bool) -> torch.Tensor:
    """In fp32. `whole`: integers will do, as kohya's trainers write an alpha that is the rank."""
    if not tensor.is_floating_point() and not whole:
        name = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{key} holds {name} numbers, which are not read", where=where, fix="Give it in bf16 or fp16")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise UserError(f"{key} holds numbers that are not finite", where=where, fix=AGAIN)
    return tensor.float()


def _folded(read: Change, scale: float, strength: float, *, multiplied: bool) -> Change:
    """alpha / rank (`scale` where the module has no alpha tensor) and the strength folded in. `multiplied`: factors
    become the difference that they stand for, as the patch embedding's do, whose weight is small; of factors that are
    matrices it is one, too."""
    if "alpha" in read:
        scale = float(read["alpha"]) / read["A"].shape[0]
    out: Change = {kind: t * strength for kind, t in read.items() if kind in ("weight", "bias")}
    if "A" not in read:
        return out
    a, b = read["A"], read["B"] * (scale * strength)
    if not multiplied:
        return out | {"A": a, "B": b}
    difference = (b.flatten(1) @ a.flatten(1)).view(b.shape[0], *a.shape[1:])
    return out | {"weight": out["weight"] + difference.view_as(out["weight"]) if "weight" in out else difference}


def expert_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """What `misfit` asks for, of all tensors of an expert."""
    return {
        OUTSIDE_TABLE if name == TABLE else name.removeprefix("blocks.0."): shape
        for name, shape in tensor_shapes(config).items()
    }


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
