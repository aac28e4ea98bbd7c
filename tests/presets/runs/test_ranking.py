"""Which checkpoint is best: what pairing is worth, what is claimed and what is not."""

import math
import random
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presets.runs.ranking import (
    CRITICAL,
    Measure,
    critical,
    differences,
    no_better_since,
    paired,
    rank,
    standard_error,
)

LOSS = st.floats(0.01, 2.0)


def measure(step: int, *losses: float, of: str = "", low: list[float] | None = None) -> Measure:
    experts = {"high_noise": list(losses)} | ({"low_noise": low} if low else {})
    return Measure(step=step, losses=experts, of=of)


@st.composite
def runs(draw: st.DrawFn) -> list[Measure]:
    """Measurements of a few clips by both experts, from before the first step on."""
    clips = draw(st.integers(1, 6))
    rows = st.lists(LOSS, min_size=clips, max_size=clips)
    steps = sorted(draw(st.sets(st.integers(1, 50), min_size=1, max_size=6)))
    return [Measure(step=s, losses={"high_noise": draw(rows), "low_noise": draw(rows)}) for s in [0, *steps]]


def curve(*losses: float, spread: float = 0.001, clips: int = 6) -> list[Measure]:
    """One measurement every 100 steps; clips differ among each other far more than between steps."""
    rng = random.Random(1)
    levels = [0.2 + 0.3 * i for i in range(clips)]
    return [measure(100 * i, *(at + loss + rng.gauss(0, spread) for at in levels)) for i, loss in enumerate(losses)]


def test_a_later_one_that_overfits_is_told_from_the_best_although_clips_differ_much_more():
    measured = curve(0.10, 0.05, 0.03, 0.04, 0.05)
    found = rank(measured)
    assert found is not None
    assert found.best == 200 and found.overfits_after == 200
    assert found.text.startswith("best: step 200; later ones overfit (step 400: +0.02, ")
    assert found.ranked[0].verdict == "best" and {r.verdict for r in found.ranked[1:]} == {"worse"}
    alone = standard_error(measured[2].by_clip)
    apart = found.of(400).behind
    assert alone > 0.1 > 0.01 > apart.error and apart.errors > critical(6)  # unpaired, nothing could be said


def test_what_chance_explains_is_not_claimed():
    measured = curve(0.10, 0.05, 0.0300, 0.0301, spread=0.01)
    found = rank(measured)
    assert found is not None and found.overfits_after is None
    assert "not told apart" in found.reason and "overfit" not in found.reason


def test_one_clip_has_no_standard_error_so_nothing_is_called_overfitting():
    found = rank([measure(0, 0.5), measure(10, 0.3), measure(20, 0.4)])
    assert found is not None
    assert found.best == 10 and found.overfits_after is None and found.of(20).verdict == "alike"
    assert found.of(20).behind.error is None and "of one clip" in found.reason


def test_nothing_is_claimed_without_a_measured_checkpoint():
    assert rank([]) is None
    assert rank([measure(0, 0.5, 0.4)]) is None  # before the first step there is no checkpoint
    assert rank([measure(0, 0.5), measure(5, math.inf)]) is None
    assert rank(curve(0.1, 0.05), saved=[]) is None
    assert no_better_since([], 1) is None


def test_only_what_is_saved_can_be_best():
    found = rank(curve(0.10, 0.03, 0.05, 0.06), saved={200, 300})
    assert found is not None and [r.step for r in found.ranked] == [200, 300]


def test_a_run_that_is_worse_than_its_beginning_says_so():
    found = rank(curve(0.03, 0.05, 0.06))
    assert found is not None and found.best == 100 and "yet worse than before training" in found.reason


def test_other_clips_or_noise_are_never_paired():
    measured = [measure(0, 0.5, 0.6, of="a"), measure(10, 0.1, 0.1, of="a"), measure(20, 0.4, 0.5, 0.6, of="b")]
    found = rank(measured)
    assert found is not None and [r.step for r in found.ranked] == [20] and found.since_first is None


def test_previews_decide_among_those_that_the_loss_does_not_tell_apart_and_no_others():
    measured = curve(0.10, 0.05, 0.0300, 0.0302, 0.09, spread=0.005)
    assert rank(measured, previews={200: 0.1, 300: 0.9, 400: 5.0}).best == 300
    assert "by its previews" in rank(measured, previews={200: 0.1, 300: 0.9}).reason
    assert rank(measured, previews={400: 5.0}).best == rank(measured).best


def test_previews_that_are_compared_with_nothing_decide_nothing():
    """Those of the one with the least loss were not judged, so nobody knows that the others are better."""
    measured = curve(0.10, 0.05, 0.0300, 0.0302, 0.09, spread=0.005)
    assert rank(measured).best == 200 and rank(measured, previews={300: 0.1}).best == 200


def test_reasons_name_the_first_measurement_as_one_reads_them():
    def first(*losses: float) -> str:
        return rank([m for m in curve(0.0, *losses) if m.step]).reason

    assert "against step 100: -0.05" in first(0.1, 0.04)
    assert "not told apart from step 100 (" in first(0.1, 0.099)


def test_each_expert_has_its_own_best():
    measured = [
        measure(10, 0.3, 0.4, low=[0.2, 0.3]),
        measure(20, 0.2, 0.3, low=[0.25, 0.35]),
        measure(30, 0.25, 0.35, low=[0.22, 0.32]),
    ]
    assert rank(measured).by_expert == {"high_noise": 20, "low_noise": 10}


def test_patience_ends_only_after_so_many_measurements_without_a_gain_beyond_its_error():
    falling = curve(0.10, 0.08, 0.06, 0.05, 0.045)
    assert no_better_since(falling, 1) is None
    stuck = [*falling, *(measure(500 + 100 * i, *(v + 0.001 for v in falling[-1].by_clip)) for i in range(2))]
    assert no_better_since(stuck, 3) is None
    assert no_better_since(stuck, 2) == 400


def test_small_gains_add_up():
    measured = curve(*(0.10 - 0.0004 * i for i in range(12)), spread=0.002)
    steps = {no_better_since(measured[:n], 8) for n in range(1, 13)}
    assert steps == {None}


@given(runs())
def test_the_best_has_the_least_loss_and_every_one_is_ranked_once(measured: list[Measure]):
    found = rank(measured)
    assert found is not None
    assert found.ranked[0].loss == min(m.loss for m in measured if m.step)
    assert sorted(r.step for r in found.ranked) == [m.step for m in measured[1:]]
    assert [r.verdict for r in found.ranked].count("best") == 1 and found.ranked[0].verdict == "best"
    worse = [r.verdict == "worse" for r in found.ranked]
    assert worse == sorted(worse)


@given(runs(), st.randoms())
def test_the_order_of_clips_and_of_measurements_counts_for_nothing(measured: list[Measure], rng: random.Random):
    order = list(range(len(measured[0].by_clip)))
    rng.shuffle(order)
    other = [Measure(step=m.step, losses={e: [v[i] for i in order] for e, v in m.losses.items()}) for m in measured]
    rng.shuffle(other)
    mine, theirs = rank(measured), rank(other)
    assert mine is not None and theirs is not None
    assert math.isclose(mine.ranked[0].loss, theirs.ranked[0].loss, rel_tol=1e-12)
    assert {r.step for r in mine.ranked} == {r.step for r in theirs.ranked}


@given(runs())
def test_pairing_is_the_mean_of_the_differences_with_its_own_error(measured: list[Measure]):
    one, other = measured[0], measured[-1]
    found = paired(one, other)
    apart = [a - b for a, b in zip(one.by_clip, other.by_clip, strict=True)]
    assert math.isclose(found.mean, one.loss - other.loss, abs_tol=1e-12)
    if len(apart) > 1:
        assert math.isclose(found.error, stdev(apart) / math.sqrt(len(apart)), abs_tol=1e-9)
    back = paired(other, one)
    assert math.isclose(found.mean, -back.mean) and found.error == back.error


@given(st.lists(LOSS, min_size=2, max_size=8), st.lists(LOSS, min_size=8, max_size=8))
def test_what_a_clip_adds_to_every_measurement_falls_out(losses: list[float], levels: list[float]):
    before = differences(losses, [v / 2 for v in losses])
    moved = zip(losses, levels, strict=False)
    pairs = [(v + at, v / 2 + at) for v, at in moved]
    after = differences([a for a, _ in pairs], [b for _, b in pairs])
    assert math.isclose(before.mean, after.mean, abs_tol=1e-9)
    assert math.isclose(before.error, after.error, abs_tol=1e-9)


@given(runs())
def test_the_same_twice_is_never_called_worse_and_the_earlier_counts(measured: list[Measure]):
    again = Measure(step=measured[-1].step + 10, losses=measured[-1].losses)
    found = rank([*measured, again])
    assert found is not None and found.best != again.step
    if found.best == measured[-1].step:
        assert found.of(again.step).verdict == "alike"


@pytest.mark.parametrize("clips", range(2, 60))
def test_fewer_clips_have_to_show_more(clips: int):
    assert critical(clips) >= critical(clips + 1) > 1.96
    assert critical(1) == critical(2) == CRITICAL[0]
