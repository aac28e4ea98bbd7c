"""What a LoRA file says of itself in its header: `modelspec.*` for programs that list models, `ss_*` as kohya's
trainers write it, `wanlora.*` for this one.

Everything in it is a function of the job, the base, the clips and the step: a run that is made again gives the same. In
`save.metadata = "plain"` nobody reads in it what the clips show or where they lie. How it is written:
`engine.adapters.tensor_file`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine.weights.base_model import BaseModel
from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.plain_tables import last_name, plain_tables
from presets.job.schema import Job
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS
from presets.job.toml_file import job_to_dict

# as ai-toolkit names the model, and with I2V in it; what manages LoRAs looks for "wan", "2.2", "14b" and "i2v"
BASE_VERSION = "wan_2.2_14b_i2v"
ARCHITECTURE = f"{BASE_VERSION}/lora"
IMPLEMENTATION = "https://github.com/Wan-Video/Wan2.2"  # whose names the tensors have


@dataclass(frozen=True)
class TrainedOn:
    """What is said of the clips."""

    newest: str  # day of the newest one, in UTC: the LoRA is not older, and no run made again gives another
    words: dict[str, dict[str, int]]  # by folder: how many clips have each part of a caption between two commas


def trained_on(clips: Iterable[tuple[str, str, str]]) -> TrainedOn:
    """Of clips given as (folder, path, caption), each as often as it is visited."""
    words: dict[str, Counter[str]] = {}
    newest = 0.0
    for folder, path, caption in sorted(set(clips)):
        newest = max(newest, Path(path).stat().st_mtime)
        words.setdefault(folder, Counter()).update(part.strip() for part in caption.split(",") if part.strip())
    return TrainedOn(datetime.fromtimestamp(newest, UTC).date().isoformat(), {f: dict(c) for f, c in words.items()})


def lora_metadata(
    job: Job, base: BaseModel, expert: Expert, *, step: int, rank: int, clips: TrainedOn | None
) -> dict[str, str]:
    """The header of one expert's file; `rank` is the highest of its layers."""
    full = job.save.metadata == "full"
    name, trigger = expert.replace("_noise", " noise"), job.job.trigger
    side = max(side for panel in job.datasets for side in panel.resolutions)
    boundary = round(base.boundary * NUM_TRAIN_TIMESTEPS)
    low, high = (boundary, round(NUM_TRAIN_TIMESTEPS)) if expert == EXPERTS[0] else (0, boundary)
    hint = f"For the {name} model, its other half for the other one" + (f"; trigger word: {trigger}" if trigger else "")

    def place(text: str) -> str:
        return text if full else last_name(text)

    out = {
        "format": "pt",
        # github.com/Stability-AI/ModelSpec; 1.0.1 is what kohya's trainers write
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": f"{job.job.name} ({name})",
        "modelspec.description": (
            f"{job.job.kind.capitalize()} LoRA for the {name} expert of Wan 2.2 I2V A14B, trained with wanlora for"
            f" {step} steps"
        ),
        "modelspec.usage_hint": hint,
        "modelspec.tags": f"{job.job.kind}, image-to-video, {name}",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.timestep_range": f"{low},{high}",
        "ss_base_model_version": BASE_VERSION,
        "ss_output_name": job.job.name,
        "ss_network_module": "networks.lora_wan",  # musubi's, which reads the file
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_steps": str(step),
        "wanlora.expert": expert,
        "wanlora.boundary": str(base.boundary),
        "wanlora.base": place(job.model.path),
        "wanlora.vae": place(base.source.places["vae"].source),
        "wanlora.text_encoder": place(base.source.places["text_encoder"].source),
        "wanlora.base_identity": base.identity,
        "wanlora.rank": str(rank),
        "wanlora.alpha": str(float(rank)),  # as in the file; what it was trained with stands in the job
        "wanlora.step": str(step),
        "wanlora.average": str(job.training.ema and job.save.ema).lower(),
        "wanlora.trigger": trigger,
        "wanlora.job_hash": job_hash(job),
        "wanlora.job": json.dumps(job_to_dict(job) if full else plain_tables(job)),
    }
    if trigger:
        out["modelspec.trigger_phrase"] = trigger
    if clips:
        out["modelspec.date"] = clips.newest
        if full:
            out["ss_tag_frequency"] = json.dumps(clips.words)
    return out


def job_hash(job: Job) -> str:
    return hashlib.blake2b(json.dumps(job_to_dict(job), sort_keys=True).encode(), digest_size=16).hexdigest()
