"""How a base model lies in folders and repositories: which of a source's files are which part.

Only names of files are looked at, those on a disk or those that the Hub lists; what a source is or where it lies does
not matter here.
"""

import re
from collections.abc import Collection
from pathlib import Path

from msgspec import Struct

from presets.base import comfy_files
from presets.base.safetensors_header import Damaged, json_object
from presets.job.expert_schedule import Expert

EXPERT_NAMES = {"transformer": "high noise", "transformer_2": "low noise"}
EXPERT_PART: dict[Expert, str] = {"high_noise": "transformer", "low_noise": "transformer_2"}
PARTS = ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer")
CALLED = {**comfy_files.CALLED, "tokenizer": "the tokenizer"}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
TOKENIZER_FILES = frozenset({*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"})


class Spot(Struct, frozen=True):
    """A part within its source."""

    path: str  # relative; "" is the source itself
    single: bool = False  # one of ComfyUI's files, else a folder with config.json and weights


def find_part(part: str, names: Collection[str], *, alone: bool) -> Spot | None:
    """Where a part lies among the files of a source; None when it is not there, or when several files may be it (see
    `comfy_files.SingleFiles`)."""
    if part == "tokenizer":
        return _find_tokenizer(names, alone=alone)
    stem = WEIGHTS[part]
    marks = ("config.json", f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    if any(f"{part}/{mark}" in names for mark in marks):
        return Spot(part)
    if alone and any(mark in names for mark in marks[1:]):
        return Spot("")
    single = comfy_files.find_single_files(names)
    if part in single.files:
        return Spot(single.files[part], single=True)
    tops = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    # else it is another part's
    named_so = len(tops) == 1 and tops[0].removesuffix(".safetensors") not in WEIGHTS.values()
    return Spot(tops[0], single=True) if alone and named_so else None


def _find_tokenizer(names: Collection[str], *, alone: bool) -> Spot | None:
    for home in ("tokenizer", "text_encoder", *([""] if alone else [])):
        if any(joined(home, name) in names for name in VOCABULARIES):
            return Spot(home)
    return None


def joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def weight_files(part: str, folder: str, names: Collection[str]) -> list[str]:
    """The safetensors files of a part's folder, by their names alone: shards where there is an index of them, as
    diffusers chooses."""
    stem = WEIGHTS[part]
    inside = [name for name in names if name.rpartition("/")[0] == folder and name.endswith(".safetensors")]
    whole = joined(folder, f"{stem}.safetensors")
    if joined(folder, f"{stem}.safetensors.index.json") in names:
        shards = [
            name
            for name in inside
            if re.fullmatch(re.escape(stem) + r"-\d+-of-\d+\.safetensors", name.rpartition("/")[2])
        ]
        return sorted(shards or inside)
    return [whole] if whole in names or len(inside) != 1 else inside


def needed_files(part: str, spot: Spot, names: Collection[str]) -> list[str]:
    """All files of a part, as far as names tell; also such as should be there and are not."""
    if spot.single:
        return [spot.path]
    if part == "tokenizer":
        return sorted(joined(spot.path, name) for name in TOKENIZER_FILES if joined(spot.path, name) in names)
    index = joined(spot.path, f"{WEIGHTS[part]}.safetensors.index.json")
    return [
        joined(spot.path, "config.json"),
        *([index] if index in names else []),
        *weight_files(part, spot.path, names),
    ]


def settings_files(names: Collection[str]) -> list[str]:
    """The files that say what a diffusers repository is and holds: small, and fetched whichever parts are wanted."""
    wanted = {"model_index.json", "scheduler/scheduler_config.json"}
    wanted |= {
        f"{part}/{name}" for part, stem in WEIGHTS.items() for name in ("config.json", f"{stem}.safetensors.index.json")
    }
    return sorted(wanted & set(names))


def names_in(folder: Path) -> frozenset[str]:
    """The files of a source folder that may belong to a base: at its top, and in the folders of diffusers and
    ComfyUI."""
    found = []
    for sub in dict.fromkeys(("", *PARTS, "scheduler", *comfy_files.SUBFOLDERS)):
        try:
            found += [joined(sub, entry.name) for entry in (folder / sub).iterdir() if not entry.is_dir()]
        except OSError:  # not there; what may not be read shows when its part is read
            continue
    return frozenset(found)


def shards_of(index: Path) -> list[str]:
    """The files that an index of shards names. Raises OSError, and Damaged."""
    found = json_object(index.read_bytes()).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) and "/" not in v for v in found.values()):
        raise Damaged("has no usable weight_map")
    return sorted(set(found.values()))


def is_whole(part: str, root: Path, spot: Spot, names: Collection[str], *, weights: bool = True) -> bool:
    """Whether every file of a part is in a cached snapshot; with `weights` off its settings are enough. What is damaged
    shows when it is read."""
    if part == "tokenizer":
        return True
    if not spot.single and joined(spot.path, "config.json") not in names:
        return False
    index = root / spot.path / f"{WEIGHTS[part]}.safetensors.index.json"
    files = [root / name for name in weight_files(part, spot.path, names)] if not spot.single else [root / spot.path]
    if not spot.single and index.exists():
        try:
            files = [index.with_name(shard) for shard in shards_of(index)]
        except (OSError, Damaged):
            return True
    return not weights or all(file.exists() for file in files)
