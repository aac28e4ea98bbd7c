"""What a LoRA file says of itself beside its tensors: the scale of pairs that have no alpha tensor, the expert it is
for, the step it is of. No weight is read; the tensors are `presets.base.lora_file`'s.

Where a scale may stand: in diffusers' `lora_adapter_metadata` and in peft's adapter_config.json beside
adapter_model.safetensors, both in peft's words; in kohya's `ss_network_alpha`, which counts for kohya's own tensor
names alone: a file that was converted to other names has its alpha folded in and keeps that metadata (musubi's
convert_lora).
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets.base.safetensors_header import AGAIN, MAX_HEADER, Damaged, json_object
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DAMAGED = "has damaged metadata"
_BY_NAME: dict[str, Expert] = {"high": "high_noise", "low": "low_noise"}


class _Peft(Struct, frozen=True):
    """peft's settings of one adapter."""

    prefix: str  # of the keys that it is about: "transformer.", "transformer_2." or ""
    alpha: float
    rank: int | None  # of all its pairs; None where they differ
    alphas: dict[str, float]  # by the end of a module's name, or a pattern of it
    root: bool  # the scale is alpha / sqrt(rank)


class LoraScales(Struct, frozen=True):
    """alpha / rank of the pairs of a file that have no alpha tensor."""

    peft: list[_Peft] = field(default_factory=list)
    kohya: float | None = None  # ss_network_alpha

    def of(self, key: str, rank: int) -> float:
        """Of the pair whose A is `key`; 1 where the file says nothing."""
        # transformer_2 before transformer
        own = next((p for p in sorted(self.peft, key=lambda p: -len(p.prefix)) if key.startswith(p.prefix)), None)
        if own is None:
            return self.kohya / rank if self.kohya is not None and "lora_down" in key else 1.0
        module = key.partition(".lora_")[0]
        alpha = next((a for name, a in own.alphas.items() if re.fullmatch(rf"(.*\.)?({name})", module)), own.alpha)
        rank = own.rank or rank
        return alpha / (rank**0.5 if own.root else rank)


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; {} when it has none. Raises OSError, and Damaged for what is no such
    file."""
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > MAX_HEADER:  # a pointer or a page that was saved instead: its text as a number
            raise Damaged("is no safetensors file")
        found = json_object(f.read(length)).get("__metadata__")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def read_scales(path: Path) -> LoraScales:
    """Raises UserError for metadata that cannot be understood."""
    where = str(path)
    try:
        metadata, config = read_metadata(path), path.with_name(PEFT_CONFIG)
        peft = _by_adapter(json.loads(metadata["lora_adapter_metadata"])) if "lora_adapter_metadata" in metadata else []
        if path.name == PEFT_FILE and config.exists():
            where, peft = str(config), [_settings("", json_object(config.read_bytes()))]
        kohya = metadata.get("ss_network_alpha")
        return LoraScales([p for p in peft if p is not None], None if kohya in (None, "", "None") else _alpha(kohya))
    except (OSError, Damaged, TypeError, AttributeError, ValueError, RecursionError, re.error):
        raise UserError(_DAMAGED, where=where, fix=AGAIN) from None


def _alpha(value: Any) -> float:
    """Raises ValueError, TypeError for what is no alpha: JSON and float() both know NaN and infinity."""
    alpha = float(value)
    if not math.isfinite(alpha):
        raise ValueError("no number")
    return alpha


def _by_adapter(notes: dict[str, Any]) -> list[_Peft | None]:
    """diffusers writes every setting with its network before it: `transformer.lora_alpha`."""
    networks: dict[str, dict[str, Any]] = {}
    for key, value in notes.items():
        network, _, name = key.rpartition(".")
        networks.setdefault(network, {})[name] = value
    # a file of one network may have other prefixes in its keys than its metadata says
    return [_settings(f"{network}." if network and len(networks) > 1 else "", own) for network, own in networks.items()]


def _settings(prefix: str, own: dict[str, Any]) -> _Peft | None:
    if own.get("lora_alpha") is None:
        return None
    alphas = {name: _alpha(alpha) for name, alpha in (own.get("alpha_pattern") or {}).items()}
    for name in alphas:
        re.compile(name)
    rank = None if own.get("rank_pattern") or "r" not in own else int(own["r"])
    if rank is not None and rank < 1:
        raise ValueError("no rank")
    return _Peft(prefix, _alpha(own["lora_alpha"]), rank, alphas, bool(own.get("use_rslora")))


def expert_said(path: Path) -> Expert | None:
    """The expert that a file is for by its metadata (ours), else by its name; None when neither says one."""
    try:
        said = read_metadata(path).get("wanlora.expert")
    except (OSError, Damaged):  # whoever reads its tensors says so
        said = None
    return next((e for e in EXPERTS if e == said), None) or expert_named(path.stem)


def expert_named(name: str) -> Expert | None:
    """`high_noise` for a name with `high`, `HighNoise` or `high_noise` in it as a word, and nothing of the other."""
    found = {word.lower() for word in re.findall(r"(?i)(?<![a-z])(high|low)(?=noise|[^a-z]|$)", name)}
    return _BY_NAME[found.pop()] if len(found) == 1 else None
