"""The whole picture, and what it says of the step under the cursor."""

import itertools
import math
import random

import pytest
from rich.cells import cell_len

from presets.runs.run_view import StepPoint
from tests.helpers.recorded_run import expert_at, trend_at
from wanlora_tui.plot.curves import LINE, MOST_RUNS
from wanlora_tui.plot.figure import Figure, Options, draw
from wanlora_tui.plot.marks import Mark
from wanlora_tui.plot.reading import legend, read
from wanlora_tui.plot.series import PlottedRun, loss_series, lr_series
from wanlora_tui.plot.window import Window

SIZES = [(0, 0), (1, 1), (3, 2), (4, 1), (6, 3), (18, 5), (78, 11), (158, 40)]


def noisy(steps: int = 2400, seed: int = 0, **more: object) -> PlottedRun:
    points: dict[str, list[StepPoint]] = {"high_noise": [], "low_noise": []}
    rng = random.Random(seed)
    for step in range(1, steps + 1):
        loss = trend_at(step) * math.exp(rng.gauss(0, 0.45) - 0.1)
        points[expert_at(step)].append(StepPoint(step, loss, 1e-4 if step < 700 else 5e-5, 1e9 + step))
    series = [make(e, p) for make in (loss_series, lr_series) for e, p in points.items() if p]
    return PlottedRun("noisy", series, **more)  # type: ignore[arg-type]


def of(*losses: float) -> PlottedRun:
    return PlottedRun("odd", [loss_series("high_noise", [StepPoint(i + 1, v) for i, v in enumerate(losses)])])


def text(figure: Figure) -> list[str]:
    return ["".join(signs) for signs, _ in figure.rows]


def rows_of(figure: Figure, number: int) -> dict[int, list[int]]:
    """Column -> the rows in which a curve's line is."""
    found: dict[int, list[int]] = {}
    for y, (_, inks) in enumerate(figure.rows):
        for x, ink in enumerate(inks):
            if ink == LINE + number:
                found.setdefault(x - figure.left, []).append(y)
    return found


def test_a_trend_that_halves_fills_the_plot_in_80_columns():
    figure = draw([noisy()], Options(), None, 78, 11)
    high, low = rows_of(figure, 0), rows_of(figure, 1)
    assert high[0][0] <= 1 and low[figure.columns - 2][0] >= 7, "of nine rows"
    assert max(high[figure.columns - 2]) - min(high[1]) >= 3
    assert all(len(row) == 78 for row in text(figure)) and len(figure.rows) == 11


def test_each_column_has_its_line():
    figure = draw([noisy()], Options(smoothing=6), None, 78, 11)
    assert set(rows_of(figure, 0)) | set(rows_of(figure, 1)) == set(range(figure.columns))


def test_in_a_tall_place_each_expert_and_the_rate_have_panels():
    whole = "\n".join(text(draw([noisy()], Options(), None, 100, 30)))
    assert "loss high noise" in whole and "loss low noise" in whole and " lr ─" in whole and "5e-5┤" in whole
    together = draw([noisy()], Options(apart=False), None, 100, 30)
    assert "loss high noise" not in "\n".join(text(together)) and not together.apart
    assert "loss high noise" in "\n".join(text(draw([noisy()], Options(apart=True), None, 78, 12)))


@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize(
    "runs",
    [
        [],
        [PlottedRun("none", [])],
        [of(0.5)],
        [of(math.nan)],
        [of(0.1, math.nan, math.inf, -math.inf, 0.2)],
        [of(*[0.25] * 40)],
        [of(0.0, -1.0, 2.0)],
        [of(1e-12, 1e12)],
        [noisy(300), noisy(500, 1), of(0.5), noisy(1)],
    ],
    ids=["nothing", "no step", "one point", "nan", "not finite", "equal", "not positive", "far apart", "four runs"],
)
def test_nothing_is_too_small_or_too_odd(runs: list[PlottedRun], columns: int, rows: int):
    for log, everything, apart in itertools.product((False, True), (False, True), (None, True)):
        for window in (None, Window(1, 9)):
            figure = draw(runs, Options(log=log, everything=everything, apart=apart), window, columns, rows)
            assert [len(row) for row in text(figure)] == [columns] * rows
            assert all(len(signs) == len(inks) for signs, inks in figure.rows)
            read(figure, 1)
            legend(figure)


def test_names_of_others_take_the_cells_that_they_have():
    name = "漢字\x1b[31m\u202e" * 30
    runs = [PlottedRun("x", [loss_series(n, [StepPoint(1, 0.5), StepPoint(9, 0.4)]) for n in (name, "low_noise")])]
    for columns in (60, 61):
        figure = draw(runs, Options(apart=True), None, columns, 20)
        heading = next(row for row in text(figure) if "漢" in row)
        assert cell_len(heading) == columns and "\x1b" not in heading


def test_no_step_on_the_axis_is_negative_and_the_ticks_are_round():
    for steps in (1, 2, 7, 30, 2400):
        numbers = text(draw([noisy(steps)], Options(), None, 78, 11))[-1].split()
        assert numbers and all(n.isdigit() for n in numbers)
    assert text(draw([noisy()], Options(), None, 78, 11))[-1].split() == ["500", "1000", "1500", "2000"]


def test_runs_differ_without_colour():
    figure = draw([noisy(), noisy(1500, 1)], Options(), None, 100, 20)
    whole = "".join(text(figure))
    assert all(sign in whole for sign in "●○■□")
    # the second is dashed, and ends with its own last step
    assert max(rows_of(figure, 2)) < 0.7 * figure.columns
    flat = draw([of(*[0.2] * 300), of(*[0.1] * 300)], Options(), None, 60, 10)
    assert len(rows_of(flat, 2)) < len(rows_of(flat, 0)) == flat.columns
    assert len({c.sign for c in draw([noisy(300, i) for i in range(MOST_RUNS)], Options(), None, 90, 30).curves}) == 8


def test_a_window_shows_its_part_alone_and_reads_the_same_values():
    run = noisy()
    figure = draw([run], Options(), Window(500, 600), 78, 11)
    assert text(figure)[-1].split()[0] == "500" and "2000" not in text(figure)[-1]
    assert figure.step_at(figure.column_of(550)) == pytest.approx(550, abs=2)
    first = next(t for t, _ in read(figure, 550) if "●" in t)
    assert f"{run.series[0].values[run.series[0].nearest(550)]:.4f}" in first and "~" in first


def test_marks_lie_on_the_axis_and_are_named_under_the_cursor():
    marks = [
        Mark(1200, "checkpoint", "checkpoint"),
        Mark(1200, "preview", "preview"),
        Mark(700, "lr lowered", "lr 1 → 2"),
    ]
    figure = draw([noisy(marks=marks)], Options(), None, 78, 11)
    axis = text(figure)[-2]
    assert "▣" in axis and "↓" in axis and "◆" not in axis  # of two in one place the rarer
    said = [t for t, _ in read(figure, 1200)]
    assert said[:3] == ["step 1200", "▣ preview", "◆ checkpoint"] and "lr 5e-5" in said and "●" in said[3]
    assert "↓ lr 1 → 2" in [t for t, _ in read(figure, 700)]
    assert [t for t, _ in legend(figure)] == ["◆ checkpoint", "▣ preview", "↓ lr lowered"]
    assert not any("checkpoint" in t for t, _ in read(figure, 300))


def test_the_marks_under_the_cursor_come_before_what_may_be_cut_off_each_kind_once():
    marks = [Mark(step, "checkpoint", "checkpoint") for step in (1198, 1199, 1200, 1201)]
    marks += [Mark(1199, "not finite", "step 1199 not finite"), Mark(1200, "not finite", "step 1200 not finite")]
    marks.append(Mark(1200, "best", "best held-out loss", "told apart from step 1100 by 12 of 16 pairs, and so on"))
    figure = draw([noisy(marks=marks), noisy(2400, 1)], Options(), None, 78, 11)
    step, *named, own, _, _, _, _, _, why = [t for t, _ in read(figure, 1200)]
    assert (step, named) == (
        "step 1200",
        ["! step 1200 not finite and 1 more", "✓ best held-out loss", "◆ checkpoint and 3 more"],
    )
    assert own.startswith("●") and why.startswith("✓ told apart")


def test_the_cursor_says_what_is_not_finite():
    figure = draw([of(0.1, math.nan, 0.2)], Options(), None, 60, 10)
    assert "● nan" in [t for t, _ in read(figure, 2)]


def test_one_spike_does_not_flatten_the_trend():
    losses = [0.2 - 0.0001 * i for i in range(1000)]
    losses[500] = 90.0
    figure = draw([of(*losses)], Options(), None, 78, 12)
    line = rows_of(figure, 0)
    assert min(line[0]) <= 1 and max(line[figure.columns - 2]) >= 8, "of ten rows"


def test_a_spike_is_drawn_once_all_points_have_room():
    run = of(*([0.1] * 5000 + [9.0] + [0.1] * 5000))
    figure = draw([run], Options(everything=True), None, 80, 12)
    assert any(ink == 100 for ink in figure.rows[0][1] + figure.rows[1][1]), "at the top"
    assert draw([run], Options(), None, 80, 12).rows != figure.rows
