"""A run between two optimizer steps: what the training loop, commands, saving and previews work on.

Made by engine.training.prepare; how its experts lie in memory is changed by engine.training.placement alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.adapters import lora
from engine.adapters.accelerator import Accelerator
from engine.data.loader import Loader
from engine.encode.latent_cache import LatentCache
from engine.encode.latents import Encoder
from engine.encode.text_embeddings import TextBook
from engine.executor.experts import Experts
from engine.memory.planning import Planning
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint
from engine.system.placement import Placement
from engine.training.optimizer import Ema
from engine.weights.base_model import BaseModel
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.runs.history import Setting


@dataclass
class Learner:
    """The learning side of one trained expert: its fp32 LoRA tensors by name, optimizer and running average."""

    parameters: lora.Parameters
    optimizer: torch.optim.Optimizer
    ema: Ema | None

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """The LoRA tensors without their gradients; they follow the training."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}


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
    data: dict[str, Any]  # fingerprint of the clips and captions, as they were when the attempt began
    loader: Loader
    speeds: dict[int, float]  # of the clips as they are sampled, by number of frames (presets.facts.facts.clip_speeds)
    experts: Experts
    planning: Planning
    learners: dict[Expert, Learner]  # of the trained experts
    accelerators: dict[Expert, Accelerator]  # of previews alone
    ahead: list[Setting] = field(default_factory=list)  # set in an earlier attempt at steps that are to come again

    def text(self, texts: list[str]) -> torch.Tensor:
        """Their embeddings (B, S, D), on the device."""
        return self.texts.batch(texts, device=self.placement.device)
