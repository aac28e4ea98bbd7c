"""Which part of a run each of its processes has: a function of their number, the experts that train, and
training.gradient_accumulation. Imports no torch.

Where both experts train and the number is even, they train apart: the first half of the ranks takes high noise's steps,
the second half low noise's, at the same time. The ranks of one expert share each of its steps: micro-batch k of a step
is that of rank k mod N among them, so N has to divide the micro-batches of a step. Where `job.gpus_per_clip` says so,
as many ranks in a row take each micro-batch together, and count as one of the N.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from presets.errors import UserError
from presets.job.expert_schedule import Expert, expert_at, trained_experts
from presets.job.gpu_shares import apart, for_one_step, require_fits
from presets.job.schema import Job


@dataclass(frozen=True)
class Rank:
    """One process of a run, as torchrun's environment variables have it."""

    number: int  # from 0; the first writes the events and all files
    world: int  # how many there are
    local: int  # the number among those of this host
    here: int = 0  # how many of them this host has; 0 where nothing says so

    @property
    def on_host(self) -> int:
        """How many of them share this host, as far as is said."""
        return self.here or self.world

    @property
    def several_hosts(self) -> bool:
        return self.on_host < self.world

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """This process; the only one where nothing says that there are others, whatever else a scheduler has set.
        Raises UserError where something does, and does not say which one this is."""
        if (world := environ.get("WORLD_SIZE", "").strip()) in ("", "1"):
            return cls(0, 1, 0, 1)
        said = {
            "RANK": environ.get("RANK", "0"),
            "WORLD_SIZE": world,
            "LOCAL_RANK": environ.get("LOCAL_RANK", "0"),
            "LOCAL_WORLD_SIZE": environ.get("LOCAL_WORLD_SIZE", "0"),
        }
        whole = all(text.strip().isdecimal() for text in said.values())
        rank = cls(*map(int, said.values())) if whole else None
        if rank is None or max(rank.number, rank.local) >= rank.world:
            raise UserError(
                "the environment does not say which of the processes of a run this is:"
                f" {', '.join(f'{name}={text}' for name, text in said.items())}",
                where="WORLD_SIZE",
                fix="Unset WORLD_SIZE to train with this process alone, or start all of them with one torchrun command",
            )
        return rank


@dataclass(frozen=True)
class Part:
    """What one rank does."""

    expert: Expert | None  # the only one whose steps it takes; None: it has a part in every step
    place: int  # among the ranks that share each of its steps
    ranks: tuple[int, ...]  # these ranks, in order
    each: int = 1  # so many of them in a row take a micro-batch together

    @property
    def sharing(self) -> int:
        return len(self.ranks)

    @property
    def at_once(self) -> int:
        """How many micro-batches they take at a time."""
        return self.sharing // self.each

    @property
    def turn(self) -> int:
        """Which of these is this rank's."""
        return self.place // self.each

    @property
    def seat(self) -> int:
        """Its number among those that take it together."""
        return self.place % self.each

    @property
    def clip(self) -> tuple[int, ...]:
        """The ranks that take it together, in order."""
        return self.ranks[self.turn * self.each :][: self.each]


ALONE = Part(None, 0, (0,))


def parts_of(job: Job, world: int) -> list[Part]:
    """The part of each rank. Raises UserError with the numbers that would do."""
    size = for_one_step(job, world)
    require_fits(job, world)
    halves: Sequence[tuple[Expert | None, int]] = [(None, 0)]
    if apart(job, world):
        halves = [(expert, i * size) for i, expert in enumerate(trained_experts(job))]
    each = job.job.gpus_per_clip
    return [
        Part(expert, place, tuple(range(first, first + size)), each)
        for expert, first in halves
        for place in range(size)
    ]


def batch_after(job: Job, part: Part, index: int) -> int:
    """Which micro-batch, counted over all steps, is a part's next one after `index`."""
    accumulation = job.training.gradient_accumulation
    step, own = divmod(index, accumulation)
    if own + part.at_once < accumulation:
        return index + part.at_once
    step += 1
    while part.expert not in (None, expert_at(job, step)):
        step += 1
    return step * accumulation + part.turn


def encoded_at_once(job: Job, part: Part, index: int) -> list[int]:
    """Micro-batch `index` and those of this run behind it that the ranks of a clip encode with it, one each."""
    out, end = [index], job.training.steps * job.training.gradient_accumulation
    while len(out) < part.each and (after := batch_after(job, part, out[-1])) < end:
        out.append(after)
    return out


def read_after(job: Job, part: Part, index: int) -> int:
    """Which micro-batch's clips a rank reads after those of `index`."""
    for _ in range(part.each):
        index = batch_after(job, part, index)
    return index
