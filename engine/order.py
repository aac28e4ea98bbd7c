"""Which items each batch holds, and every random choice about them: pure functions of (seed, index). Imports no torch.

There is no state, so a resumed run needs no more than its index, and a seek is free.
"""

from collections import defaultdict
from functools import lru_cache

from msgspec import Struct

from engine.frames import Request
from engine.items import Item
from engine.keyed import keyed_rng


class Draw(Struct, frozen=True):
    """One visit of an item, with its choices made."""

    item: Item
    epoch: int
    caption: str  # "" when it was dropped
    dropped: bool
    flip_x: bool
    flip_y: bool
    start: float  # 0..1: where a real-time window lies

    @property
    def key(self) -> tuple[int, str, int]:
        """(epoch, item id, repeat): no two visits of a run share it, so it can key further draws."""
        return self.epoch, self.item.id, self.item.repeat

    @property
    def request(self) -> Request:
        """What the data workers decode."""
        item = self.item
        return Request(item.path, item.kind, item.bucket, item.sampling, self.start, self.flip_x, self.flip_y)


class Order:
    """Batches without end, epoch after epoch. Each epoch visits every item exactly once, in its own shuffled order.

    A batch holds items of one bucket and one LoRA weight; the last batch of such a group may be short. Batches of all
    groups are mixed.
    """

    def __init__(self, items: list[Item], batch_size: int, seed: int) -> None:
        assert items and batch_size >= 1
        self.items, self.batch_size, self.seed = items, batch_size, seed
        sizes: dict[object, int] = defaultdict(int)
        for item in items:
            sizes[_group(item)] += 1
        self.batches_per_epoch = sum(-(-size // batch_size) for size in sizes.values())
        self._epoch = lru_cache(maxsize=2)(self._plan)  # two: prefetching crosses into the next epoch

    def batch(self, index: int) -> list[Draw]:
        """The visits of batch `index`, counted from 0 over all epochs."""
        assert index >= 0
        epoch, place = divmod(index, self.batches_per_epoch)
        return [self._draw(self.items[i], epoch) for i in self._epoch(epoch)[place]]

    def _plan(self, epoch: int) -> list[list[int]]:
        """Batches of one epoch, as places in `items`."""
        rng = keyed_rng(self.seed, "order", epoch)
        groups: dict[object, list[int]] = defaultdict(list)
        for i in rng.permutation(len(self.items)).tolist():
            groups[_group(self.items[i])].append(i)
        batches = [group[at : at + self.batch_size] for group in groups.values() for at in range(0, len(group), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches)).tolist()]

    def _draw(self, item: Item, epoch: int) -> Draw:
        def chance(purpose: str) -> float:
            return float(keyed_rng(self.seed, purpose, epoch, item.id, item.repeat).random())

        dropped = chance("caption-dropout") < item.caption_dropout
        return Draw(
            item=item, epoch=epoch, caption="" if dropped else item.caption, dropped=dropped,
            flip_x=item.flip_x and chance("flip-x") < 0.5, flip_y=item.flip_y and chance("flip-y") < 0.5, start=chance("window-start"),
        )  # fmt: skip


def _group(item: Item) -> object:
    return item.bucket, item.weight
