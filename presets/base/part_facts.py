"""One part of a base model, read from its JSON files and the headers of its weights alone: what it holds, and what is
wrong with it."""

from math import prod
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets.base import comfy_files
from presets.base.layouts import files_in, index_of, indexed_files, joined, lacks_index, weight_files
from presets.base.safetensors_header import AGAIN, Damaged, TensorPlace, json_object
from presets.base.sources import Place, problem
from presets.base.tensor_files import read_tensors
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
    # of most of its bytes, as safetensors or GGUF calls it: "BF16", "Q8_0"; "" when there are none
    dtype: str


class ReadPart(Struct, kw_only=True):
    """A part as its files tell it. `config` is empty where it is damaged or missing, `shapes` where the weights are."""

    config: dict[str, Any] = field(default_factory=dict)
    # of every tensor, by its name in the file, without prefix; of the text encoder by transformers' names
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    facts: PartFacts = field(default_factory=lambda: PartFacts(parameters=0, size_bytes=0, dtype=""))
    files: list[Path] = field(default_factory=list)  # of its weights
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
    out, root, at, folder = ReadPart(), place.root, place.field, place.spot.path
    given = read_config(root / folder / "config.json", root, at, out.missing, out.problems)
    index = index_of(place.part, folder)
    try:
        indexed = indexed_files(place.part, root, folder)
    except OSError as e:
        out.problems.append(_unreadable(root / index, at, e))
        return out
    except Damaged as e:
        out.problems.append(problem("model-corrupt", f"{index} {e.what} ({root})", AGAIN, at=at))
        return out
    here = files_in(root, folder)
    names = sorted(set(indexed.values())) or weight_files(place.part, folder, here)
    if not indexed and lacks_index(place.part, folder, here):
        names = []
        out.missing.append(index)
    tensors = _read_files(place, names, out)
    lost = sorted(set(indexed) - set(tensors))
    if lost and not out.missing and not out.problems:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        what = f"{index} names tensors that its shards do not hold: {lost[0]}{more} ({root})"
        out.problems.append(problem("model-corrupt", what, "Download the model again", at=at))
    _understand(place, tensors, given, out)
    return out


def _read_single(place: Place) -> ReadPart:
    assert place.root is not None and place.spot is not None
    out, root, name = ReadPart(), place.root, place.spot.path
    tensors = _read_files(place, [name], out)
    if out.missing or out.problems:
        return out
    config = (root / name).with_name("config.json")
    given: dict[str, Any] | None = None
    if place.part == "vae" and comfy_files.DIFFUSERS_VAE in tensors and config.exists():
        given = read_config(config, root, place.field, out.missing, out.problems)
    _understand(place, tensors, given, out)
    return out


def _read_files(place: Place, names: list[str], out: ReadPart) -> dict[str, TensorPlace]:
    """The tensors of all files, by their names in them; what is wrong with a file is noted."""
    assert place.root is not None
    root, at = place.root, place.field
    tensors: dict[str, TensorPlace] = {}
    size = 0
    for name in names:
        file = root / name
        try:
            size += file.stat().st_size
            tensors |= read_tensors(file)
            out.files.append(file)
        except FileNotFoundError:
            out.missing.append(name)
        except OSError as e:
            out.problems.append(_unreadable(file, at, e))
        except Damaged as e:
            out.problems.append(problem("model-corrupt", f"{name} {e.what} ({root})", e.fix, at=at))
    out.facts = _facts_of({n: found for n, found in tensors.items() if comfy_files.is_weight(n)}, size)
    return tensors


def _understand(place: Place, tensors: dict[str, TensorPlace], given: dict[str, Any] | None, out: ReadPart) -> None:
    """Shapes and configuration of the part, from its tensors and from what its config.json has `given`."""
    tensors = comfy_files.plain_names(tensors)
    names = comfy_files.encoder_names(tensors) if place.part == "text_encoder" else {n: n for n in tensors}
    out.shapes = {ours: tensors[theirs].shape for ours, theirs in names.items()}
    if form := comfy_files.unreadable(tensors):
        out.problems.append(unreadable_form(place, form))
    if out.missing or out.problems:  # what is there is not all
        out.config = given_config(place.part, given) if given else {}
        return
    try:
        out.config = comfy_files.config_of(place.part, tensors, given)
    except KeyError as e:
        out.problems.append(wrong_file(place, f"it has no tensor {e.args[0]} of the usual form"))


def given_config(part: str, given: dict[str, Any]) -> dict[str, Any]:
    """A config.json alone, in diffusers' keys."""
    return comfy_files.config_of(part, {}, given)


def unreadable_form(place: Place, form: str) -> Finding:
    """A file or folder of the part whose weights are stored in a form that nothing here reads."""
    return problem(
        "model-unreadable",
        f"{_named(place)} stores its weights as {form}, which is not read",
        comfy_files.READABLE_FIX,
        at=place.field,
    )


def _named(place: Place) -> str:
    assert place.spot is not None
    inside = place.spot.path
    return joined(place.source, inside) if inside and not place.source.endswith(inside) else place.source


def wrong_file(place: Place, why: str) -> Finding:
    """A file or folder that is not the part it is taken for."""
    code, what, fix = WRONG.get(place.part, NO_EXPERT)
    return problem(code, f"{_named(place)} is {what}: {why}", fix, at=place.field)


def _facts_of(tensors: dict[str, TensorPlace], size_bytes: int) -> PartFacts:
    held: dict[str, int] = {}
    for found in tensors.values():
        held[found.dtype] = held.get(found.dtype, 0) + found.size
    return PartFacts(
        parameters=sum(prod(found.shape) for found in tensors.values()),
        size_bytes=size_bytes,
        dtype=max(held, key=lambda d: held[d], default=""),
    )
