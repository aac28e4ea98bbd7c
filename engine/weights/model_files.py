"""Where a base model's tensors lie: folders as diffusers has them, or ComfyUI's single files. Opened by their headers
alone.

Every part looks the same from above: tensors under the names of diffusers (transformers for the text encoder), read one
at a time straight from their place in the file. Nothing is mapped into memory, so what has been read leaves no trace in
it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from engine.weights.comfy_names import NAMES
from presets.base.comfy_files import TOKENIZER, WEIGHT_SCALES, config_of, plain_names
from presets.base.composition import FIELDS, NamedBase, compose
from presets.base.layouts import CALLED, EXPERT_PART, TOKENIZER_FILES, WEIGHTS, names_in, shards_of, weight_files
from presets.base.safetensors_header import AGAIN, Damaged, TensorPlace, json_object, read_header
from presets.base.sources import Place
from presets.errors import UserError
from presets.job.expert_schedule import Expert

SUBFOLDER = EXPERT_PART
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SAMPLED_PAGES = 64


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
        scale = self.scale
        known = scale is None or (
            scale.dtype in DTYPES and prod(scale.shape) in (1, self.shape[0] if self.shape else 1)
        )
        return known and self.place.dtype in DTYPES

    def raw(self, into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(as stored, its fp32 scale), on the CPU. The tensor is a view of `into` (uint8, large enough) when given.
        Raises UserError."""
        scale = None
        if self.scale is not None:
            scale = self._fetch(self.scale, None).float()
            scale = scale.view(-1, *[1] * (len(self.shape) - 1)) if scale.numel() > 1 else scale.view(())
        return self._fetch(self.place, into), scale

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor itself in `dtype`, dequantized when it is stored in 8 bits. Raises UserError."""
        return weight_of(*self.raw(), dtype)

    def _fetch(self, place: TensorPlace, into: torch.Tensor | None) -> torch.Tensor:
        buffer = torch.empty(place.size, dtype=torch.uint8) if into is None else into[: place.size]
        read_into(self.file, place.begin, buffer)
        return buffer.view(DTYPES[place.dtype]).view(place.shape)


def weight_of(raw: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What a stored tensor stands for."""
    return raw.to(dtype) if scale is None else (raw.float() * scale).to(dtype)


def read_into(path: Path, begin: int, buffer: torch.Tensor) -> None:
    """Fill a uint8 host buffer from the file. Lets other threads run. Raises UserError."""
    view, done = buffer.numpy().data, 0
    try:
        with path.open("rb", buffering=0) as f:
            f.seek(begin)
            while done < len(view):  # one read moves at most 2 GiB
                count = f.readinto(view[done:])
                if not count:
                    raise UserError("ends too early", where=str(path), fix=AGAIN)
                done += count
    except OSError as e:
        raise UserError(
            f"cannot be read ({(e.strerror or str(e)).lower()})",
            where=str(path),
            fix="Check the disk, and who may read the file",
        ) from None


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
                    fix="Take the bf16, fp16 or fp8_scaled file",
                )
        if unknown := sorted(set(self.stored) - set(shapes)):
            raise UserError(
                f"the tensor {self.stored[unknown[0]].name} does not belong to Wan 2.2 I2V A14B",
                where=str(self.stored[unknown[0]].file),
                fix="Give the weights of Wan 2.2 I2V A14B",
            )

    def identity(self) -> str:
        """Hash of what tells these weights from others: each file's size, time of change, header and sampled pages."""
        return identity(self.files)


def identity(files: Iterable[Path], *, times: bool = True) -> str:
    """Without `times`, by content alone: a copy is the same. With them, a file rewritten in place is another, sampled
    or not."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        size = status.st_size
        digest.update(f"{size}\0{status.st_mtime_ns if times else 0}\0".encode())
        with file.open("rb") as f:
            header = int.from_bytes(f.read(8), "little")
            digest.update(f.read(min(header, size)))
            for i in range(SAMPLED_PAGES):
                f.seek(size * i // SAMPLED_PAGES)
                digest.update(f.read(4096))
    return digest.hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """A base model on this disk. Parts are opened when asked for: a model of one expert serves a job of one expert."""

    folder: Path  # of the experts
    places: Mapping[str, Place]  # of every part that is here

    def expert(self, expert: Expert) -> Network:
        return self.part(SUBFOLDER[expert])

    def part(self, name: str) -> Network:
        """Raises UserError when its files are not there, damaged, or of another kind."""
        place, at = self._at(name)
        assert place.spot is not None and place.root is not None
        return _single_part(at, name) if place.spot.single else _folder_part(place.root, place.spot.path, name)

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
        place = _header(at).get(TOKENIZER)
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


def _header(file: Path) -> dict[str, TensorPlace]:
    try:
        return read_header(file)
    except Damaged as e:
        raise UserError(e.what, where=str(file), fix=e.fix) from None
    except OSError as e:
        raise UserError(
            f"cannot be read ({(e.strerror or str(e)).lower()})",
            where=str(file),
            fix="Check that the file is there and who may read it",
        ) from None


def _object(file: Path) -> dict[str, Any]:
    try:
        return json_object(file.read_bytes())
    except Damaged as e:
        raise UserError(e.what, where=str(file), fix=e.fix) from None
    except OSError as e:
        raise UserError(
            f"cannot be read ({(e.strerror or str(e)).lower()})",
            where=str(file),
            fix="Download the model again; what is there already is kept",
        ) from None


def _folder_part(root: Path, sub: str, name: str) -> Network:
    """The shards of the part's index, else its one file, as diffusers chooses."""
    folder = root / sub
    index = folder / f"{WEIGHTS[name]}.safetensors.index.json"
    if index.exists():
        try:
            files = tuple(folder / shard for shard in shards_of(index))
        except Damaged as e:
            raise UserError(e.what, where=str(index), fix=e.fix) from None
    else:
        files = tuple(root / file for file in weight_files(name, sub, names_in(root)))
    stored = {tensor: StoredTensor(tensor, file, place) for file in files for tensor, place in _header(file).items()}
    config = {key: value for key, value in _object(folder / "config.json").items() if not key.startswith("_")}
    return Network(name, files, config, stored)


def _single_part(file: Path, name: str) -> Network:
    places = plain_names(_header(file))
    try:
        config = {key: value for key, value in config_of(name, file, places).items() if not key.startswith("_")}
    except KeyError as e:
        raise UserError(
            f"is not the file of this part: the tensor {e.args[0]} is not there or has another form",
            where=str(file),
            fix="Give ComfyUI's files of Wan 2.2 I2V A14B",
        ) from None
    except Damaged as e:
        raise UserError(f"the config.json beside it {e.what}", where=str(file), fix=e.fix) from None
    stored = {}
    for ours, theirs in NAMES[name](places).items():
        scale = next(
            (places[key] for s in WEIGHT_SCALES if (key := f"{theirs.removesuffix('.weight')}.{s}") in places), None
        )
        stored[ours] = StoredTensor(theirs, file, places[theirs], scale if theirs.endswith(".weight") else None)
    return Network(name, (file,), config, stored)
