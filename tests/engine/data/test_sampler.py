"""The order of batches: complete, mixed, reproducible from an index alone."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import comb
from pathlib import Path

import pytest

from engine.data.dataset import Item, build_dataset
from engine.data.sampler import BatchSampler, SampleDraw, turn_of
from presets.clips.geometry import Bucket
from presets.job.expert_schedule import expert_at
from presets.job.schema import DatasetPanel, ExpertPanel, Job, JobPanel, MultistagePanel, TrainingPanel
from presets.planner.workload import workload_of
from tests.helpers.facts import clip, facts, image, job

SMALL, LARGE = Bucket(9, 64, 64), Bucket(9, 96, 128)


def item(name: str, bucket: Bucket = SMALL, **changes) -> Item:
    values = {
        "id": name,
        "repeat": 0,
        "dataset": 0,
        "path": f"/data/{name}",
        "kind": "video",
        "bucket": bucket,
        "sampling": "realtime",
        "caption": f"caption of {name}",
        "caption_dropout": 0.0,
        "weight": 1.0,
        "regularization": False,
        "flip_x": False,
        "flip_y": False,
    }
    return Item(**(values | changes))


def mixed() -> list[Item]:
    return [
        *(item(f"s{i}") for i in range(7)),
        *(item(f"l{i}", LARGE) for i in range(5)),
        *(item("twice", repeat=r) for r in range(2)),
    ]


def epoch(order: BatchSampler, number: int) -> list[list]:
    first = number * order.batches_per_epoch
    return [order.batch(i) for i in range(first, first + order.batches_per_epoch)]


def test_every_epoch_visits_every_item_once() -> None:
    order = BatchSampler(mixed(), 2, 42)
    for number in range(5):
        visits = Counter(draw.key for batch in epoch(order, number) for draw in batch)
        assert visits == Counter((number, i.id, i.repeat) for i in mixed())


def test_batches_keep_to_a_bucket_and_stay_short_at_its_end() -> None:
    order = BatchSampler(mixed(), 4, 42)
    assert order.batches_per_epoch == 3 + 2  # 9 small and 5 large
    for number in range(3):
        batches = epoch(order, number)
        assert all(len({draw.item.bucket for draw in batch}) == 1 for batch in batches)
        assert sorted(len(batch) for batch in batches) == [1, 1, 4, 4, 4]


def test_batches_keep_to_one_lora_weight() -> None:
    order = BatchSampler([*(item(f"a{i}") for i in range(6)), *(item(f"b{i}", weight=0.5) for i in range(6))], 4, 1)
    assert all(len({draw.item.weight for draw in batch}) == 1 for batch in epoch(order, 0))


def test_buckets_are_mixed_and_epochs_differ() -> None:
    order = BatchSampler([*(item(f"s{i}") for i in range(40)), *(item(f"l{i}", LARGE) for i in range(40))], 1, 7)
    buckets = [batch[0].item.bucket for batch in epoch(order, 0)]
    changes = sum(a != b for a, b in pairwise(buckets))
    assert changes > 20, "one bucket after the other would be 1 change"
    ids = [[batch[0].item.id for batch in epoch(order, n)] for n in (0, 1)]
    assert ids[0] != ids[1]


def test_an_index_is_all_that_a_resumed_run_needs() -> None:
    items = [item(f"s{i}", caption_dropout=0.5, flip_x=True, flip_y=True) for i in range(11)]
    walked = BatchSampler(items, 2, 3)
    draws = [walked.batch(i) for i in range(40)]
    for index in (39, 0, 17):
        assert BatchSampler(items, 2, 3).batch(index) == draws[index]
    assert [BatchSampler(items, 2, 4).batch(i) for i in range(6)] != draws[:6]


def test_a_small_bucket_comes_anywhere_in_an_epoch() -> None:
    order = BatchSampler([*(item(f"s{i}") for i in range(30)), *(item(f"l{i}", LARGE) for i in range(3))], 4, 7)
    places = [
        i / (order.batches_per_epoch - 1)
        for n in range(300)
        for i, batch in enumerate(epoch(order, n))
        if batch[0].item.bucket == LARGE
    ]
    assert len(places) == 300, "one short batch of 3 in each epoch"
    for part in range(4):  # evenly over the quarters: binomial, 300 and 1/4
        inside(sum(min(int(4 * at), 3) == part for at in places), 300, 0.25)


def inside(hits: int, n: int, p: float) -> None:
    """Assert that `hits` of `n` is what probability `p` gives: exact binomial tails, each above one in 100,000."""

    def tail(counts: range) -> float:
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    assert tail(range(hits + 1)) > 1e-5, f"{hits} of {n} are too few for {p}"
    assert tail(range(hits, n + 1)) > 1e-5, f"{hits} of {n} are too many for {p}"


def test_choices_are_drawn_apart_from_each_other_and_at_their_rate() -> None:
    order = BatchSampler([item(f"s{i}", caption_dropout=0.05, flip_x=True, flip_y=True) for i in range(50)], 1, 5)
    draws = [order.batch(i)[0] for i in range(1000)]
    n = len(draws)
    inside(sum(not d.caption for d in draws), n, 0.05)
    inside(sum(d.flip_x for d in draws), n, 0.5)
    inside(sum(d.flip_y for d in draws), n, 0.5)
    inside(sum(d.flip_x == d.flip_y for d in draws), n, 0.5)
    inside(sum(d.flip_x for d in draws if not d.caption), sum(not d.caption for d in draws), 0.5)
    inside(sum(d.start < 0.25 for d in draws), n, 0.25)
    inside(sum(not a.caption and not b.caption for a, b in pairwise(draws)), n - 1, 0.05**2)
    assert len({d.start for d in draws}) == n
    assert all(d.caption == d.item.caption for d in draws if d.caption)
    for name in {d.item.id for d in draws}:  # every clip, not some clips always
        mine = [d for d in draws if d.item.id == name]
        inside(sum(not d.caption for d in mine), len(mine), 0.05)


def test_each_repeat_of_a_clip_has_choices_of_its_own() -> None:
    """Dropout, flips and windows of the two visits that a clip has in an epoch agree as often as chance would have
    it."""
    order = BatchSampler(
        [item(f"s{i}", repeat=r, caption_dropout=0.5, flip_x=True, flip_y=True) for i in range(50) for r in (0, 1)],
        1,
        5,
    )
    by_visit = {d.key: d for i in range(1000) for d in order.batch(i)}
    pairs = [(d, by_visit[epoch, name, 1]) for (epoch, name, repeat), d in by_visit.items() if repeat == 0]
    assert len(pairs) == 500
    for choice in ("caption", "flip_x", "flip_y"):
        inside(sum(getattr(a, choice) == getattr(b, choice) for a, b in pairs), 500, 0.5)
    assert all(a.start != b.start for a, b in pairs)


def test_the_bounds_of_these_tests_can_be_broken() -> None:
    for hits in (20, 90):
        with pytest.raises(AssertionError, match=f"{hits} of 1000 are too"):
            inside(hits, 1000, 0.05)


def test_nothing_is_dropped_or_flipped_unasked() -> None:
    order = BatchSampler([item(f"s{i}") for i in range(50)], 1, 5)
    draws = [order.batch(i)[0] for i in range(200)]
    assert not any(not d.caption or d.flip_x or d.flip_y for d in draws)
    order = BatchSampler([item(f"s{i}", caption_dropout=1.0) for i in range(50)], 1, 5)
    assert all(order.batch(i)[0].caption == "" for i in range(100))


def test_a_draw_says_what_to_decode() -> None:
    draw = BatchSampler([item("s", kind="video", flip_x=True)], 1, 5).batch(3)[0]
    request = draw.request
    assert (request.path, request.bucket, request.sampling, request.start, request.flip_x) == (
        "/data/s",
        SMALL,
        "realtime",
        draw.start,
        draw.flip_x,
    )


def run_of(accumulation: int = 1, **multistage) -> Job:
    return Job(
        job=JobPanel(name="x"),
        datasets=[DatasetPanel(path="d")],
        multistage=MultistagePanel(**multistage),
        training=TrainingPanel(gradient_accumulation=accumulation),
    )


TURNS = {
    "every step": {"switch_every": 1},
    "every other step, accumulated": {"switch_every": 2, "accumulation": 3},
    "an even number of batches": {"switch_every": 1, "accumulation": 2},
    "rarely": {"switch_every": 10},
    "two turns of three": {"switch_every": 3, "high": ExpertPanel(share=2.0)},
    "one turn of eight": {"switch_every": 1, "low": ExpertPanel(share=7.0)},
    "one expert": {"low_noise": False},
}


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize(
    ("main", "regularization", "batch_size"), [(6, 6, 1), (9, 3, 1), (3, 9, 2), (10, 7, 3), (11, 1, 1)]
)
def test_both_experts_see_regularization_at_its_share(
    turns: dict, main: int, regularization: int, batch_size: int
) -> None:
    """The parity trap: regularization on every other step while the experts alternate gives one expert all of it."""
    job = run_of(**turns)
    items = [
        *(item(f"m{i}") for i in range(main)),
        *(item(f"r{i}", regularization=True) for i in range(regularization)),
    ]
    order = BatchSampler(items, batch_size, 3, turn_of(job))
    share = order.regularization_per_epoch / order.batches_per_epoch
    assert order.regularization_per_epoch == -(-regularization // batch_size)
    had: dict[str, list[bool]] = defaultdict(list)
    for index in range(12 * order.batches_per_epoch):
        [kind] = {draw.item.regularization for draw in order.batch(index)}
        had[expert_at(job, index // job.training.gradient_accumulation)].append(kind)
    assert len(had) == (1 if "low_noise" in turns else 2)
    for kinds in had.values():
        assert all(abs(sum(kinds[:n]) - n * share) < 1 for n in range(len(kinds) + 1)), (
            "less than one batch off, at any time"
        )


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
def test_with_regularization_too_every_epoch_visits_every_item_once(turns: dict) -> None:
    items = [*mixed(), *(item(f"r{i}", regularization=True, repeat=i % 2) for i in range(9))]
    order = BatchSampler(items, 2, 42, turn_of(run_of(**turns)))
    for number in range(6):
        visits = Counter(draw.key for batch in epoch(order, number) for draw in batch)
        assert visits == Counter((number, i.id, i.repeat) for i in items)
    far = BatchSampler(items, 2, 42, turn_of(run_of(**turns)))
    assert far.batch(57) == order.batch(57), "an index is all that is needed"


def test_accumulation_hands_the_step_the_clips_of_the_larger_batch() -> None:
    items = [item(f"s{i}", caption_dropout=0.5, flip_x=True, regularization=False) for i in range(12)]
    large, small = BatchSampler(items, 4, 9), BatchSampler(items, 1, 9)
    for step in range(9):
        alone: list[SampleDraw] = [small.batch(4 * step + i)[0] for i in range(4)]
        assert large.batch(step) == alone, "the same visits, with the same choices, in the same order"


def test_the_planner_reckons_with_the_batches_that_are_drawn() -> None:
    """Their shapes and how often each comes, over datasets that differ in all that parts batches."""
    panels = [
        {"path": "a", "resolutions": [256, 512], "repeats": 3},
        {"path": "b", "weight": 0.5, "num_frames": 9},
        {"path": "c", "regularization": True, "repeats": 2},
    ]
    made = job(training={"batch_size": 4}, datasets=panels)
    sizes = [(512, 512), (832, 480), (320, 240)]
    known = facts(
        *([clip(f"{d}{i}.mp4", width=w, height=h) for i, (w, h) in enumerate(sizes)] for d in range(2)),
        [image(f"{i}.png", width=640, height=640) for i in range(5)],
    )
    order = BatchSampler(build_dataset(made, Path("/"), known.datasets), 4, 0)
    drawn = Counter((batch[0].item.bucket, len(batch)) for batch in epoch(order, 0))
    assert {(load.bucket, load.batch): load.share for load in workload_of(made, known).loads} == {
        shape: pytest.approx(count / drawn.total()) for shape, count in drawn.items()
    }


def test_the_last_frame_is_given_as_often_as_asked_and_by_the_visit_alone() -> None:
    items = [item(f"c{i}", last_frame=0.25) for i in range(40)] + [item("never")]
    order, other = BatchSampler(items, 1, 42), BatchSampler(items[::-1], 4, 42)

    def given(order: BatchSampler) -> dict[tuple, bool]:
        return {d.key: d.last_frame for number in range(20) for batch in epoch(order, number) for d in batch}

    chosen = given(order)
    assert chosen == given(other)
    assert not any(on for (_, name, _), on in chosen.items() if name == "never")
    assert abs(sum(chosen.values()) - 200) < 4 * (800 * 0.25 * 0.75) ** 0.5
    assert any(chosen[0, f"c{i}", 0] != chosen[1, f"c{i}", 0] for i in range(40))
    mirrored = BatchSampler([item(f"c{i}", last_frame=0.5, flip_x=True) for i in range(50)], 1, 42)
    inside(sum(d.last_frame == d.flip_x for d in (mirrored.batch(i)[0] for i in range(1000))), 1000, 0.5)
    others = {d.key: (d.caption, d.flip_x, d.start) for batch in epoch(order, 0) for d in batch}
    plain = BatchSampler([item(f"c{i}") for i in range(40)] + [item("never")], 1, 42)
    assert others == {d.key: (d.caption, d.flip_x, d.start) for batch in epoch(plain, 0) for d in batch}
