"""Which items each batch holds, and every random choice about them: pure functions of (seed, index). Imports no torch.

There is no state, so a resumed run needs no more than its index, and a seek is free.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache

from msgspec import Struct

from engine.data.dataset import Item
from engine.data.frames import DecodeRequest
from engine.system.keyed_random import keyed_rng
from presets.clips.batches import Group, batches_of
from presets.job.expert_schedule import expert_at, steps_of, trained_experts
from presets.job.schema import Job

# batch index -> (0 or 1: which expert has it, how many batches that expert had before)
Turn = Callable[[int], tuple[int, int]]


class SampleDraw(Struct, frozen=True):
    """One visit of an item, with its choices made."""

    item: Item
    epoch: int
    caption: str  # "" when it was dropped
    flip_x: bool
    flip_y: bool
    start: float  # 0..1: where a real-time window lies
    last_frame: bool = False  # whether the conditioning gives it

    @property
    def key(self) -> tuple[int, str, int]:
        """(epoch, item id, repeat): no two visits of a run share it, so it can key further draws."""
        return self.epoch, self.item.id, self.item.repeat

    @property
    def request(self) -> DecodeRequest:
        """What the data workers decode."""
        item = self.item
        return DecodeRequest(
            item.path, item.kind, item.bucket, item.sampling, self.start, self.flip_x, self.flip_y, item.hdr
        )


def turn_of(job: Job) -> Turn:
    """The turns of a job, by presets.job.expert_schedule."""

    def turn(index: int) -> tuple[int, int]:
        step, micro = divmod(index, job.training.gradient_accumulation)
        expert, experts = expert_at(job, step), trained_experts(job)
        return experts.index(expert), steps_of(job, step)[expert] * job.training.gradient_accumulation + micro

    return turn


class BatchSampler:
    """Batches without end, epoch after epoch. Each epoch visits every item exactly once, in its own shuffled order.

    A batch holds items of one bucket and one LoRA weight, all of them regularization or none; the last batch of such a
    group may be short. Batches of all groups are mixed. Where there is only one group, `batch_size` 4 and four batches
    of size 1 are the same clips, but at the edge of an epoch.

    Regularization batches, R of the N of an epoch, come evenly in each expert's own sequence of batches, however the
    experts take turns: among its first j batches there are floor(j R / N) for the first expert, ceil(j R / N) for the
    second. At the edge of an epoch, where both have had k N together, the two add up to k R exactly, so the epoch is
    whole.
    """

    def __init__(self, items: list[Item], batch_size: int, seed: int, turn: Turn = lambda index: (0, index)) -> None:
        assert items and batch_size >= 1
        self.items, self.batch_size, self.seed, self._turn = items, batch_size, seed, turn
        batches = batches_of(Counter(item.group for item in items), batch_size)
        self.batches_per_epoch = batches.total()
        self.regularization_per_epoch = sum(n for (group, _), n in batches.items() if group.regularization)
        self._epoch = lru_cache(maxsize=4)(self._plan)  # two kinds, and prefetching crosses into the next epoch

    def batch(self, index: int) -> list[SampleDraw]:
        """The visits of batch `index`, counted from 0 over all epochs."""
        assert index >= 0
        epoch, start = index // self.batches_per_epoch, index // self.batches_per_epoch * self.regularization_per_epoch
        regularization, before = self._kind(index)
        at = before - start if regularization else index % self.batches_per_epoch - (before - start)
        return [self.visit(self.items[i], epoch) for i in self._epoch(epoch, regularization)[at]]

    def _kind(self, index: int) -> tuple[bool, int]:
        """(whether batch `index` is regularization, how many such batches come before it)."""
        R, N = self.regularization_per_epoch, self.batches_per_epoch
        which, own = self._turn(index)
        first, second = (own, index - own) if which == 0 else (index - own, own)  # batches that each expert has had

        def had(first: int, second: int) -> int:
            return first * R // N - (-second * R // N)

        before = had(first, second)
        after = had(first + 1, second) if which == 0 else had(first, second + 1)
        return after > before, before

    def _plan(self, epoch: int, regularization: bool) -> list[list[int]]:
        """Batches of one kind in one epoch, as places in `items`. A batch comes where one of its items, chosen by lot,
        came in the shuffle."""
        rng = keyed_rng(self.seed, "order", epoch, "regularization" if regularization else "main")
        mine = [i for i, item in enumerate(self.items) if item.regularization == regularization]
        groups: dict[Group, list[tuple[int, int]]] = defaultdict(list)
        for turn, i in enumerate(rng.permutation(mine).tolist()):
            groups[self.items[i].group].append((turn, i))
        batches = [
            group[at : at + self.batch_size]
            for group in groups.values()
            for at in range(0, len(group), self.batch_size)
        ]
        batches.sort(key=lambda batch: batch[int(rng.integers(len(batch)))])
        return [[i for _, i in batch] for batch in batches]

    def visit(self, item: Item, epoch: int) -> SampleDraw:
        """What is drawn for an item in an epoch."""

        def chance(purpose: str) -> float:
            return float(keyed_rng(self.seed, purpose, epoch, item.id, item.repeat).random())

        return SampleDraw(
            item=item,
            epoch=epoch,
            caption="" if chance("caption-dropout") < item.caption_dropout else item.caption,
            flip_x=item.flip_x and chance("flip-x") < 0.5,
            flip_y=item.flip_y and chance("flip-y") < 0.5,
            start=chance("window-start") if item.window_start is None else item.window_start,
            last_frame=item.last_frame > 0 and chance("last-frame") < item.last_frame,
        )
