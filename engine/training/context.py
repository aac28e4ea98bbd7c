"""A run between two optimizer steps: what the training loop, commands, saving and previews work on.

Made by engine.training.prepare; how its experts lie in memory is changed by engine.training.placement alone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from engine.adapters import lora
from engine.adapters.accelerator import Accelerator
from engine.adapters.gradient_check import GradientCheck
from engine.adapters.lora_metadata import TrainedOn
from engine.data.dataset import Item
from engine.data.loader import Loader
from engine.encode.latent_cache import LatentCache
from engine.encode.latents import Encoder
from engine.encode.shared_encodes import SharedEncodes
from engine.encode.text_embeddings import TextBook
from engine.executor.experts import Experts
from engine.executor.token_split import TokenSplit
from engine.memory.planning import Planning
from engine.parallel.orders import Show
from engine.parallel.team import Team
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint
from engine.system.host_copy import Copied, HostCopy, bytes_to_copy
from engine.system.placement import Placement
from engine.training.optimizer import Ema, build_optimizer, parameter_groups
from engine.weights.base_model import BaseModel
from presets.job.expert_schedule import Expert
from presets.job.schema import Job, TrainingPanel
from presets.planner.sizes import state_bytes
from presets.runs.history import Setting

MOST_KEPT = 6  # tensors that an optimizer keeps for one: adamw8bit, two moments with their scales and tables


@dataclass
class Learner:
    """The learning side of one trained expert: its fp32 LoRA tensors by name, optimizer and running average."""

    parameters: lora.LoraParameters
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    copy: HostCopy = field(default_factory=lambda: HostCopy(pinned=False))  # of what it had learnt

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """The LoRA tensors without their gradients; they follow the training."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def copied(self) -> Copied:
        """All that it has learnt, copied into the host's memory, for `put_back`, here or of the same learner in another
        process; the next copy takes its place. Raises HostMemoryRefused."""
        learnt = {
            "values": self.values,
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema.average if self.ema else None,
        }
        return self.copy.take(learnt)

    def put_back(self, copied: Copied) -> None:
        # an optimizer on the CPU keeps the very tensors that it loads
        self.load(**replace(copied, flat=copied.flat if self.copy.pinned else copied.flat.clone()).state())

    def load(
        self, values: dict[str, torch.Tensor], optimizer: dict[str, Any], average: dict[str, torch.Tensor] | None
    ) -> None:
        """Go on from a saved state. Without an average, where one is kept, it begins with the values."""
        lora.load_tensors(self.parameters, values)
        self.optimizer.load_state_dict(optimizer)
        if self.ema:
            self.ema.load(values if average is None else average)


def learners_of(job: Job, experts: Experts, placement: Placement) -> dict[Expert, Learner]:
    """The learning side of each expert that trains."""
    training, out = job.training, dict[Expert, Learner]()
    for expert, parameters in experts.parameters.items():
        optimizer = build_optimizer(training, parameter_groups(parameters, experts.layers[expert]))
        ema = Ema(training.ema_decay, parameters) if training.ema else None
        copy = HostCopy(pinned=placement.pinned, least=most_copied(training, parameters))
        out[expert] = Learner(parameters, optimizer, ema, copy)
    return out


def most_copied(training: TrainingPanel, parameters: lora.LoraParameters) -> int:
    """Bytes of a copy of all that an expert has learnt, at most: before its first step the optimizer keeps nothing."""
    of_each = 2 if training.ema else 1
    kept = [
        4 * of_each * p.numel() + state_bytes(training.optimizer, *p.shape, zero=False) for p in parameters.values()
    ]
    return bytes_to_copy(len(kept) * (of_each + MOST_KEPT), sum(kept))


@dataclass(frozen=True)
class Origin:
    """What a run began with beside the base model, by expert: file, sha256 and more, as the metadata of its LoRA files
    and its checkpoints have it; plain JSON."""

    starts: dict[Expert, dict[str, Any]] = field(default_factory=dict)  # the LoRA that its LoRA started from
    merges: dict[Expert, list[dict[str, Any]]] = field(default_factory=dict)  # merged into the base, in order

    def metadata(self, expert: Expert) -> dict[str, str]:
        """For the LoRA file of an expert."""
        said = {"wanlora.start": self.starts.get(expert), "wanlora.merges": self.merges.get(expert)}
        return {key: json.dumps(value) for key, value in said.items() if value}


@dataclass
class Run:
    """A run ready for its next step."""

    job: Job  # as it is now: commands change it
    begin: ResumePoint
    base_dir: Path  # relative paths of the job start here
    folder: Path
    log: EventLog
    control: Control
    placement: Placement
    base: BaseModel
    encoder: Encoder
    texts: TextBook
    latents: LatentCache | None  # of images, when a dataset wants it
    trained_on: TrainedOn  # what LoRA files say of the clips
    data: dict[str, Any]  # fingerprint of the clips and captions, as they were when the attempt began
    loader: Loader
    speeds: dict[int, float]  # of the clips as they are sampled, by number of frames (presets.facts.facts.clip_speeds)
    experts: Experts
    planning: Planning
    learners: dict[Expert, Learner]  # of the trained experts
    accelerators: dict[Expert, Accelerator]  # of previews alone
    origin: Origin
    held_out: list[Item] = field(default_factory=list)  # measured, never trained
    ahead: list[Setting] = field(default_factory=list)  # set in an earlier attempt at steps that are to come again
    team: Team | None = None  # the processes that train it together; None: it is this one alone
    split: TokenSplit | None = None  # those that share its clips; None: each rank has clips of its own
    encodes: SharedEncodes | None = None  # of the clips that they share
    apart: bool = False  # the other expert has learnt since, elsewhere
    settled: int = 0  # planning.downs when all ranks last had one plan
    gradient_check: GradientCheck = field(default_factory=GradientCheck)

    def text(self, texts: list[str]) -> torch.Tensor:
        """Their embeddings (B, S, D), on the device."""
        return self.placement.send(self.texts.batch(texts))

    def bring_together(self) -> None:
        """Where the experts train apart: have here what the other one has learnt. To be called before what is learnt is
        saved, measured or shown."""
        team = self.team
        if team is None or not self.apart:
            return
        other = next(part for part in team.parts if part.expert != team.part.expert)
        assert other.expert is not None
        with team.at_work(Show()):
            learner = self.learners[other.expert]
            learner.put_back(team.receive(other.ranks[0], learner.copy.room))
        self.apart = False


@contextmanager
def averaged_weights(run: Run, wanted: bool) -> Iterator[None]:
    """Inside, the LoRAs are their running averages, where these are `wanted` and kept; after, the trained ones,
    untouched."""
    averaged = [(learner, learner.ema) for learner in run.learners.values() if learner.ema and wanted]
    trained = [{name: value.clone() for name, value in learner.values.items()} for learner, _ in averaged]
    for learner, ema in averaged:
        lora.load_tensors(learner.parameters, ema.average)
    try:
        yield
    finally:
        for (learner, _), values in zip(averaged, trained, strict=True):
            lora.load_tensors(learner.parameters, values)
