"""One part of a base model, read from its JSON files and safetensors headers alone: what it holds, and what is wrong
with it."""

from math import prod
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets.base import comfy_files
from presets.base.layouts import WEIGHTS, joined, names_in, shards_of, weight_files
from presets.base.safetensors_header import AGAIN, DTYPE_BITS, Damaged, TensorPlace, json_object, read_header
from presets.base.sources import Place, problem
from presets.findings import Finding

NO_EXPERT = ("model-not-i2v", "no expert of Wan", "Give Wan 2.2 I2V A14B")
WRONG = {  # code, what it is not, fix
    "vae": (
        "vae-wrong",
        "not the VAE of Wan 2.1",
        "Give the VAE of Wan 2.1, with 16 latent channels: Wan 2.2 I2V A14B has that one, too",
    ),
    "text_encoder": (
        "text-encoder-wrong",
        "not Wan's text encoder UMT5",
        f"Give UMT5-XXL in the form of diffusers, or {comfy_files.EXAMPLES['text_encoder']} of Comfy-Org",
    ),
}


class PartFacts(Struct, frozen=True, kw_only=True):
    """The weights of one part (transformer, transformer_2, vae, text_encoder)."""

    parameters: int
    size_bytes: int  # of its shards on disk
    dtype: str  # of most of its bytes, as safetensors calls it: "BF16"; "" when there are none


class ReadPart(Struct, kw_only=True):
    """A part as its files tell it. `config` is empty where it is damaged or missing, `shapes` where the weights are."""

    config: dict[str, Any] = field(default_factory=dict)
    # of every tensor, by its name in the file (ComfyUI's without prefix)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    facts: PartFacts = field(default_factory=lambda: PartFacts(parameters=0, size_bytes=0, dtype=""))
    missing: list[str] = field(default_factory=list)  # files that should be there, relative to the part's source
    problems: list[Finding] = field(default_factory=list)


def read_part(place: Place) -> ReadPart:
    """Raises nothing for bad input: what is wrong is a problem in the answer."""
    assert place.root is not None and place.spot is not None, "a part that is not here cannot be read"
    return _read_single(place) if place.spot.single else _read_folder(place)


def read_config(path: Path, root: Path, at: str, missing: list[str], problems: list[Finding]) -> dict[str, Any] | None:
    """A JSON object; None, with the reason noted, when the file is missing or damaged."""
    name = path.relative_to(root).as_posix()
    try:
        return json_object(path.read_bytes())
    except FileNotFoundError:
        missing.append(name)
    except OSError as e:
        problems.append(_unreadable(path, at, e))
    except Damaged as e:
        problems.append(problem("model-corrupt", f"{name} {e.what} ({root})", e.fix, at=at))
    return None


def _unreadable(path: Path, at: str, error: OSError) -> Finding:
    return problem(
        "model-unreadable",
        f"{path} cannot be read ({(error.strerror or str(error)).lower()})",
        "Check who may read it, and the disk",
        at=at,
    )


def _read_folder(place: Place) -> ReadPart:
    assert place.root is not None and place.spot is not None
    out, root, at = ReadPart(), place.root, place.field
    out.config = read_config(root / place.spot.path / "config.json", root, at, out.missing, out.problems) or {}
    folder = root / place.spot.path
    index = folder / f"{WEIGHTS[place.part]}.safetensors.index.json"
    files = [root / name for name in weight_files(place.part, place.spot.path, names_in(root))]
    weight_map: dict[str, str] = {}
    if index.exists():
        found = read_config(index, root, at, out.missing, out.problems)
        if found is None:
            return out
        try:
            files, weight_map = [folder / shard for shard in shards_of(index)], found["weight_map"]
        except Damaged as e:
            out.problems.append(
                problem("model-corrupt", f"{index.relative_to(root).as_posix()} {e.what} ({root})", AGAIN, at=at)
            )
            return out
    tensors: dict[str, TensorPlace] = {}
    size, whole = 0, True
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            size += file.stat().st_size
            tensors |= read_header(file)
            continue
        except FileNotFoundError:
            out.missing.append(name)
        except OSError as e:
            out.problems.append(_unreadable(file, at, e))
        except Damaged as e:
            out.problems.append(problem("model-corrupt", f"{name} {e.what} ({root})", e.fix, at=at))
        whole = False
    lost = sorted(set(weight_map) - set(tensors))
    if whole and lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        out.problems.append(
            problem(
                "model-corrupt",
                f"{index.relative_to(root).as_posix()} names tensors that its shards do not hold: {lost[0]}{more}"
                f" ({root})",
                "Download the model again",
                at=at,
            )
        )
    out.facts = _facts_of(tensors, size)
    out.shapes = {name: found.shape for name, found in tensors.items()}
    return out


def _read_single(place: Place) -> ReadPart:
    assert place.root is not None and place.spot is not None
    out, root, at, name = ReadPart(), place.root, place.field, place.spot.path
    file = root / name
    try:
        tensors = comfy_files.plain_names(read_header(file))
        out.facts = _facts_of(
            {n: found for n, found in tensors.items() if comfy_files.is_weight(n)}, file.stat().st_size
        )
        out.shapes = {n: found.shape for n, found in tensors.items()}
        out.config = comfy_files.config_of(place.part, file, tensors)
    except OSError as e:
        out.problems.append(_unreadable(file, at, e))
    except Damaged as e:
        out.problems.append(problem("model-corrupt", f"{name} {e.what} ({root})", e.fix, at=at))
    except KeyError as e:
        out.problems.append(wrong_file(place, f"it has no tensor {e.args[0]} of the usual form"))
    return out


def wrong_file(place: Place, why: str) -> Finding:
    """A file or folder that is not the part it is taken for."""
    assert place.spot is not None
    code, what, fix = WRONG.get(place.part, NO_EXPERT)
    name = (
        joined(place.source, place.spot.path)
        if place.spot.path and not place.source.endswith(place.spot.path)
        else place.source
    )
    return problem(code, f"{name} is {what}: {why}", fix, at=place.field)


def _facts_of(tensors: dict[str, TensorPlace], size_bytes: int) -> PartFacts:
    held: dict[str, int] = {}
    for found in tensors.values():
        held[found.dtype] = held.get(found.dtype, 0) + prod(found.shape) * DTYPE_BITS.get(found.dtype, 8)
    return PartFacts(
        parameters=sum(prod(found.shape) for found in tensors.values()),
        size_bytes=size_bytes,
        dtype=max(held, key=lambda d: held[d], default=""),
    )
