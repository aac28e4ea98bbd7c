"""The frozen base of a run: Wan 2.2 I2V A14B, each part found where it lies or fetched from the Hub first.

No weight is read here (`engine.weights.load_expert`, `engine.encode`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.weights.model_files import ModelFiles
from presets.base.composition import compose, named_base
from presets.base.model_facts import I2V_BOUNDARY, ModelFacts, facts_of
from presets.errors import UserError
from presets.files import identity
from presets.job.expert_schedule import Expert, trained_experts
from presets.job.schema import Job


@dataclass(frozen=True)
class BaseModel:
    """A base model on this disk, and what the run needs to know of it before any weight is read."""

    source: ModelFiles
    boundary: float  # sigma that divides the experts
    identity: str  # of the trained experts' weights, by content
    beside: Mapping[str, str] = field(default_factory=dict)  # of the parts beside the experts, by content
    facts: ModelFacts | None = None  # as they were read when it was found

    def identity_of(self, expert: Expert) -> str:
        """Of one expert's weights, by content."""
        return identity(self.source.expert(expert).files, times=False)


def find_base_model(
    job: Job,
    base: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    say: Callable[[str], None] = lambda text: None,
    cache: Path | None = None,
    endpoint: str | None = None,
) -> BaseModel:
    """The base that the job names; what of it is not on this machine is downloaded first. Raises UserError.

    `progress` is given the bytes that are there and those there will be, `say` what a log should hold; `cache` and
    `endpoint` are the Hub's own by default.
    """
    named = named_base(job)
    composed = compose(named, base, cache=cache)
    for _ in range(2):  # again where a file that has come turns out to lack its tokenizer
        if composed.to_ask:
            from engine.weights.hub_download import (
                download_model,  # only now: it takes a while, and most jobs have their model
            )

            download_model(named, base, progress=progress, say=say, cache=cache, endpoint=endpoint)
            composed = compose(named, base, cache=cache)
    assert not composed.to_ask, f"what was fetched is not there: {composed.to_ask}"
    facts = facts_of(named, composed)
    # which the job may make up for
    errors = [p for p in facts.problems if p.severity == "error" and p.code != "model-no-boundary"]
    if errors:
        raise UserError(errors[0].message, where=errors[0].field, fix=errors[0].fix)
    source = ModelFiles(Path(facts.folder), composed.places)
    boundary = facts.boundary_ratio if job.model.boundary == "model" else job.model.boundary
    if boundary is None:
        raise UserError(
            "the model names no boundary_ratio between 0 and 1",
            where=facts.folder,
            fix=f"Set model.boundary = {I2V_BOUNDARY}",
        )
    files = [file for expert in trained_experts(job) for file in source.expert(expert).files]
    beside = {
        "vae": source.part("vae").files,
        "text_encoder": source.part("text_encoder").files,
        "tokenizer": source.tokenizer_files(),
    }
    identities = {part: identity(paths, times=False) for part, paths in beside.items()}
    return BaseModel(source, float(boundary), identity(files, times=False), identities, facts)
