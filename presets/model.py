"""Facts of a base model, read from JSON files and safetensors headers alone: a diffusers folder of Wan 2.2 I2V A14B, or ComfyUI's files.

Layout of diffusers (WanImageToVideoPipeline): model_index.json with boundary_ratio; transformer (high noise) and
transformer_2 (low noise), each with config.json and weights in one or more shards; vae, text_encoder, tokenizer, scheduler.
No weight is loaded: a header tells every tensor's type, shape and place, so a truncated shard shows at once.
"""

import re
from math import prod
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets import comfy
from presets.findings import Finding
from presets.headers import AGAIN, DTYPE_BITS, Damaged, TensorPlace, json_object, read_header

EXPERT_NAMES = {"transformer": "high noise", "transformer_2": "low noise"}
I2V_CHANNELS = 36  # 16 noisy latents + 4 mask + 16 conditioning latents
LATENT_CHANNELS = 16
I2V_BOUNDARY = 0.9  # of Wan 2.2 I2V A14B's own model_index.json
WEIGHTS = {"transformer": "diffusion_pytorch_model", "transformer_2": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


class PartFacts(Struct, frozen=True, kw_only=True):
    """The weights of one part (transformer, transformer_2, vae, text_encoder)."""

    parameters: int
    size_bytes: int  # of its shards on disk
    dtype: str  # of most of its bytes, as safetensors calls it: "BF16"; "" when there are none


class ModelFacts(Struct, frozen=True, kw_only=True):
    """A base model. Numbers are 0 where they are not known: always so for a model that is not on this machine."""

    path: str  # as the job names it
    local: bool  # False for a Hub id that is not (completely) in the local cache and will be downloaded
    folder: str = ""  # absolute, "" when not local
    in_channels: int = 0
    out_channels: int = 0
    num_layers: int = 0
    width: int = 0  # of the residual stream: heads x head size
    ffn: int = 0  # inner width of the feed-forward
    boundary_ratio: float | None = None
    parameters: int = 0  # of both experts together
    size_bytes: int = 0  # of all weights on disk
    parts: dict[str, PartFacts] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # files and folders that should be there, relative to `folder`
    problems: list[Finding] = field(default_factory=list)


def looks_like_hub_id(path: str) -> bool:
    """True for `owner/name` within the Hub's rules for names; says nothing about whether it exists."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path, re.ASCII) or len(path) > 96:
        return False
    return not any(part[-1] in "-." or "--" in part or ".." in part or part.endswith(".git") for part in path.split("/"))


def resolve_model(path: str, base: Path, *, hub_cache: Path | None = None) -> Path | None:
    """The folder of a model: a path (relative ones to `base`), or a complete copy of a Hub id in the local cache. None when it is neither.

    A folder comes before a Hub id of the same name, as in diffusers. `hub_cache` is Hugging Face's own by default.
    """
    folder = (base / Path(path).expanduser()).resolve()
    if folder.is_dir():
        return folder
    cached = _cached(path, hub_cache)
    return cached if cached is not None and not _read_folder(path, cached).missing else None


def read_model(path: str, base: Path, *, hub_cache: Path | None = None) -> ModelFacts:
    """Facts of the model that a job names, with everything wrong about it in `problems`. Raises nothing for bad input."""
    folder = (base / Path(path).expanduser()).resolve()
    if folder.is_dir():
        return _read_folder(path, folder)
    if folder.exists():
        return _absent(path, "is a single file", "Give its folder: one with model_index.json in it, or one with the four files of ComfyUI")
    if not looks_like_hub_id(path):
        return _absent(path, "does not exist" if Path(path).expanduser().is_absolute() else f"does not exist (looked for {folder}), and it is no Hub id either", "Give a diffusers folder or a Hub id such as owner/name")
    cached = _cached(path, hub_cache)
    facts = _read_folder(path, cached) if cached is not None else None
    # A download that was broken off goes on when the trainer asks for the model: nothing is wrong with it.
    return facts if facts is not None and not facts.missing else ModelFacts(path=path, local=False)


def _absent(path: str, what: str, fix: str) -> ModelFacts:
    return ModelFacts(path=path, local=True, missing=["model_index.json"], problems=[_problem("model-missing", f"the model {path} {what}", fix)])


def _cached(path: str, hub_cache: Path | None) -> Path | None:
    """The cached snapshot of a Hub id's main revision, complete or not."""
    if not looks_like_hub_id(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(path, "model_index.json", cache_dir=hub_cache)
    return Path(index).parent if isinstance(index, str) else None


def _problem(code: str, message: str, fix: str) -> Finding:
    return Finding(code=code, severity="error", field="model.path", message=message, fix=fix)


def _read_folder(path: str, folder: Path) -> ModelFacts:
    missing: list[str] = []
    problems: list[Finding] = []
    index = _read_config(folder / "model_index.json", folder, missing, problems)
    if index is None and missing:
        if single := comfy.find_single_files(folder):
            return _read_single_files(path, folder, single)
        hint = "; it holds safetensors files, so it may be in another program's layout" if any(folder.glob("*.safetensors")) else ""
        problems.append(_problem("model-incomplete", f"the folder {folder} has no model_index.json, so it is no diffusers model{hint}", "Give the folder of a diffusers model of Wan 2.2 I2V A14B"))
        return ModelFacts(path=path, local=True, folder=str(folder), missing=missing, problems=problems)
    configs = {}
    for expert, noise in EXPERT_NAMES.items():
        if (folder / expert / "config.json").exists():
            configs[expert] = _read_config(folder / expert / "config.json", folder, missing, problems) or {}
        else:
            missing.append(f"{expert}/config.json")
            problems.append(_problem("model-not-i2v", f"the {noise} expert is missing: {folder} has no {expert}/config.json; Wan 2.2 I2V A14B has two experts, Wan 2.1 and the 5B model have one", "Complete the folder, or give a model that has both experts"))
    parts, channels = {}, {}
    for part, stem in WEIGHTS.items():
        if part in EXPERT_NAMES and part not in configs:
            continue
        if part not in EXPERT_NAMES:
            _read_config(folder / part / "config.json", folder, missing, problems)
        parts[part], shapes = _read_weights(folder / part, stem, folder, missing, problems)
        if len(shapes.get("patch_embedding.weight", ())) > 1:
            channels[part] = shapes["patch_embedding.weight"][1]
    if not any((folder / "tokenizer" / name).exists() for name in ("tokenizer.json", "spiece.model")):
        missing.append("tokenizer/tokenizer.json")
    _read_config(folder / "scheduler" / "scheduler_config.json", folder, missing, problems)
    unnamed = [m for m in missing if m not in {f"{e}/config.json" for e in EXPERT_NAMES}]
    if unnamed:
        problems.append(_problem("model-incomplete", f"missing in the model folder {folder}: {', '.join(unnamed)}", "Download the model again; what is there already is kept"))
    problems += _expert_problems(configs, channels)
    boundary = (index or {}).get("boundary_ratio")
    if not isinstance(boundary, int | float) or not 0 < boundary < 1:
        boundary = None
        problems.append(_no_boundary("the model's model_index.json names"))
    return _facts(path, folder, configs, parts, boundary=boundary, missing=missing, problems=problems)


def _whole(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _expert_problems(configs: dict[str, dict[str, Any]], channels: dict[str, int]) -> list[Finding]:
    """What makes the two experts something else than Wan 2.2 I2V A14B. `channels` are those of the weights themselves."""
    found = []
    inputs = {expert: channels.get(expert, _whole(config, "in_channels")) for expert, config in configs.items() if config}  # a damaged config.json is said already
    for count in sorted({n for n in inputs.values() if n != I2V_CHANNELS}):
        kind = {16: "a text-to-video model", 48: "the 5B model"}.get(count, "another model")
        here = [expert for expert, n in inputs.items() if n == count]
        who = f"both experts ({', '.join(here)}) take" if len(here) > 1 else f"the {EXPERT_NAMES[here[0]]} expert ({here[0]}) takes"
        found.append(_problem("model-not-i2v", f"{who} {count} input channels, so this is {kind}; image-to-video takes {I2V_CHANNELS}", "Give Wan 2.2 I2V A14B"))
    for expert in (e for e, n in inputs.items() if n == I2V_CHANNELS):
        config = configs[expert]
        if _whole(config, "in_channels") != I2V_CHANNELS or _whole(config, "out_channels") != LATENT_CHANNELS:
            found.append(_problem("model-not-i2v", f"{expert}/config.json says in_channels {config.get('in_channels')} and out_channels {config.get('out_channels')}; Wan 2.2 I2V A14B has {I2V_CHANNELS} and {LATENT_CHANNELS}", "Give Wan 2.2 I2V A14B"))
    shapes = {tuple(c.get(k) for k in ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim")) for c in configs.values() if c}
    if len(shapes) > 1:
        found.append(_problem("model-not-i2v", "the two experts differ in their layers or widths, so they are not of one model", "Give Wan 2.2 I2V A14B"))
    return found


def _read_config(path: Path, folder: Path, missing: list[str], problems: list[Finding]) -> dict[str, Any] | None:
    """A JSON object; None, with the reason noted, when the file is missing or damaged."""
    name = path.relative_to(folder).as_posix()
    try:
        return json_object(path.read_bytes())
    except FileNotFoundError:
        missing.append(name)
    except OSError as e:
        problems.append(_unreadable(path, e))
    except Damaged as e:
        problems.append(_problem("model-corrupt", f"{name} {e.what} ({folder})", e.fix))
    return None


def _unreadable(path: Path, error: OSError) -> Finding:
    return _problem("model-unreadable", f"{path} cannot be read ({(error.strerror or str(error)).lower()})", "Check who may read it, and the disk")


def _read_weights(part: Path, stem: str, folder: Path, missing: list[str], problems: list[Finding]) -> tuple[PartFacts, dict[str, tuple[int, ...]]]:
    """A part's weights and the shape of each of its tensors: the shards of its index file, else its one file, as diffusers chooses."""
    index_path = part / f"{stem}.safetensors.index.json"
    weight_map: dict[str, str] = {}
    if index_path.exists():
        index = _read_config(index_path, folder, missing, problems)
        if index is None:
            return PartFacts(parameters=0, size_bytes=0, dtype=""), {}
        found = index.get("weight_map")
        if not isinstance(found, dict) or not found or not all(isinstance(v, str) and "/" not in v for v in found.values()):
            problems.append(_problem("model-corrupt", f"{index_path.relative_to(folder).as_posix()} has no usable weight_map ({folder})", AGAIN))
            return PartFacts(parameters=0, size_bytes=0, dtype=""), {}
        weight_map = found
    shards = sorted(set(weight_map.values())) or [f"{stem}.safetensors"]
    tensors: dict[str, TensorPlace] = {}
    size, whole = 0, True
    for shard in shards:
        name = (part / shard).relative_to(folder).as_posix()
        try:
            size += (part / shard).stat().st_size
            tensors |= read_header(part / shard)
            continue
        except FileNotFoundError:
            missing.append(name)
        except OSError as e:
            problems.append(_unreadable(part / shard, e))
        except Damaged as e:
            problems.append(_problem("model-corrupt", f"{name} {e.what} ({folder})", e.fix))
        whole = False
    lost = sorted(set(weight_map) - set(tensors))
    if whole and lost:
        problems.append(_problem("model-corrupt", f"{index_path.relative_to(folder).as_posix()} names tensors that its shards do not hold: {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''} ({folder})", "Download the model again"))
    return _part_facts(tensors, size), {name: place.shape for name, place in tensors.items()}


def _part_facts(tensors: dict[str, TensorPlace], size_bytes: int) -> PartFacts:
    held: dict[str, int] = {}
    for place in tensors.values():
        held[place.dtype] = held.get(place.dtype, 0) + prod(place.shape) * DTYPE_BITS.get(place.dtype, 8)
    return PartFacts(parameters=sum(prod(place.shape) for place in tensors.values()), size_bytes=size_bytes, dtype=max(held, key=lambda d: held[d], default=""))


def _read_single_files(path: str, folder: Path, found: comfy.SingleFiles) -> ModelFacts:
    """Facts of a folder with ComfyUI's files. They name no boundary, and no config beside them says what they are."""
    problems = [_problem("model-incomplete", what, fix) for what, fix in comfy.complaints(found, folder)]
    parts: dict[str, PartFacts] = {}
    configs: dict[str, dict[str, Any]] = {}
    channels: dict[str, int] = {}
    for part, file in found.files.items():
        name = file.relative_to(folder).as_posix()
        try:
            tensors = comfy.plain_names(read_header(file))
            parts[part] = _part_facts({n: place for n, place in tensors.items() if comfy.is_weight(n)}, file.stat().st_size)
            if part in EXPERT_NAMES:
                configs[part] = comfy.expert_config(tensors)
                channels[part] = configs[part]["in_channels"]
            elif part == "text_encoder" and comfy.TOKENIZER not in tensors:
                problems.append(_problem("model-incomplete", f"{name} has no tokenizer in it (no tensor {comfy.TOKENIZER}), so it is not ComfyUI's own file ({folder})", f"Take {comfy.EXAMPLES[part]} of Comfy-Org, or a diffusers folder"))
        except OSError as e:
            problems.append(_unreadable(file, e))
        except Damaged as e:
            problems.append(_problem("model-corrupt", f"{name} {e.what} ({folder})", e.fix))
        except KeyError as e:
            problems.append(_problem("model-not-i2v", f"{name} is no expert of Wan: it has no tensor {e.args[0]} of the usual form ({folder})", "Give Wan 2.2 I2V A14B"))
    problems += [*_expert_problems(configs, channels), _no_boundary("ComfyUI's files name")]
    return _facts(path, folder, configs, parts, boundary=None, missing=[], problems=problems)


def _no_boundary(whose: str) -> Finding:
    return Finding(code="model-no-boundary", severity="error", field="model.boundary", message=f"{whose} no boundary_ratio between 0 and 1, so the job must set model.boundary; Wan 2.2 I2V has {I2V_BOUNDARY}", fix=f"Set model.boundary = {I2V_BOUNDARY}", set={"model.boundary": I2V_BOUNDARY})


def _facts(path: str, folder: Path, configs: dict[str, dict[str, Any]], parts: dict[str, PartFacts], *, boundary: float | None, missing: list[str], problems: list[Finding]) -> ModelFacts:
    first = next((c for c in configs.values() if c), {})
    return ModelFacts(
        path=path, local=True, folder=str(folder), in_channels=_whole(first, "in_channels"), out_channels=_whole(first, "out_channels"), num_layers=_whole(first, "num_layers"),
        width=_whole(first, "num_attention_heads") * _whole(first, "attention_head_dim"), ffn=_whole(first, "ffn_dim"), boundary_ratio=boundary,
        parameters=sum(parts[e].parameters for e in EXPERT_NAMES if e in parts), size_bytes=sum(p.size_bytes for p in parts.values()), parts=parts, missing=missing, problems=problems,
    )  # fmt: skip
