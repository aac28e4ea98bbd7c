"""How a base model lies in folders and repositories: which of a source's files are which part.

Only names of files are looked at, those on a disk or those that the Hub lists; what a source is or where it lies does
not matter here.
"""

import os
import re
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Any

from msgspec import Struct

from presets.base import comfy_files
from presets.base.safetensors_header import Damaged, json_object
from presets.base.single_files import SUBFOLDERS, SingleFiles
from presets.base.tensor_files import holds_weights
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
# The folder of each part: diffusers', then Wan's own.
FOLDERS = {
    "transformer": ("transformer", "high_noise_model"),
    "transformer_2": ("transformer_2", "low_noise_model"),
    "vae": ("vae",),
    "text_encoder": ("text_encoder",),
}
TOKENIZERS = ("tokenizer", "google/umt5-xxl")
UNDERSTOOD = (
    "a diffusers folder (transformer, transformer_2), Wan's own (high_noise_model, low_noise_model), or ComfyUI's or"
    " GGUF files, whose names say high and low"
)
DEPTH, MOST_FOLDERS = 3, 2000  # folders that are looked into for a base
VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is enough
TOKENIZER_FILES = frozenset({*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"})


class Spot(Struct, frozen=True):
    """A part within its source."""

    path: str  # relative; "" is the source itself
    single: bool = False  # one file, else a folder with config.json and weights


def find_part(part: str, names: Collection[str], singles: SingleFiles, *, alone: bool) -> Spot | None:
    """Where a part lies among the files of a source; None when it is not there, or when several files may be it (see
    `single_files.SingleFiles`)."""
    if part == "tokenizer":
        return _find_tokenizer(names, alone=alone)
    if part in singles.files and singles.chosen:
        return Spot(singles.files[part], single=True)
    stem = WEIGHTS[part]
    marks = ("config.json", f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    for folder in FOLDERS[part]:
        if any(f"{folder}/{mark}" in names for mark in marks):
            return Spot(folder)
    # an index alone, without the settings that belong to it, was left there by another download
    if alone and any(mark in names for mark in marks[1:]) and (marks[0] in names or part not in singles.files):
        return Spot("")
    if part in singles.files:
        return Spot(singles.files[part], single=True)
    tops = [name for name in names if "/" not in name and holds_weights(name)]
    # else it is another part's
    named_so = len(tops) == 1 and tops[0].removesuffix(".safetensors") not in WEIGHTS.values()
    return Spot(tops[0], single=True) if alone and named_so else None


def _find_tokenizer(names: Collection[str], *, alone: bool) -> Spot | None:
    for home in (*TOKENIZERS, "text_encoder", *([""] if alone else [])):
        if any(joined(home, name) in names for name in VOCABULARIES):
            return Spot(home)
    return None


def tokenizer_beside(encoder: str, names: Collection[str]) -> Spot | None:
    """A tokenizer that lies with the encoder's file: in a folder beside it, or in the same folder, unless that is one
    in which ComfyUI keeps the encoders of all models."""
    home = encoder.rpartition("/")[0]
    shared = home.rpartition("/")[2] in SUBFOLDERS or not home
    beside = [*TOKENIZERS, "umt5-xxl", "umt5_xxl"]
    for folder in [joined(home, name) for name in beside] + ([] if shared else [home]):
        if any(joined(folder, name) in names for name in VOCABULARIES):
            return Spot(folder)
    return None


def joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def weight_files(part: str, folder: str, names: Collection[str]) -> list[str]:
    """The safetensors files of a part's folder, by their names alone: shards where there is an index of them, as
    diffusers chooses."""
    stem = WEIGHTS[part]
    inside = [name for name in names if name.rpartition("/")[0] == folder and name.endswith(".safetensors")]
    whole = joined(folder, f"{stem}.safetensors")
    if index_of(part, folder) in names:
        return sorted(_shards(stem, inside) or inside)
    return [whole] if whole in names or len(inside) != 1 else inside


def _shards(stem: str, names: Collection[str]) -> list[str]:
    form = re.compile(re.escape(stem) + r"-\d+-of-\d+\.safetensors")
    return [name for name in names if form.fullmatch(name.rpartition("/")[2])]


def lacks_index(part: str, folder: str, names: Collection[str]) -> bool:
    """Whether a part's folder holds shards, and nothing that says which there should be."""
    stem, inside = WEIGHTS[part], [name for name in names if name.rpartition("/")[0] == folder]
    whole = {index_of(part, folder), joined(folder, f"{stem}.safetensors")}
    return bool(_shards(stem, inside)) and not whole & set(inside)


def needed_files(part: str, spot: Spot, names: Collection[str]) -> list[str]:
    """All files of a part, as far as names tell; also such as should be there and are not."""
    if spot.single:
        return [spot.path]
    if part == "tokenizer":
        return sorted(joined(spot.path, name) for name in TOKENIZER_FILES if joined(spot.path, name) in names)
    index = index_of(part, spot.path)
    return [
        joined(spot.path, "config.json"),
        *([index] if index in names else []),
        *weight_files(part, spot.path, names),
    ]


def settings_files(names: Collection[str]) -> list[str]:
    """The files that say what a diffusers repository is and holds: small, and fetched whichever parts are wanted."""
    wanted = {"model_index.json", "scheduler/scheduler_config.json"}
    wanted |= {
        f"{folder}/{name}"
        for part, stem in WEIGHTS.items()
        for folder in FOLDERS[part]
        for name in ("config.json", f"{stem}.safetensors.index.json")
    }
    return sorted(wanted & set(names))


def names_in(folder: Path) -> frozenset[str]:
    """The files of a source folder that may belong to a base.

    Of a ComfyUI folder, or its models folder, only the folders of models that a base is made of are looked into. No
    folder deeper than DEPTH is, and of a tree no more than MOST_FOLDERS: somebody may name a whole disk.
    """
    home = next(
        (h for h in ("", "models") if any((folder / h / sub).is_dir() for sub in ("diffusion_models", "unet"))), None
    )
    found, folders = _entries(folder, "")
    todo = deque(
        [(sub, DEPTH) for sub in folders]
        if home is None
        else [(sub, 1) for sub in (*PARTS, "google", *(f for each in FOLDERS.values() for f in each))]
        + [(joined(home, sub), DEPTH) for sub in SUBFOLDERS]
    )
    names = set(found)
    for _ in range(MOST_FOLDERS):
        if not todo:
            break
        sub, left = todo.popleft()
        found, folders = _entries(folder, sub)
        names.update(found)
        if left > 1:
            todo.extend((inner, left - 1) for inner in folders)
    return frozenset(names)


def files_in(folder: Path, sub: str) -> list[str]:
    """The files of one folder of a source that may belong to a base."""
    return _entries(folder, sub)[0]


def _entries(folder: Path, sub: str) -> tuple[list[str], list[str]]:
    """(files that may belong to a base, folders but for hidden ones) directly in a folder of a source."""
    files, folders = [], []
    try:
        with os.scandir(folder / sub) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(joined(sub, entry.name))
                elif holds_weights(entry.name) or entry.name.endswith((".json", ".model")):
                    files.append(joined(sub, entry.name))
    except OSError:  # not there; what may not be read shows when its part is read
        pass
    return files, sorted(f for f in folders if not f.rpartition("/")[2].startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle: what it stands for shows when it is read
        return False


def index_of(part: str, folder: str) -> str:
    """The index of shards of a part's folder, where it has one."""
    return joined(folder, f"{WEIGHTS[part]}.safetensors.index.json")


def weight_map(index: dict[str, Any]) -> dict[str, str]:
    """Tensor -> file beside the index. Raises Damaged."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) and "/" not in v for v in found.values()):
        raise Damaged("has no usable weight_map")
    return found


def indexed_files(part: str, root: Path, folder: str) -> dict[str, str]:
    """Tensor -> file of a part's folder on this disk, as its index names them; {} where it has none. Raises OSError,
    and Damaged."""
    index = root / index_of(part, folder)
    if not index.exists():
        return {}
    return {tensor: joined(folder, file) for tensor, file in weight_map(json_object(index.read_bytes())).items()}


def stored_files(part: str, root: Path, folder: str, names: Collection[str]) -> list[str]:
    """The safetensors files of a part's folder on this disk: those that its index names, where there is one, else by
    their names. Raises OSError, and Damaged."""
    return sorted(set(indexed_files(part, root, folder).values())) or weight_files(part, folder, names)


def is_whole(part: str, root: Path, spot: Spot, names: Collection[str], *, weights: bool = True) -> bool:
    """Whether every file of a part is in a cached snapshot; with `weights` off its settings are enough. What is damaged
    shows when it is read."""
    if part == "tokenizer":
        return True
    if spot.single:
        return (root / spot.path).exists()
    if joined(spot.path, "config.json") not in names:
        return False
    try:
        files = stored_files(part, root, spot.path, names)
    except (OSError, Damaged):
        return True
    return not weights or all((root / file).exists() for file in files)
