"""LoRAs that a job begins with, as their headers tell: those that its own LoRAs start from, and those that are merged
into its base. No weight is read.

A start is a LoRA file, a folder of peft or diffusers with one in it, or a run of ours: its folder (then its newest
checkpoint counts), a checkpoint of it, or one of its LoRA files. What a LoRA file changes is known to
`presets.base.lora_file`; how a start becomes a LoRA's first values, to `engine.adapters.start`.
"""

import json
from pathlib import Path

from msgspec import Struct

from presets.base.lora_file import (
    GIVE,
    LINEARS,
    OUTSIDE,
    Changes,
    LoraFile,
    block_shapes,
    misfit,
    outside_shapes,
    read_lora,
    without_other_patches,
)
from presets.base.lora_metadata import PEFT_FILE, expert_said
from presets.base.model_facts import I2V_CHANNELS, LATENT_CHANNELS, ModelFacts
from presets.errors import JobError, UserError
from presets.file_names import expanded
from presets.job.expert_schedule import EXPERTS, PANEL, Expert, alpha_of, rank_of
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job, MergePanel
from presets.job.toml_file import job_from_dict
from presets.runs.checkpoints import checkpoint_folders

START_FIELDS: dict[Expert, str] = {expert: f"target.start_{name}" for expert, name in PANEL.items()}
MERGE_INSTEAD = "Merge it into the base with [[model.merge]] instead, or give a LoRA of pairs of factors alone"
STATE, MANIFEST = "state.json", "manifest.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


class Shapes(Struct, frozen=True):
    """What LoRA files are compared with: the sizes of a base."""

    tensors: dict[str, tuple[int, ...]]
    blocks: int


class Start(Struct, frozen=True, kw_only=True):
    """The file that an expert's LoRA starts from."""

    file: Path
    name: str  # as logs and metadata call it: no path of this machine
    scale: float = 1.0  # on top of what the file says: a checkpoint keeps its alpha elsewhere
    step: int | None = None  # of a checkpoint
    sha256: str = ""  # of a checkpoint, by its manifest


def start_of(job: Job, expert: Expert) -> str:
    """What the job names as the start of an expert's LoRA; "" when that begins fresh."""
    return job.target.start_high if expert == "high_noise" else job.target.start_low


def shapes_of(model: ModelFacts | None) -> Shapes:
    """The local model's, or Wan 2.2 I2V A14B's."""
    if model is None or not model.local or 0 in (model.width, model.ffn, model.num_layers):
        width, ffn, blocks, channels, out = 5120, 13824, 40, I2V_CHANNELS, LATENT_CHANNELS
    else:
        width, ffn, blocks = model.width, model.ffn, model.num_layers
        channels, out = model.in_channels, model.out_channels
    return Shapes(block_shapes(width, ffn) | outside_shapes(width, channels, out), blocks)


def find_start(text: str, expert: Expert, base: Path) -> Start:
    """The file that `text` names for an expert; relative paths begin at `base`. Raises UserError."""
    path = base / expanded(text)
    where = str(path)
    if not path.exists():
        raise UserError("no such file or folder", where=where, fix="Give a LoRA file, or the folder of a run")
    if path.is_file():
        own = path.parent / MANIFEST
        return _of_checkpoint(path.parent, expert, path) if own.exists() and _is_state(path) else _plain(path)
    if (file := lora_at(path)) != path:
        return _plain(file)
    if (path / MANIFEST).exists():
        return _of_checkpoint(path, expert)
    whole = [folder for folder in checkpoint_folders(path) if (folder / MANIFEST).exists()]
    if whole:
        return _of_checkpoint(whole[-1], expert)
    final = sorted(path.glob(f"*_{expert}.safetensors")) if (path / JOB_FILE).exists() else []
    if final:
        return _plain(final[-1])  # NAME_high_noise comes after NAME_000000500_high_noise
    raise UserError(
        "holds neither a LoRA file nor a run with a checkpoint",
        where=where,
        fix="Give a .safetensors file, or the folder of a run that has saved a checkpoint",
    )


def lora_at(path: Path) -> Path:
    """The LoRA file in a folder of peft or diffusers, as diffusion-pipe saves them, else the path itself."""
    return next((path / name for name in (PEFT_FILE, DIFFUSERS_FILE) if (path / name).exists()), path)


def _is_state(path: Path) -> bool:
    return path.stem in {f"{kind}_{expert}" for kind in ("lora", "ema") for expert in EXPERTS}


def lora_name(path: Path) -> str:
    """What a LoRA file is called, without a path of this machine; with its folder where many have the same name."""
    return path.name if path.name not in (PEFT_FILE, DIFFUSERS_FILE) else f"{path.absolute().parent.name}/{path.name}"


def _plain(path: Path) -> Start:
    return Start(file=path, name=lora_name(path))


def _of_checkpoint(folder: Path, expert: Expert, file: Path | None = None) -> Start:
    """Of a run's checkpoint: the LoRA itself, or the running average where the run's own LoRA files hold that one."""
    try:
        state = json.loads((folder / STATE).read_text())
        hashes = {name: entry["sha256"] for name, entry in json.loads((folder / MANIFEST).read_text())["files"].items()}
        job, step = job_from_dict(state["job"], where=STATE), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, JobError) as e:
        raise UserError(f"is no whole checkpoint ({e})", where=str(folder), fix="Give another one") from None
    if file is None:
        average = job.training.ema and job.save.ema and f"ema_{expert}.safetensors" in hashes
        file = folder / f"{'ema' if average else 'lora'}_{expert}.safetensors"
    own: Expert = next(e for e in EXPERTS if file.stem.endswith(e))
    if file.name not in hashes or not file.exists():
        raise UserError(
            f"has no LoRA of the {expert.replace('_', ' ')} expert, which that run did not train",
            where=str(folder),
            fix=f'Set {START_FIELDS[expert]} = "", or give another LoRA',
        )
    return Start(
        file=file,
        name=f"{job.job.name}/{folder.name}/{file.name}",
        scale=alpha_of(job, own) / rank_of(job, own),
        step=step,
        sha256=hashes[file.name],
    )


def startable(start: Start, expert: Expert, shapes: Shapes) -> tuple[LoraFile, Changes]:
    """What a start changes in an expert: pairs of factors of the blocks' linears, and nothing else. Raises UserError
    for a file whose first prediction a LoRA could not repeat."""
    file, where = read_lora(start.file), str(start.file)
    changes = _changes(file, expert, where)
    fixed = [
        key
        for (block, module), kinds in changes.items()
        for kind, key in kinds.items()
        if block == OUTSIDE or module not in LINEARS or kind in ("weight", "bias")
    ]
    if fixed:
        more = f" and {len(fixed) - 1} more" if len(fixed) > 1 else ""
        raise UserError(
            f"holds {fixed[0]!r}{more}, which no LoRA on the blocks' linears can go on with",
            where=where,
            fix=MERGE_INSTEAD,
        )
    _require_fit(file, changes, shapes, where)
    return file, changes


def rank_in(file: LoraFile, changes: Changes) -> int:
    """The largest of the pairs."""
    return max((file.shapes[kinds["A"]][0] for kinds in changes.values() if "A" in kinds), default=0)


class Mergeable(Struct, frozen=True):
    """A file that is to be merged, and what of it into which expert."""

    path: Path
    changes: dict[Expert, Changes]
    notes: list[str]  # what is left out of it

    @property
    def experts(self) -> list[Expert]:
        return [expert for expert, changes in self.changes.items() if changes]


def mergeable(panel: MergePanel, base: Path, experts: list[Expert], shapes: Shapes) -> Mergeable:
    """A file that is to be merged into these experts. What it has for parts that Wan 2.2 I2V has not, an image encoder
    or patches of 16 channels, is left out, as of an accelerator. Raises UserError when it cannot be merged: there is
    nothing for an expert that the job names, or it is of another model."""
    if not panel.path.strip():
        raise UserError("names no file", where="model.merge", fix="Give the path of a LoRA file, or take it out")
    path = lora_at(base / expanded(panel.path))
    file = read_lora(path)
    changed: dict[Expert, Changes] = {}
    for expert in (e for e in experts if panel.expert in ("both", e)):
        if panel.expert == expert:
            _changes(file, expert, str(path))
        changed[expert], _ = without_other_patches(file, file.of(expert), shapes.tensors)
        _require_fit(file, changed[expert], shapes, str(path))
    return Mergeable(path, changed, left_out_of(file, list(changed), shapes))


def left_out_of(file: LoraFile, experts: list[Expert], shapes: Shapes) -> list[str]:
    """What cannot act in these experts of what a file holds, for its user to know."""
    notes = []
    if file.image:
        notes.append(
            f"{len(file.image)} of its {len(file.shapes)} tensors are for an image encoder that Wan 2.2 does not have,"
            f" such as {file.image[0]}; they are left out"
        )
    patches = [key for e in experts for key in without_other_patches(file, file.of(e), shapes.tensors)[1]]
    if patches:
        notes.append(
            f"{patches[0]} of shape {file.shapes[patches[0]]} is for the patches of another model (text-to-video has 16"
            " channels there, image-to-video 36); it is left out"
        )
    return notes


def _changes(file: LoraFile, expert: Expert, where: str) -> Changes:
    changes = file.of(expert)
    if not changes:
        raise UserError(
            f"changes nothing in the {expert.replace('_', ' ')} expert",
            where=where,
            fix="Give a file for this expert, or one for both",
        )
    return changes


def _require_fit(file: LoraFile, changes: Changes, shapes: Shapes, where: str) -> None:
    if problem := misfit(file, changes, shapes.tensors, shapes.blocks):
        raise UserError(f"{problem}: it is of another model", where=where, fix=GIVE)


def start_fields(path: Path) -> dict[str, str]:
    """Which start fields a LoRA or run at `path` can fill, as `new --start` takes it: one expert's where it says which
    one it is for, else both. Raises UserError."""
    found: dict[Expert, Start] = {}
    refused: UserError | None = None
    for expert in EXPERTS:
        try:
            start = find_start(str(path), expert, Path())
            if read_lora(start.file).of(expert):
                found[expert] = start
        except UserError as e:
            refused = e
    if not found:
        assert refused is not None, "a LoRA file changes one expert or the other"
        raise refused
    files = {start.file for start in found.values()}
    said = expert_said(next(iter(files))) if len(files) == 1 else None
    return {START_FIELDS[e]: str(path) for e in found if said in (None, e)}


def start_ranks(job: Job, base: Path) -> dict[str, tuple[int, str]]:
    """The rank fields with which a job's LoRAs are as large as those they start from, each with the reason. A start
    that cannot be read has no say: the rules name it."""
    ranks: dict[Expert, int] = {}
    for expert in EXPERTS:
        if text := start_of(job, expert):
            try:
                file = read_lora(find_start(text, expert, base).file)
                if rank := rank_in(file, file.of(expert)):
                    ranks[expert] = rank
            except UserError:
                continue
    if not ranks:
        return {}
    why = "The rank of the LoRA that it starts from"
    common = max(ranks.values())
    own = {f"multistage.{PANEL[e]}.rank": (rank, why) for e, rank in ranks.items() if rank != common}
    return {"target.rank": (common, why), **own}
