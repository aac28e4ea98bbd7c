"""What the first rank orders the others to do. All of them take each order, in the order in which they are given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presets.facts.facts import Facts
from presets.job.expert_schedule import Expert
from presets.job.schema import Job


@dataclass(frozen=True)
class Prepare:
    """Load what the first rank has loaded, as it has it."""

    begin: Any  # its engine.runfolder.resume.ResumePoint
    facts: Facts
    folder: Path
    running: Any  # its plan and kernels: engine.memory.planning.Running
    vram: int | None  # bytes of the card's memory that a rank may use


@dataclass(frozen=True)
class Steps:
    """Take the optimizer steps from `first` (from 0) up to and without `end`, those that are one's own."""

    first: int
    end: int
    job: Job  # as it is by now
    settle: bool = False  # the first rank has another plan since: agree on one before


@dataclass(frozen=True)
class Show:
    """Those whose expert is not the first rank's: send it what it has learnt."""


@dataclass(frozen=True)
class Pass:
    """Those that share clips with the first rank: take part in a forward pass of a preview, of what it hands on."""

    step: int  # after which it is made
    expert: Expert
    given: tuple[tuple[tuple[int, ...], Any], ...]  # shape and torch's type of latents, timestep and text
    strength: float  # of the LoRA
    averaged: bool  # with the LoRA's running average
    accelerated: bool  # with the accelerators


@dataclass(frozen=True)
class Measure:
    """Measure one's part of the held-out loss."""

    step: int  # after which it is
    job: Job  # as it is by now


@dataclass(frozen=True)
class End:
    """The attempt is over."""

    code: int  # to exit with


Order = Prepare | Steps | Show | Pass | Measure | End
