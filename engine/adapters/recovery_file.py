"""Accuracy recovery adapters as files: a LoRA for the frozen weights, always on, never trained.

Written as ai-toolkit names a LoRA of both experts in one file, which is the form the published adapters have, so that
its users can read ours and one loader reads both:

    diffusion_model.transformer_1.blocks.7.self_attn.q.lora_A.weight     high noise
    diffusion_model.transformer_2.blocks.7.self_attn.q.lora_A.weight     low noise

Read as well: `transformer.` for `diffusion_model.`, diffusers' own names (`transformer.blocks.7.attn1.to_q` with
`transformer_2.blocks...`), lora_down/lora_up, alpha; and files of a single expert that say which.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.adapters.lora import wan_name
from engine.wan.block import LINEARS, Lora
from engine.wan.int4_grids import GRIDS, Grid, fingerprint
from presets.atomic_file import replacing
from presets.base.lora_file import NUMBERED, LoraKey, parse_key
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert

FORMAT = "1"  # of what `save_ara` writes
AGAIN = "Download it again, or build one with: wanlora ara"


@dataclass(frozen=True)
class Ara:
    """An adapter ready to run: per expert a list over blocks of {linear: (A (rank, in), B (out, rank))}, alpha folded
    into B.

    A linear has the same rank in every block of every expert (zeros fill up), so that all blocks share one layout and
    one compilation. Linears that the file leaves out are left out in all blocks.
    """

    experts: dict[Expert, list[Lora]]
    grid: Grid  # the quantized weights that it corrects: pack with `ara_grid.pack_on_grid(weight, grid)`
    metadata: dict[str, str]
    assumed: str = ""  # what the file does not say and was taken for granted, for the user to judge


def find_ara(text: str, base: Path) -> Path:
    """The file that `quantization.ara` names: a path (relative ones to `base`) or `owner/repository/file` on the Hub.
    Raises UserError."""
    path = (base / Path(text).expanduser()).resolve()
    if path.is_file():
        return path
    parts = text.split("/")
    where = f"quantization.ara = {text!r}"
    if (
        len(parts) < 3
        or not all(re.fullmatch(r"[\w.-]+", part, re.ASCII) and part.strip(".") for part in parts)
        or not text.endswith(".safetensors")
    ):
        raise UserError(
            f"no such file (looked for {path})",
            where=where,
            fix="Give a .safetensors file, or owner/repository/file.safetensors on the Hub",
        )
    from engine.weights.hub_download import download_file  # only now: most adapters are local

    return download_file("/".join(parts[:2]), "/".join(parts[2:]), where=where)


def load_ara(
    path: Path,
    *,
    shapes: dict[str, tuple[int, int]],
    blocks: int,
    needed: Sequence[Expert],
    identities: Mapping[Expert, str],
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Ara:
    """Read and check an adapter for the experts in `needed`; `shapes` are (out, in) of the ten linears of a block.

    `identities` are those of the base's experts, compared with what the file says of each that is needed: it may have
    been built for both. A file for one expert serves when it says so: the other expert is then not in the answer.
    Raises UserError.
    """
    where = str(path)
    tensors, metadata = _read(path)
    sorted_out = _sorted_out(tensors, metadata, path)
    _check_coverage(sorted_out, metadata, path, needed)
    grid, assumed = _grid(path, metadata)
    _check_origin(grid, metadata, {e: identities[e] for e in sorted_out if e in needed}, where)
    default_factor = alpha_over_rank(metadata, where)
    loras = {
        expert: _blocks_of(sorted_out[expert], shapes, blocks, default_factor, f"{where}, {expert}")
        for expert in EXPERTS
        if expert in sorted_out and expert in needed
    }
    ranks = {
        name: max(lora[name][0].shape[0] for per_block in loras.values() for lora in per_block)
        for name in next(iter(loras.values()))[0]
    }
    out: dict[Expert, list[Lora]] = {}
    for expert, per_block in loras.items():
        if set(per_block[0]) != set(ranks):
            raise UserError("covers other linears in one expert than in the other", where=where, fix=AGAIN)
        out[expert] = [
            {name: _filled(a, b, ranks[name], device, dtype) for name, (a, b) in lora.items()} for lora in per_block
        ]
    return Ara(out, grid, metadata, assumed)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as f:
            # (no mapping: it has no __iter__)
            return {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot be read as safetensors: {e}", where=str(path), fix=AGAIN) from None


_Linears = dict[tuple[int, str], dict[str, torch.Tensor]]  # (block, linear) -> {"A", "B", "alpha"}


def _sorted_out(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> dict[Expert, _Linears]:
    """The tensors by expert and linear."""
    if not tensors:
        raise UserError("holds no tensor", where=str(path), fix=AGAIN)
    keys: dict[str, LoraKey] = {}
    for key in tensors:
        found = parse_key(key)
        if found is None or found.module not in LINEARS or found.kind not in ("A", "B", "alpha"):
            raise UserError(
                f"holds {key!r}, which is no part of a Wan adapter",
                where=str(path),
                fix="Give a LoRA-format adapter for Wan 2.2 14B, in Wan's or diffusers' names",
            )
        keys[key] = found
    plain = {key for key, found in keys.items() if not found.number}
    numbers = {found.number for found in keys.values()} - {""}
    home: Expert | None = None  # of keys without a number
    if plain and numbers:
        if numbers != {"transformer_2"} or any(keys[key].root != "transformer" for key in plain):
            raise UserError("names an expert in some of its keys and none in others", where=str(path), fix=AGAIN)
        home = "high_noise"
    elif plain:
        home = _said_expert(metadata, path)
    out: dict[Expert, _Linears] = {}
    for key, found in keys.items():
        expert = NUMBERED[found.number] if found.number else home
        assert expert is not None
        tensor = tensors[key]
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(f"{key} holds numbers that are not finite", where=str(path), fix=AGAIN)
        slot = out.setdefault(expert, {}).setdefault((found.block, found.module), {})
        if found.kind in slot:
            raise UserError(f"holds {key} twice, under two names", where=str(path), fix=AGAIN)
        slot[found.kind] = tensor
    return out


def _said_expert(metadata: dict[str, str], path: Path) -> Expert:
    """The expert of a file whose keys name none: from its metadata, else from its name."""
    if metadata.get("wanlora.expert") in EXPERTS:
        return EXPERTS[0] if metadata["wanlora.expert"] == EXPERTS[0] else EXPERTS[1]
    named = [expert for expert in EXPERTS if re.search(expert.replace("_", "[ _-]?"), path.stem, re.IGNORECASE)]
    if len(named) != 1:
        raise UserError(
            "does not say which expert it is for",
            where=str(path),
            fix="Put high_noise or low_noise into its name, or give a file for both experts",
        )
    return named[0]


def _check_coverage(
    found: dict[Expert, _Linears], metadata: dict[str, str], path: Path, needed: Sequence[Expert]
) -> None:
    lacking = [expert for expert in EXPERTS if expert not in found]
    alone = metadata.get("wanlora.expert") in found or any(
        re.search(e.replace("_", "[ _-]?"), path.stem, re.IGNORECASE) for e in found
    )
    if lacking and not alone:
        raise UserError(
            f"has nothing for the {lacking[0].replace('_', ' ')} expert",
            where=str(path),
            fix=f"{AGAIN}; if it is meant for one expert, put {next(iter(found))} into its name",
        )
    if not set(needed) & set(found):
        raise UserError(
            f"is for the {next(iter(found)).replace('_', ' ')} expert, which this job does not use",
            where=str(path),
            fix="Give one for the other expert, or for both",
        )


def _grid(path: Path, metadata: dict[str, str]) -> tuple[Grid, str]:
    """The grid that the file names, in its metadata or its file name; or the usual one, and a sentence that says so."""
    said = metadata.get("wanlora.ara.grid") or (re.search(r"uint\d", path.stem) or [""])[0]
    if not said:
        return (
            GRIDS[0],
            (
                f"{path.name} does not say which 4-bit weights it corrects, neither in its metadata nor in its name:"
                f" taken as {GRIDS[0]}. On the wrong ones it only adds noise. If it was made for uint4 (torchao, as"
                " ai-toolkit's are), put uint4 into its file name; to be sure, build one with: wanlora ara"
            ),
        )
    for grid in GRIDS:
        if said == grid:
            return grid, ""
    raise UserError(
        f"corrects weights in {said}, which is not offered here",
        where=str(path),
        fix="Give an adapter for 4 bits (uint4), or build one with: wanlora ara",
    )


def _check_origin(grid: Grid, metadata: dict[str, str], identities: dict[Expert, str], where: str) -> None:
    if any(metadata.get(f"wanlora.base_identity.{expert}", own) != own for expert, own in identities.items()):
        raise UserError(
            "was built for another base model", where=where, fix="Build one for this base with: wanlora ara"
        )
    said = metadata.get("wanlora.ara.fingerprint")
    if said is not None and said != fingerprint(grid):
        raise UserError(
            "was built by another version, which rounded weights differently",
            where=where,
            fix="Build it again with: wanlora ara",
        )


def alpha_over_rank(metadata: dict[str, str], where: str) -> float:
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


def _blocks_of(
    found: _Linears, shapes: dict[str, tuple[int, int]], blocks: int, default_factor: float, where: str
) -> list[Lora]:
    """A and B in fp32, alpha folded into B."""
    names = [name for name in LINEARS if any(n == name for _, n in found)]
    beyond = max(block for block, _ in found)
    if beyond >= blocks:
        raise UserError(
            f"has a block {beyond}, and the model's last is {blocks - 1}",
            where=where,
            fix="Give an adapter for Wan 2.2 14B",
        )
    out: list[Lora] = []
    for block in range(blocks):
        lora: Lora = {}
        for name in names:
            slot, at = found.get((block, name), {}), f"{where}, block {block}, {name}"
            if "A" not in slot or "B" not in slot:
                raise UserError(
                    f"lacks {' and '.join(s for s in ('lora_A', 'lora_B') if s[-1] not in slot)}, which other blocks"
                    " have",
                    where=at,
                    fix=AGAIN,
                )
            a, b, (outputs, inputs) = slot["A"].float(), slot["B"].float(), shapes[name]
            if (
                a.ndim != 2
                or b.ndim != 2
                or a.shape[1] != inputs
                or b.shape[0] != outputs
                or a.shape[0] != b.shape[1]
                or not a.shape[0]
            ):
                raise UserError(
                    f"has A {tuple(a.shape)} and B {tuple(b.shape)}; this linear takes (rank, {inputs}) and ({outputs},"
                    " rank)",
                    where=at,
                    fix="Give an adapter for Wan 2.2 14B",
                )
            lora[name] = a, b * (float(slot["alpha"]) / a.shape[0] if "alpha" in slot else default_factor)
        out.append(lora)
    return out


def _filled(
    a: torch.Tensor, b: torch.Tensor, rank: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    short = rank - a.shape[0]
    a, b = (torch.nn.functional.pad(a, (0, 0, 0, short)), torch.nn.functional.pad(b, (0, short)))
    return a.to(device, dtype).contiguous(), b.to(device, dtype).contiguous()


def save_ara(
    path: Path,
    loras: dict[Expert, list[Lora]],
    *,
    rank: int,
    grid: Grid,
    identities: Mapping[Expert, str],
    base: str,
    weighting: str,
) -> None:
    """Write an adapter of both experts, or of one (which its metadata then says)."""
    number = {expert: name for name, expert in NUMBERED.items()}
    tensors = {
        f"diffusion_model.{number[expert]}.blocks.{block}.{wan_name(name)}.{side}.weight": (
            tensor.detach().to("cpu", torch.bfloat16).contiguous()
        )
        for expert, per_block in loras.items()
        for block, lora in enumerate(per_block)
        for name, pair in lora.items()
        for side, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    metadata = {
        "format": "pt",
        "modelspec.architecture": "wan_2.2_i2v_a14b/lora",
        "ss_base_model_version": "wan_2.2_i2v_14b",
        "wanlora.rank": str(rank),
        "wanlora.alpha": str(float(rank)),
        "wanlora.base": base,
        "wanlora.ara": FORMAT,
        "wanlora.ara.grid": grid,
        "wanlora.ara.fingerprint": fingerprint(grid),
        "wanlora.ara.weighting": weighting,
    } | {f"wanlora.base_identity.{expert}": identities[expert] for expert in loras}
    if len(loras) == 1:
        metadata["wanlora.expert"] = next(iter(loras))
    with replacing(path) as aside:
        save_file(tensors, aside, metadata)
        aside.chmod(0o644)  # safetensors makes it 0600
