"""Ranks that share clips encode each of them once, and have the bits and the layout that one process has."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.data.dataset import Item
from engine.data.loader import Batch
from engine.data.sampler import BatchSampler
from engine.encode.latents import with_mask
from engine.encode.shared_encodes import Encoded, HandingFailed, NotReady, SharedEncodes
from engine.parallel.parts import encoded_at_once, parts_of
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel
from presets.job.toml_file import with_value
from tests.helpers.waiting import PATIENCE

STEPS = 7
CPU = torch.device("cpu")


SMALL, LARGE = Bucket(5, 64, 48), Bucket(9, 96, 128)
JOB: Job = with_value(
    with_value(
        Job(job=JobPanel(name="t"), model=ModelPanel(path="base"), datasets=[DatasetPanel(path="clips")]),
        "multistage.low_noise",
        False,
    ),
    "training.steps",
    STEPS,
)


def item(name: str, bucket: Bucket) -> Item:
    return Item(
        id=name,
        repeat=0,
        dataset=0,
        path=f"/data/{name}",
        kind="video",
        bucket=bucket,
        sampling="uniform",
        caption=f"caption of {name}",
        caption_dropout=0.0,
        weight=1.0,
        regularization=False,
        flip_x=False,
        flip_y=False,
    )


class Alone:
    """Micro-batches of several shapes as one process would have them, each with or without masks, in a layout that
    convolutions take on a card."""

    def __init__(self) -> None:
        items = [*(item(f"s{i}", SMALL) for i in range(3)), *(item(f"l{i}", LARGE) for i in range(3))]
        self.sampler = BatchSampler(items, 2, 0)
        self.batches = [self._made(index) for index in range(STEPS + 1)]

    def _made(self, index: int) -> Encoded:
        draws, generator = self.sampler.batch(index), torch.Generator().manual_seed(index)
        size = len(draws), 16, *draws[0].item.bucket.latent
        x0 = torch.randn(size, generator=generator).contiguous(memory_format=torch.channels_last_3d)
        masks = np.full((size[0], *size[2:]), index, np.float32) if index % 2 else None
        return Encoded(Batch(draws, np.zeros(1, np.uint8), masks), x0, with_mask(x0))


@pytest.fixture(scope="module")
def alone() -> Alone:
    made = Alone()
    assert len({tuple(batch.x0_BCFhw.shape) for batch in made.batches}) == 4
    return made


class Group:
    """The ranks of a clip, each in a thread of its own; `encoded` are the numbers that each has encoded."""

    def __init__(self, alone: Alone, ranks: int) -> None:
        self.alone, self.ranks = alone, ranks
        self.job: Job = with_value(JOB, "job.gpus_per_clip", ranks)
        self.part = parts_of(self.job, ranks)[0]
        self.encoded: list[list[int]] = [[] for _ in range(ranks)]
        self._slots: list[Any] = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=PATIENCE)
        self.encodes = [
            SharedEncodes(alone.sampler, CPU, place, exchange=self._exchange(place), hand=self._hand(place))
            for place in range(ranks)
        ]

    def _exchange(self, place: int) -> Callable[[Any], list[Any]]:
        def exchange(mine: Any) -> list[Any]:
            self._slots[place] = mine
            self._barrier.wait()
            out = list(self._slots)
            self._barrier.wait()
            return out

        return exchange

    def _hand(self, place: int) -> Callable[[torch.Tensor, int], None]:
        exchange = self._exchange(place)

        def hand(tensor: torch.Tensor, source: int) -> None:
            assert tensor.is_contiguous()  # as NCCL wants it
            tensor.copy_(exchange(tensor.clone())[source])

        return hand

    def take(
        self, index: int, *, how: object = "", fails: Callable[[int, int], None] = lambda place, index: None
    ) -> list[Encoded | Exception]:
        """What each rank is given; `fails` may raise in the encode of a rank."""
        found: list[Any] = [None] * self.ranks

        def work(place: int) -> None:
            def encode(index: int) -> Encoded:
                self.encoded[place].append(index)
                fails(place, index)
                return self.alone.batches[index]

            try:
                found[place] = self.encodes[place].take(encoded_at_once(self.job, self.part, index), how, encode)
            except Exception as e:
                found[place] = e

        threads = [threading.Thread(target=work, args=(place,)) for place in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def require_same(found: list[Encoded | Exception], wanted: Encoded) -> None:
    for one in found:
        assert isinstance(one, Encoded), one
        assert one.batch.ids == wanted.batch.ids and one.batch.captions == wanted.batch.captions
        assert np.array_equal(one.batch.masks, wanted.batch.masks)  # None too
        for mine, theirs in ((one.x0_BCFhw, wanted.x0_BCFhw), (one.conditioning_BCFhw, wanted.conditioning_BCFhw)):
            assert torch.equal(mine, theirs) and mine.stride() == theirs.stride() and mine.dtype == theirs.dtype


@pytest.mark.parametrize(("ranks", "first"), [(2, 0), (2, 3), (4, 1)])
def test_each_clip_is_encoded_once_and_all_have_the_bits_of_one(alone: Alone, ranks: int, first: int):
    """From any step on, and not beyond the last one."""
    group = Group(alone, ranks)
    for index in range(first, STEPS):
        require_same(group.take(index), alone.batches[index])
    assert group.encoded == [list(range(first + place, STEPS, ranks)) for place in range(ranks)]


def test_a_step_that_is_taken_again_and_another_plan_have_clips_encoded_anew(alone: Alone):
    group = Group(alone, 2)
    for index, how in ((0, "a"), (1, "a"), (0, "a"), (1, "b"), (2, "b"), (3, "a")):
        require_same(group.take(index, how=how), alone.batches[index])
    assert group.encoded == [[0, 0, 1, 3], [1, 1, 2, 4]]


def test_a_clip_that_is_gone_is_met_when_its_turn_comes(alone: Alone):
    def gone(place: int, index: int) -> None:
        if index == 1:
            raise UserError("it is gone", where="clips/1.mp4", fix="Put it back")

    group = Group(alone, 2)
    require_same(group.take(0, fails=gone), alone.batches[0])
    mine, theirs = group.take(1, fails=gone)
    assert isinstance(mine, UserError) and isinstance(theirs, NotReady)
    require_same(group.take(1), alone.batches[1])  # it is back
    require_same(group.take(2), alone.batches[2])


@pytest.mark.parametrize("fails", [0, 1])
def test_memory_that_runs_out_or_a_bug_in_any_encode_is_all_ranks(alone: Alone, fails: int):
    def full(place: int, index: int) -> None:
        if place == fails:
            raise RuntimeError("CUDA error: out of memory")

    group = Group(alone, 2)
    found = group.take(0, fails=full)
    assert isinstance(found[fails], torch.OutOfMemoryError) and isinstance(found[1 - fails], NotReady)
    require_same(group.take(0), alone.batches[0])


def test_what_fails_while_others_wait_is_told_apart(alone: Alone):
    group = Group(alone, 2)
    for encodes in group.encodes:
        encodes._hand = lambda tensor, place: (_ for _ in ()).throw(RuntimeError("NCCL error"))
    assert all(isinstance(one, HandingFailed) for one in group.take(0))
