"""Encodes of clips that several ranks share: each rank encodes one of the next micro-batches, all at the same time, and
they hand each other what came of it. So each clip is encoded once, not by every rank that has a part of it.

What a micro-batch holds is a function of its number, so what comes next is known. What is handed on keeps its bits and
its layout in memory: sums over it are taken in the same order wherever it was encoded.

Who the ranks are is engine.parallel.team's, which micro-batches come next engine.parallel.parts's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.data.loader import Batch
from engine.data.masks import Grid
from engine.data.sampler import BatchSampler
from engine.system.device import memory_errors
from presets.base.model_facts import I2V_CHANNELS, LATENT_CHANNELS
from presets.errors import UserError

CHANNELS = LATENT_CHANNELS, I2V_CHANNELS - LATENT_CHANNELS
NO_FRAMES = np.empty(0, np.uint8)
Strides = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Encoded:
    """A micro-batch before its noise."""

    batch: Batch  # its frames are not looked at any more
    x0_BCFhw: torch.Tensor
    conditioning_BCFhw: torch.Tensor


@dataclass(frozen=True)
class _Said:
    """What a rank tells the others of its encode."""

    strides: Strides | None  # of latents and conditioning; None: there are none
    masks: Grid | None = None
    failed: bool = False  # none of them can go on


class NotReady(Exception):
    """Another rank of this clip has failed before it began."""


class HandingFailed(Exception):
    """This rank has failed while the others wait for it or hand something to it."""


class SharedEncodes:
    """One rank's view of those that share clips. All of them make each call at the same place of a step."""

    def __init__(
        self,
        sampler: BatchSampler,
        device: torch.device,
        place: int,
        *,
        exchange: Callable[[_Said], list[_Said]],
        hand: Callable[[torch.Tensor, int], None],
    ) -> None:
        """`place`: of this rank among them. `exchange` gives what each of them says, `hand` fills a tensor of all of
        them with that of the rank at a place."""
        self._sampler, self._device, self._place = sampler, device, place
        self._exchange, self._hand = exchange, hand
        self._how: Any = None
        self._there: dict[int, Encoded] = {}  # in the host's memory: the card's is planned without them

    def take(self, indices: Sequence[int], how: Any, encode: Callable[[int], Encoded]) -> Encoded:
        """Micro-batch `indices[0]`. Where it is not there yet, each rank encodes one of `indices`, at most as many as
        there are ranks, and what follows the first is kept until it is asked for, encoded in the same way: while `how`
        is equal. A UserError about one that follows is met when its turn comes. Raises NotReady and HandingFailed, and
        what `encode` raises."""
        if how != self._how:
            self._how, self._there = how, {}
        if indices[0] not in self._there:
            self._there = self._encoded(indices, encode)
        found = self._there.pop(indices[0])
        x0, conditioning = (t.to(self._device) for t in (found.x0_BCFhw, found.conditioning_BCFhw))
        return Encoded(found.batch, x0, conditioning)

    def _encoded(self, indices: Sequence[int], encode: Callable[[int], Encoded]) -> dict[int, Encoded]:
        mine = self._place if self._place < len(indices) else None
        rooms: list[list[torch.Tensor]] = []
        said, failure = _Said(None), None
        try:
            with memory_errors():
                rooms = [self._rooms(index) for index in indices]  # now, where all hear that there is no room
                if mine is not None:
                    made = encode(indices[mine])
                    dense = [made.x0_BCFhw.clone(), made.conditioning_BCFhw.clone()]
                    rooms[mine] = [t.as_strided((t.numel(),), (1,)) for t in dense]
                    said = _Said(tuple(t.stride() for t in dense), made.batch.masks)
        except Exception as e:
            if not mine or not isinstance(e, UserError):
                said, failure = _Said(None, failed=True), e
        everyone = self._exchange(said)
        if failure is not None:
            raise failure
        if any(one.failed for one in everyone):
            raise NotReady
        try:
            out = {}
            for place, index in enumerate(indices):
                if (strides := everyone[place].strides) is not None:
                    for room in rooms[place]:
                        self._hand(room, place)
                    out[index] = self._put(index, rooms[place], strides, everyone[place].masks, keep=place > 0)
            return out
        except Exception as e:
            raise HandingFailed(f"{type(e).__name__}: {e}") from e

    def _sizes(self, index: int) -> list[tuple[int, ...]]:
        draws = self._sampler.batch(index)
        return [(len(draws), channels, *draws[0].item.bucket.latent) for channels in CHANNELS]

    def _rooms(self, index: int) -> list[torch.Tensor]:
        return [torch.empty(math.prod(size), device=self._device) for size in self._sizes(index)]

    def _put(
        self, index: int, flat: list[torch.Tensor], strides: Strides, masks: Grid | None, *, keep: bool
    ) -> Encoded:
        x0, conditioning = (
            (t.cpu() if keep else t).as_strided(size, stride)
            for t, size, stride in zip(flat, self._sizes(index), strides, strict=True)
        )
        return Encoded(Batch(self._sampler.batch(index), NO_FRAMES, masks), x0, conditioning)
