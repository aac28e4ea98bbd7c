"""Axes: what lies where, round ticks, one notation."""

import math

import pytest

from wanlora_tui.plot.scale import Scale, labels, scale_of, ticks, whole_ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 5, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.043, 0.171, 3, ["0.05", "0.10", "0.15"]),
        (0.9, 130.0, 4, ["50", "100"]),
        (0, 2400, 6, ["0", "500", "1000", "1500", "2000"]),
        (0, 1_000_000, 5, ["0", "200k", "400k", "600k", "800k", "1000k"]),
        (0, 25_000_000, 5, ["0", "5M", "10M", "15M", "20M", "25M"]),
        (2e-5, 1e-4, 3, ["5e-5", "1e-4"]),
        (0.0, 1.1e20, 3, ["0", "5e19", "1e20"]),
    ],
)
def test_ticks_are_round_and_all_in_one_notation(low: float, high: float, most: int, expected: list[str]):
    found = ticks(Scale(low, high), most)
    assert labels(found) == expected
    assert all(low <= v * (1 + 1e-9) and v <= high * (1 + 1e-9) for v in found)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_scale_has_two_round_ticks_at_the_least(most: int, log: bool):
    assert labels(ticks(Scale(0.045, 0.16), 2)) == ["0.05", "0.10", "0.15"]
    for n in range(1, 200):
        scale = Scale(0.01 * n, 0.01 * n + 0.1 * 1.07**n, log)
        found = ticks(scale, most)
        assert len(set(labels(found))) == len(found) >= 2, (scale, found)
        assert all(scale.low * (1 - 1e-9) <= v <= scale.high * (1 + 1e-9) for v in found)
        assert all(float(f"{v:.2g}") == pytest.approx(v) for v in found), (scale, found)


@pytest.mark.parametrize("log", [False, True])
def test_two_small_ticks_never_read_the_same(log: bool):
    for power in range(3, 10):
        for wider in (1e-6, 1e-4, 1e-2, 1.0):
            low = 3.382 * 10.0**-power
            found = ticks(Scale(low, low * (1 + wider), log), 4)
            assert len(set(labels(found))) == len(found), (found, labels(found))
    assert labels([8.1e-3, 8.2e-3]) == ["8.1e-3", "8.2e-3"]  # no more digits than that takes


def test_a_log_scale_has_1_2_and_5_then_powers_of_ten():
    assert ticks(Scale(0.015, 0.6, True), 5) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5])
    assert ticks(Scale(1e-5, 1e3, True), 5) == pytest.approx([1e-5, 1e-3, 1e-1, 1e1, 1e3])
    assert len(ticks(Scale(0.11, 0.17, True), 4)) >= 2  # no such value lies within


def test_values_that_are_far_apart_are_told_apart():
    assert labels(ticks(Scale(1e-5, 1e3, True), 5)) == ["1e-5", "1e-3", "1e-1", "1e1", "1e3"]
    assert labels(ticks(Scale(0.015, 0.6, True), 5)) == ["0.02", "0.05", "0.10", "0.20", "0.50"]


def test_steps_are_whole_and_never_negative():
    for low, high in [(0, 0), (1, 1), (1, 3), (0, 7), (1, 2400), (999_990, 1_000_000)]:
        found = whole_ticks(low, high, 6)
        assert found and all(isinstance(v, int) and 0 <= v <= high for v in found), (low, high, found)


def test_the_trend_fills_the_scale_with_a_margin():
    scale = scale_of([0.05, 0.1, 0.09])
    assert 0.03 < scale.low < 0.05 and 0.1 < scale.high < 0.11
    assert scale.place(0.1, 40) < 6 and scale.place(0.05, 40) > 33
    log = scale_of([0.001, 0.1], log=True)
    assert log.place(0.01, 41) == 20


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.inf, -math.inf],
        [0.5],
        [0.5, 0.5],
        [0.0],
        [-1.0, 0.0],
        [1e-300],
        [5e-324, 1.7e308],
        [-1.7e308, 1.7e308],
    ],
)
def test_odd_values_have_a_scale_too(values: list[float], log: bool):
    scale = scale_of(values, log=log)
    assert scale.low < scale.high and math.isfinite(scale.low) and math.isfinite(scale.high)
    assert scale.low > 0 or not log
    assert ticks(scale, 3) and labels(ticks(scale, 3))
    for value in (0.0, 0.5, -3.0, 1e300):
        scale.place(value, 10)
    assert not any(0 <= y < 8 for y in scale.places([math.nan, math.inf, -math.inf], 8))


def test_equal_values_lie_in_the_middle():
    assert scale_of([0.25, 0.25]).place(0.25, 41) == 20
