"""Accuracy recovery adapters as files: a LoRA for the frozen weights, always on, never trained.

Written as ai-toolkit names a LoRA of both experts in one file, which is the form the published adapters have, so that
its users can read ours:

    diffusion_model.transformer_1.blocks.7.self_attn.q.lora_A.weight     high noise
    diffusion_model.transformer_2.blocks.7.self_attn.q.lora_A.weight     low noise

Read in every naming that `presets.base.lora_file` knows; a file of a single expert must say which. How an adapter is
built: `engine.recovery`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from engine.adapters.lora import wan_name
from engine.adapters.lora_metadata import ARCHITECTURE, BASE_VERSION
from engine.adapters.lora_reader import Change, at_one_rank, read_changes
from engine.adapters.tensor_file import save_tensors
from engine.wan.block import LINEARS, Lora, linear_shapes
from engine.wan.quantize import GRIDS, PUBLISHED_GRID, Grid, fingerprint
from engine.weights.base_model import BaseModel
from presets.atomic_file import replacing
from presets.base.layouts import EXPERT_PART
from presets.base.lora_file import GIVE, NUMBERED, Changes, LoraFile, misfit, place, read_lora
from presets.errors import UserError
from presets.facts.recovery_adapter import (
    BASE_IDENTITY,
    FIELD,
    FINGERPRINT,
    RecoveryAdapter,
    adapter_of,
    adapter_path,
    quantized_base,
    read_adapter,
)
from presets.job.expert_schedule import EXPERTS, Expert, needed_experts
from presets.job.schema import Job

FORMAT = "1"  # of what `save_ara` writes
AGAIN = "Download it again, or build one with: wanlora ara"


@dataclass(frozen=True)
class Ara:
    """An adapter ready to run, in host memory: per expert the factors of every block, alpha folded into B.

    A linear has the same rank in every block of every expert (zeros fill up), so that all blocks share one layout and
    one compilation. Linears that the file leaves out are left out in all blocks.
    """

    experts: dict[Expert, list[Lora]]
    grid: Grid  # of the quantized weights that it corrects
    about: RecoveryAdapter
    doubts: tuple[str, ...] = ()  # what was taken for granted, and what speaks against it, for the user to judge


def ara_of_job(job: Job, base_dir: Path, base: BaseModel, dtype: torch.dtype) -> Ara | None:
    """The adapter of a job with qint4+ara, for the experts that it needs. Raises UserError."""
    if job.quantization.transformer != "qint4+ara":
        return None
    adapter_of(job, base_dir)  # before anything is fetched
    needed = needed_experts(job)
    ara = load_ara(
        find_ara(job.quantization.ara, base_dir),
        config=base.source.expert(needed[0]).config,
        identities={expert: base.identity_of(expert) for expert in needed},
        dtype=dtype,
    )
    types = [base.facts.parts[EXPERT_PART[e]].dtype for e in needed] if base.facts else []
    return replace(ara, doubts=tuple(text for text in (*ara.doubts, quantized_base(ara.about, types)) if text))


def find_ara(text: str, base: Path) -> Path:
    """The file that `quantization.ara` names: a path (relative ones to `base`) or `owner/repository/file` on the Hub.
    Raises UserError."""
    if (path := adapter_path(text, base)) is not None:
        return path
    parts, where = text.split("/"), f"{FIELD} = {text!r}"
    from engine.weights.hub_download import download_file  # only now: most adapters are local

    return download_file("/".join(parts[:2]), "/".join(parts[2:]), where=where)


def load_ara(path: Path, *, config: Any, identities: Mapping[Expert, str], dtype: torch.dtype = torch.bfloat16) -> Ara:
    """Read and check an adapter for the experts of `identities`; `config` is an expert's.

    The identities are those of the base's experts, compared with what the file says of each: it may have been built for
    both. A file for one expert serves when it says so: the other expert is then not in the answer. Raises UserError.
    """
    where, blocks, file, about = str(path), config["num_layers"], read_lora(path), read_adapter(path)
    found = _by_expert(file, about.metadata, path, identities.keys())
    grid, assumed = _grid(about)
    _check_origin(grid, about, {e: identities[e] for e in found})
    for changes in found.values():
        if problem := misfit(file, changes, {f"{n}.weight": s for n, s in linear_shapes(config).items()}, blocks):
            raise UserError(problem, where=where, fix=GIVE)
    names = {name for changes in found.values() for _, name in changes}
    factors: list[dict[str, Change]] = []  # of every block of every expert
    for expert, changes in found.items():
        for at in [(block, name) for block in range(blocks) for name in LINEARS if name in names]:
            if at not in changes:
                what = f"lacks {place(*at)} of the {expert.replace('_', ' ')} expert, which other blocks have"
                raise UserError(what, where=where, fix=AGAIN)
        read = read_changes(path, changes)
        factors += [{name: read[block, name] for name in names} for block in range(blocks)]
    lora = at_one_rank(factors, dtype)
    experts = {e: lora[i * blocks : (i + 1) * blocks] for i, e in enumerate(found)}
    return Ara(experts, grid, about, (assumed,) if assumed else ())


def _by_expert(
    file: LoraFile, metadata: dict[str, str], path: Path, needed: Collection[Expert]
) -> dict[Expert, Changes]:
    """What the file changes in each needed expert that it is for."""
    where = str(path)
    said = [e for e in EXPERTS if e == metadata.get("wanlora.expert")] or [
        e for e in EXPERTS if re.search(e.replace("_", "[ _-]?"), path.stem, re.IGNORECASE)
    ]
    if "" in file.modules and len(said) != 1:
        raise UserError(
            "does not say which expert it is for",
            where=where,
            fix="Put high_noise or low_noise into its name, or give a file for both experts",
        )
    found = {e: file.modules[key] for e in EXPERTS for key in (e, "") if key in file.modules and (key or e in said)}
    strange = file.image + [
        key
        for changes in found.values()
        for (_, module), kinds in changes.items()
        for kind, key in kinds.items()
        if module not in LINEARS or kind == "bias"
    ]
    if strange:
        raise UserError(
            f"holds {strange[0]!r}, which is no part of an accuracy recovery adapter", where=where, fix=GIVE
        )
    lacking = [e.replace("_", " ") for e in EXPERTS if e not in found]
    if lacking and not found.keys() & set(said):
        raise UserError(
            f"has nothing for the {lacking[0]} expert",
            where=where,
            fix=f"{AGAIN}; if it is meant for one expert, put {next(iter(found))} into its name",
        )
    if not found.keys() & needed:
        raise UserError(
            f"is for the {next(iter(found)).replace('_', ' ')} expert, which this job does not use",
            where=where,
            fix="Give one for the other expert, or for both",
        )
    return {expert: changes for expert, changes in found.items() if expert in needed}


def _grid(about: RecoveryAdapter) -> tuple[Grid, str]:
    """The grid of the file, in its metadata or its file name; or the usual one, and a sentence that says so."""
    said = about.grid()
    if said is None:
        return (
            GRIDS[0],
            (
                f"{about.name} does not say which 4-bit weights it corrects, neither in its metadata nor in its name:"
                f" taken as {GRIDS[0]}. On the wrong ones it only adds noise. If it was made for uint4 (torchao, as"
                " ai-toolkit's are), put uint4 into its file name; to be sure, build one with: wanlora ara"
            ),
        )
    return (PUBLISHED_GRID if said == "uint4" and not about.ours else said), ""


def _check_origin(grid: Grid, about: RecoveryAdapter, identities: dict[Expert, str]) -> None:
    about.require_this_model()
    about.require_base(identities)
    if about.ours and about.metadata[FINGERPRINT] != fingerprint(grid):
        raise UserError(
            "was built by another version, which rounded weights differently",
            where=about.where,
            fix="Build it again with: wanlora ara",
        )


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
        "modelspec.architecture": ARCHITECTURE,
        "ss_base_model_version": BASE_VERSION,
        "wanlora.rank": str(rank),
        "wanlora.alpha": str(float(rank)),
        "wanlora.base": base,
        "wanlora.ara": FORMAT,
        "wanlora.ara.grid": grid,
        FINGERPRINT: fingerprint(grid),
        "wanlora.ara.weighting": weighting,
    } | {f"{BASE_IDENTITY}{expert}": identities[expert] for expert in loras}
    if len(loras) == 1:
        metadata["wanlora.expert"] = next(iter(loras))
    with replacing(path) as aside:
        save_tensors(aside, tensors, metadata)
