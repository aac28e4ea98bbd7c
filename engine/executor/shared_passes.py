"""Forward passes of previews, by all ranks that share clips with the first one: as of a clip in training, each has some
of the tokens, and all have the whole answer.

The first rank alone denoises, decodes and writes. It orders each pass, and hands the others what goes into it, so that
all compute with the same bits. What else a preview is made of is engine.preview.sampling's.

B batch, C channels, F h w latent shape, S text tokens, D text width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from engine.adapters.accelerator import Accelerator
from engine.executor.experts import Experts
from engine.executor.token_split import TokenSplit
from engine.parallel.lost_clips import whole_or_lost
from engine.parallel.orders import Pass
from engine.parallel.team import Team
from engine.system import fault_injection
from presets.job.expert_schedule import Expert


@dataclass(frozen=True)
class SharedPasses:
    """The experts of the first rank, as all that share clips with it run them."""

    experts: Experts
    team: Team
    split: TokenSplit
    step: int  # after which they are
    averaged: bool  # with the LoRAs' running averages
    accelerated: bool

    def of(self, expert: Expert) -> "SharedExpert":
        return SharedExpert(self, expert)


@dataclass(frozen=True)
class SharedExpert:
    """One of them."""

    passes: SharedPasses
    expert: Expert

    def predict(
        self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, *, strength: float = 1.0
    ) -> torch.Tensor:
        """`BlockExecutor.predict`. An error ends all of them."""
        passes, executor = self.passes, self.passes.experts.executors[self.expert]
        given = [t.contiguous() for t in (x_BCFhw, timestep_B, text_BSD)]
        if x_BCFhw.shape[2:].numel() < passes.split.ranks * math.prod(executor.weights.outer.config.patch_size):
            return executor.predict(*given, strength=strength)  # fewer tokens than ranks
        shapes = tuple((tuple(t.shape), t.dtype) for t in given)
        order = Pass(passes.step, self.expert, shapes, strength, passes.averaged, passes.accelerated)
        with passes.team.at_work(order), whole_or_lost(passes.team, "preview"):
            for tensor in given:
                passes.team.hand(tensor, 0)
            return executor.predict(*given, strength=strength, split=passes.split)


def shares_passes(team: Team) -> bool:
    """Whether this rank has a part in the first one's passes. Experts that train apart are not both there."""
    return team.part.expert is None and team.part.each > 1 and 0 in team.part.clip


def take_part(
    experts: Experts, accelerators: Mapping[Expert, Accelerator], team: Team, split: TokenSplit, order: Pass
) -> None:
    """A pass of the first rank's, by one behind it. An error ends all of them."""
    team.signs.give("a preview")
    with whole_or_lost(team, "preview"), experts.accelerated(accelerators if order.accelerated else {}):
        fault_injection.at("preview.pass", order.step)
        given = [torch.empty(shape, dtype=dtype, device=experts.device) for shape, dtype in order.given]
        for tensor in given:
            team.hand(tensor, 0)
        experts.executors[order.expert].predict(*given, strength=order.strength, split=split)
