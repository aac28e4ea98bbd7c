"""Turns of the experts, against the words of the formula written out anew, and the values each expert has."""

from collections import Counter
from fractions import Fraction

import pytest

from presets.job.expert_schedule import alpha_of, expert_at, high_part, lr_of, rank_of, steps_of, trained_experts
from tests.helpers.facts import job


def staged(high: float = 1.0, low: float = 1.0, **multistage):
    return job(
        training={"steps": 240},
        multistage={"switch_every": 1, "high": {"share": high}, "low": {"share": low}, **multistage},
    )


def turns(made, count: int = 12) -> str:
    every = made.multistage.switch_every
    return "".join(expert_at(made, n * every)[0] for n in range(count))


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        (1, 1, "hlhlhlhlhlhl"),
        (2, 1, "hhlhhlhhlhhl"),
        (1, 2, "hllhllhllhll"),
        (3, 1, "hhhlhhhlhhhl"),
        (3, 2, "hhlhlhhlhlhh"),
        (0.5, 0.5, "hlhlhlhlhlhl"),
        (1, 0.25, "hhhhlhhhhlhh"),
    ],
)
def test_turns_are_spread_evenly(high, low, expected):
    assert turns(staged(high, low)) == expected


@pytest.mark.parametrize(("high", "low"), [(0.1, 0.3), (0.1, 0.2), (1, 1), (7, 3), (1e-3, 1.0), (1000, 0.7)])
def test_the_first_turns_hold_exactly_the_share_of_the_numbers_as_written(high, low):
    """Of the first N turns ceil(N p) are high noise's, with p from the decimal numbers: 0.1 of 0.4 is 1/4, though no
    float is 0.1."""
    made = staged(high, low)
    part = Fraction(str(high)) / (Fraction(str(high)) + Fraction(str(low)))
    assert high_part(made) == part
    seen = 0
    for n in range(200):
        seen += expert_at(made, n) == "high_noise"
        assert seen == -((-(n + 1) * part.numerator) // part.denominator), n


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize(("high", "low"), [(1, 1), (2, 1), (1, 3), (0.3, 0.5)])
def test_steps_are_counted_as_they_come(high, low, every):
    made = staged(high, low, switch_every=every)
    for steps in (1, every, 2 * every + 1, 100, 240):
        counted = Counter(expert_at(made, s) for s in range(steps))
        assert steps_of(made, steps) == {"high_noise": counted["high_noise"], "low_noise": counted["low_noise"]}
    assert sum(steps_of(made).values()) == 240


@pytest.mark.parametrize(("off", "on"), [("high_noise", "low_noise"), ("low_noise", "high_noise")])
def test_one_expert_alone_has_every_step_whatever_the_shares(off, on):
    made = staged(5, 0.01, **{off: False})
    assert trained_experts(made) == [on] and steps_of(made) == {on: 240}
    assert {expert_at(made, s) for s in range(50)} == {on}


def test_values_of_one_expert_stand_in_for_the_common_ones():
    made = job(training={"lr": 1e-4}, target={"rank": 16}, multistage={"high": {"lr": 5e-5, "rank": 32}})
    assert [(lr_of(made, e), rank_of(made, e), alpha_of(made, e)) for e in ("high_noise", "low_noise")] == [
        (5e-5, 32, 32.0),
        (1e-4, 16, 16.0),
    ]
    made.target.alpha = 8.0
    assert [alpha_of(made, e) for e in ("high_noise", "low_noise")] == [8.0, 8.0], "alpha holds for both"
