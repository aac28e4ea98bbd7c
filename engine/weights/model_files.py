"""Where a base model's tensors lie: folders as diffusers or Wan's repository has them, or single files as ComfyUI does.
Opened by their headers alone.

Every part looks the same from above: tensors under the names of diffusers (transformers for the text encoder), read one
at a time straight from their place in the file. Nothing is mapped into memory, so what has been read leaves no trace in
it. Which files are which part: `presets.base.composition`; an expert's way into memory: `engine.weights.load_expert`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from engine.weights.comfy_names import NAMES
from engine.weights.gguf_values import dequantize_into
from engine.weights.read_into import read_into
from presets.base.comfy_files import (
    DIFFUSERS_VAE,
    READABLE_FIX,
    TOKENIZER,
    config_of,
    fits,
    plain_names,
    scale_of,
    unreadable,
)
from presets.base.composition import FIELDS, NamedBase, compose
from presets.base.layouts import CALLED, EXPERT_PART, TOKENIZER_FILES, files_in, index_of, stored_files
from presets.base.safetensors_header import AGAIN, Damaged, TensorPlace, json_object
from presets.base.sources import Place
from presets.base.tensor_files import QUANTS, read_tensors
from presets.errors import UserError
from presets.files import identity
from presets.job.expert_schedule import Expert

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in its file."""

    name: str  # in the file, for errors
    file: Path
    place: TensorPlace
    scale: TensorPlace | None = None  # weight = stored * scale; one number, or one per row

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    @property
    def readable(self) -> bool:
        """Whether its type is one of those we know, and its scale one number or one per row."""
        known = self.scale is None or fits(self.scale, self.place)
        return known and (self.place.dtype in DTYPES or self.place.dtype in QUANTS)

    @property
    def bytes(self) -> int:
        """Of what `raw` gives: of a tensor that GGUF has quantized, its fp32 values."""
        return prod(self.shape) * 4 if self.place.dtype in QUANTS else self.place.size

    def raw(self, into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(as stored, its fp32 scale), on the CPU; what GGUF has quantized in fp32. The tensor is a view of `into`
        (uint8, `bytes` long at least) when given. Raises UserError."""
        scale = None
        if self.scale is not None:
            scale = self._fetch(self.scale, None).float()
            scale = scale.view(-1, *[1] * (len(self.shape) - 1)) if scale.numel() > 1 else scale.view(())
        return self._fetch(self.place, into), scale

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor itself in `dtype`, dequantized when it is stored in fewer bits. Raises UserError."""
        if self.place.dtype in QUANTS:
            values = torch.empty(self.shape, dtype=dtype)
            dequantize_into(self.file, self.place, values.view(-1))
            return values
        return weight_of(*self.raw(), dtype)

    def _fetch(self, place: TensorPlace, into: torch.Tensor | None) -> torch.Tensor:
        size = self.bytes if place is self.place else place.size
        buffer = torch.empty(size, dtype=torch.uint8) if into is None else into[:size]
        if place.dtype in QUANTS:
            values = buffer.view(torch.float32)
            dequantize_into(self.file, place, values)
            return values.view(place.shape)
        read_into(self.file, place.begin, buffer)
        stored = buffer.view(DTYPES[place.dtype])
        return stored.view(place.shape) if place.strides is None else stored.as_strided(place.shape, place.strides)


def weight_of(raw: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What a stored tensor stands for."""
    return raw.to(dtype) if scale is None else (raw.float() * scale).to(dtype)


@dataclass(frozen=True)
class Network:
    """One network of the model: its configuration (as its class takes it) and its tensors."""

    name: str  # transformer, transformer_2, text_encoder, vae
    files: tuple[Path, ...]
    config: dict[str, Any]
    stored: dict[str, StoredTensor]

    def require(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Exactly these tensors must be here, in these shapes. Raises UserError that names the first which is not."""
        where = str(self.files[0].parent if len(self.files) > 1 else self.files[0])
        for name, shape in shapes.items():
            if name not in self.stored:
                raise UserError(f"the tensor {name} is missing", where=where, fix=AGAIN)
            found = self.stored[name]
            if found.shape != shape:
                raise UserError(
                    f"the tensor {found.name} has the shape {list(found.shape)}, not {list(shape)}",
                    where=str(found.file),
                    fix="Give the weights of Wan 2.2 I2V A14B, all of one model",
                )
            if not found.readable:
                raise UserError(
                    f"the tensor {found.name} is stored in a form that cannot be read ({found.place.dtype})",
                    where=str(found.file),
                    fix=READABLE_FIX,
                )
        if unknown := sorted(set(self.stored) - set(shapes)):
            raise UserError(
                f"the tensor {self.stored[unknown[0]].name} does not belong to Wan 2.2 I2V A14B",
                where=str(self.stored[unknown[0]].file),
                fix="Give the weights of Wan 2.2 I2V A14B",
            )

    def identity(self) -> str:
        """Hash that identifies these weights: each file's size, time of change, header and sampled pages."""
        return identity(self.files)


@dataclass(frozen=True)
class ModelFiles:
    """A base model on this disk. Parts are opened when first asked for, and once: a model of one expert serves a job of
    one expert."""

    folder: Path  # of the experts
    places: Mapping[str, Place]  # of every part that is here
    _opened: dict[str, Network] = field(default_factory=dict, init=False, repr=False, compare=False)

    def expert(self, expert: Expert) -> Network:
        return self.part(EXPERT_PART[expert])

    def part(self, name: str) -> Network:
        """Raises UserError when its files are not there, damaged, or of another kind."""
        if name not in self._opened:
            place, at = self._at(name)
            assert place.spot is not None and place.root is not None
            self._opened[name] = (
                _single_part(at, name) if place.spot.single else _folder_part(place.root, place.spot.path, name)
            )
        return self._opened[name]

    def tokenizer_files(self) -> list[Path]:
        """Everything the tokenizer is made from."""
        _, at = self._at("tokenizer")
        return [at] if at.is_file() else [at / name for name in sorted(TOKENIZER_FILES) if (at / name).exists()]

    def spiece_model(self) -> bytes | None:
        """The SentencePiece model: the one that ComfyUI keeps in the text encoder's file, or a folder's where it has no
        tokenizer.json. Raises UserError."""
        _, at = self._at("tokenizer")
        if at.is_dir():
            return None if (at / "tokenizer.json").exists() else (at / "spiece.model").read_bytes()
        place = _tensors(at).get(TOKENIZER)
        if place is None:
            raise UserError(
                f"has no tokenizer in it (no tensor {TOKENIZER})",
                where=str(at),
                fix="Take ComfyUI's own umt5_xxl file, or a diffusers folder",
            )
        model = torch.empty(place.size, dtype=torch.uint8)
        read_into(at, place.begin, model)
        return model.numpy().tobytes()

    def _at(self, name: str) -> tuple[Place, Path]:
        place = self.places.get(name)
        at = place.at if place is not None else None
        if place is None or at is None:
            raise UserError(f"does not hold {CALLED[name]}", where=str(self.folder), fix=f"Name it in {FIELDS[name]}")
        return place, at


def open_model_files(folder: Path) -> ModelFiles:
    """What `folder` holds of a base model, and nothing from elsewhere. Raises UserError when it holds no experts."""
    composed = compose(NamedBase(path=str(folder)), folder)
    for wrong in composed.problems:
        if wrong.code != "model-not-i2v":  # one expert serves a job of one expert
            raise UserError(wrong.message, where=str(folder), fix=wrong.fix)
    return ModelFiles(folder, {part: place for part, place in composed.places.items() if not place.repo})


def _tensors(file: Path) -> dict[str, TensorPlace]:
    try:
        return read_tensors(file)
    except (Damaged, OSError) as e:
        raise _unusable(e, file) from None


def _object(file: Path) -> dict[str, Any]:
    try:
        return json_object(file.read_bytes())
    except (Damaged, OSError) as e:
        raise _unusable(e, file) from None


def _unusable(error: Damaged | OSError, file: Path) -> UserError:
    if isinstance(error, Damaged):
        return UserError(error.what, where=str(file), fix=error.fix)
    return UserError(
        f"cannot be read ({(error.strerror or str(error)).lower()})",
        where=str(file),
        fix="Check who may read it; where it is missing, download the model again: what is there already is kept",
    )


def _folder_part(root: Path, sub: str, name: str) -> Network:
    """The shards of the part's index, else its one file, as diffusers chooses."""
    try:
        files = tuple(root / file for file in stored_files(name, root, sub, files_in(root, sub)))
    except (Damaged, OSError) as e:
        raise _unusable(e, root / index_of(name, sub)) from None
    return _network(name, files, _object(root / sub / "config.json"))


def _single_part(file: Path, name: str) -> Network:
    beside = file.with_name("config.json")
    theirs = name == "vae" and beside.exists() and DIFFUSERS_VAE in _tensors(file)
    return _network(name, (file,), _object(beside) if theirs else None)


def _network(name: str, files: tuple[Path, ...], given: dict[str, Any] | None) -> Network:
    """The part in these files, under the names of diffusers; `given` is its config.json."""
    found = plain_names({tensor: (file, place) for file in files for tensor, place in _tensors(file).items()})
    places = {tensor: place for tensor, (_, place) in found.items()}
    if form := unreadable(places):
        raise UserError(f"its weights are stored as {form}, which is not read", where=str(files[0]), fix=READABLE_FIX)
    try:
        config = {key: value for key, value in config_of(name, places, given).items() if not key.startswith("_")}
    except KeyError as e:
        raise UserError(
            f"is not the file of this part: the tensor {e.args[0]} is not there or has another form",
            where=str(files[0]),
            fix="Give the files of Wan 2.2 I2V A14B",
        ) from None
    stored = {}
    for ours, theirs in NAMES[name](places).items():
        scale = scale_of(theirs, places) if theirs.endswith(".weight") else None
        stored[ours] = StoredTensor(theirs, found[theirs][0], places[theirs], scale)
    return Network(name, files, config, stored)
