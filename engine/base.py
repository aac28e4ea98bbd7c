"""The frozen base: Wan 2.2 I2V A14B as a diffusers folder, loaded part by part."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.sources import SUBFOLDER, Source, identity, open_source
from presets.errors import UserError
from presets.job import Job
from presets.model import I2V_BOUNDARY, looks_like_hub_id, read_model, resolve_model
from presets.stages import EXPERTS, Expert, trained_experts

__all__ = ["EXPERTS", "SUBFOLDER", "BaseFolder", "Expert", "find_base", "needed_experts", "trained_experts"]
FLOW_SHIFT = 5.0  # Wan's own for image-to-video, where the model names none


@dataclass(frozen=True)
class BaseFolder:
    """A complete base model on this disk, and what the run needs to know of it before any weight is read."""

    path: Path
    boundary: float  # sigma that divides the experts
    flow_shift: float  # of the model's own scheduler; previews use it
    identity: str  # of the trained experts' weights, by content

    @property
    def source(self) -> Source:
        return open_source(self.path)

    def identity_of(self, expert: Expert) -> str:
        """Of one expert's weights, by content."""
        return identity(self.source.expert(expert).files, times=False)


def find_base(job: Job, base: Path, *, progress: Callable[[int, int, str], None] = lambda done, total, text: None, endpoint: str | None = None) -> BaseFolder:
    """The folder of `model.path`, downloaded from the Hub first when it is an id. Raises UserError.

    `progress` is told the bytes that are there and those there will be; `endpoint` is the Hub's own by default.
    """
    path = resolve_model(job.model.path, base)
    downloaded = path is None
    if path is None:
        if not looks_like_hub_id(job.model.path):
            raise UserError("no such model folder", where=f"model.path = {job.model.path!r}", fix="Give a diffusers folder, a folder of ComfyUI's files or a Hub id")
        from engine.hub import fetch, lacking  # only now: it takes a while, and most jobs have their model

        path = fetch(job.model.path, needed_experts(job), progress=progress, endpoint=endpoint)
    facts = read_model(str(path), base)
    problems = [p for p in facts.problems if p.code != "model-no-boundary"]  # which the job may make up for
    if downloaded and not lacking(path, set(needed_experts(job))):  # without the weights of an expert that the job does not need
        problems = [p for p in problems if p.code != "model-incomplete"]
    if problems and downloaded:  # a local folder was checked with the job
        raise UserError(problems[0].message, where=str(path), fix=problems[0].fix)
    source = open_source(path)
    scheduler = json.loads((path / "scheduler" / "scheduler_config.json").read_text()) if source.single is None else {}
    boundary = facts.boundary_ratio if job.model.boundary == "model" else job.model.boundary
    if boundary is None:
        raise UserError("the model names no boundary_ratio between 0 and 1", where=str(path), fix=f"Set model.boundary = {I2V_BOUNDARY}")
    shift = scheduler.get("flow_shift") or scheduler.get("shift") or FLOW_SHIFT
    files = [file for expert in trained_experts(job) for file in source.expert(expert).files]
    return BaseFolder(path, float(boundary), float(shift), identity(files, times=False))


def needed_experts(job: Job) -> list[Expert]:
    """The experts that must be loaded: previews go through both."""
    return list(EXPERTS) if job.sample.prompts else trained_experts(job)
