"""What the plot makes of the losses."""

import math

import pytest

from presets.runs.run_view import StepPoint
from wanlora_tui.widgets.loss_plot import loss_range, thin, trend


def points(*losses: float) -> list[StepPoint]:
    return [StepPoint(i + 1, loss) for i, loss in enumerate(losses)]


def test_the_trend_of_a_constant_is_that_constant():
    assert {p.loss for p in trend(points(*[0.25] * 500), 80)} == {0.25}


def test_the_trend_follows_a_straight_line_and_is_centred():
    found = trend(points(*[i / 1000 for i in range(1000)]), 50)
    assert all(p.loss == pytest.approx((p.step - 1) / 1000) for p in found[1:-1])
    assert len(found) <= 52 and found[0].step == 1 and found[-1].step == 1000


def test_thinning_keeps_the_newest_step():
    assert [p.step for p in thin(points(*range(10)), 4)] == [1, 4, 7, 10]
    assert len(thin(points(*range(5000)), 160)) <= 160


def test_one_spike_does_not_flatten_the_rest():
    low, high = loss_range({"high_noise": points(*[0.1 + 0.001 * (i % 50) for i in range(2000)], 500.0)})
    assert 0.09 < low < 0.1 and high < 0.2


def test_losses_that_are_no_numbers_do_not_count():
    assert loss_range({"high_noise": points(math.nan, math.inf)}) == (0.0, 1.0)
    low, high = loss_range({"low_noise": points(0.2)})
    assert low < 0.2 < high
