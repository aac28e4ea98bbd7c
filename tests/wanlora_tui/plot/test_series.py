"""What a run gives to draw, and what happened along it."""

import math
from pathlib import Path

import pytest

from presets.runs.events import EVENTS_FILE, read_events
from presets.runs.ranking import Measure
from presets.runs.run_view import Abandoned, Change, Checkpoint, RunView, StepPoint, apply_all
from tests.helpers import recorded_run
from wanlora_tui.plot.figure import Options, draw
from wanlora_tui.plot.layout import groups_of
from wanlora_tui.plot.marks import Mark
from wanlora_tui.plot.reading import read
from wanlora_tui.plot.series import HELD_OUT, LR, SAMPLE, PlottedRun, Series, loss_series, lr_series, plotted


def series(*losses: float) -> Series:
    return loss_series("high_noise", [StepPoint(i + 1, loss) for i, loss in enumerate(losses)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PlottedRun:
    folder: Path = recorded_run.write(tmp_path_factory.mktemp("runs"))
    view = RunView()
    apply_all(view, (event for event, _ in read_events(folder / EVENTS_FILE)))
    return plotted(view)


def test_the_mean_of_a_constant_is_that_constant_and_of_a_slope_its_middle():
    assert {series(*[0.25] * 100).mean(i, 9) for i in range(100)} == {0.25}
    slope = series(*[float(i) for i in range(100)])
    assert all(slope.mean(i, 9) == pytest.approx(i) for i in range(9, 91))
    assert slope.mean(50, 0) == 50


def test_what_is_not_finite_is_left_out_of_means_and_named():
    one = series(1.0, math.nan, 3.0, math.inf, 5.0)
    assert one.mean(2, 2) == 3.0 and math.isnan(series(math.nan).mean(0, 0))
    view = RunView(losses={"high_noise": [StepPoint(1, 0.5), StepPoint(2, math.nan), StepPoint(3, math.inf)]})
    assert plotted(view).marks == [Mark(2, "not finite", "step 2: loss nan"), Mark(3, "not finite", "step 3: loss inf")]


def test_the_nearest_point_of_a_step():
    one = loss_series("high_noise", [StepPoint(s, 1.0) for s in (10, 20, 30)])
    assert [one.nearest(s) for s in (-5, 10, 14, 16, 24, 26, 99)] == [0, 0, 0, 1, 1, 2, 2]
    assert one.between(10, 20) == (0, 2) and one.between(21, 29) == (2, 2)


def test_a_rate_is_kept_where_it_changes():
    view = RunView(losses={"low_noise": [StepPoint(s, 0.1, 1e-4 if s < 50 else 5e-5) for s in range(1, 101)]})
    (rate,) = [s for s in plotted(view).series if s.panel == LR]
    assert list(zip(rate.steps, rate.values, strict=True)) == [(1, 1e-4), (49, 1e-4), (50, 5e-5), (100, 5e-5)]


def test_a_view_of_an_older_daemon_has_losses_alone():
    run = plotted(RunView(losses={"high_noise": [StepPoint(1, 0.5), StepPoint(2, 0.4)], "low_noise": []}))
    assert [s.panel for s in run.series] == ["loss"] and run.steps == (1, 2)
    assert plotted(RunView()).steps is None


def test_all_that_happened_is_marked_at_its_step(run: PlottedRun):
    found = {(m.step, m.kind, m.text) for m in run.marks}
    assert {
        (200, "checkpoint", "checkpoint"),
        (400, "preview", "preview"),
        (recorded_run.NOT_FINITE, "not finite", "step 555 not finite, skipped"),
        (recorded_run.LOWER_FROM, "lr lowered", "lr 1e-4 → 5e-5"),
        (recorded_run.STOPPED, "resumed", "resumed"),
        (recorded_run.BACK_TO, "went back", "went back to here from step 1700"),
    } <= found
    assert [s.name for s in run.branches] == ["high_noise", "low_noise"]
    assert run.branches[0].steps[0] > recorded_run.BACK_TO


def test_a_resume_that_lost_steps_and_changes_of_other_fields_are_named():
    view = RunView(
        resumed=[40],
        abandoned=[
            Abandoned(attempt=1, after=40, last=55, folder=""),
            Abandoned(attempt=1, after=9, last=9, folder="x"),
        ],
        changes=[Change(10, "sample.every", "100", "50"), Change(11, "multistage.low.lr", "0.0001", "0.0002")],
        checkpoints=[Checkpoint(40, "c")],
    )
    assert [(m.step, m.kind, m.text) for m in plotted(view).marks] == [
        (10, "changed", "sample.every 100 → 50"),
        (11, "lr raised", "multistage.low.lr 1e-4 → 2e-4"),
        (40, "resumed", "resumed, trained anew from here to 55"),
        (40, "checkpoint", "checkpoint"),
    ]


def measured(step: int, high: list[float], low: list[float], of: str = "") -> Measure:
    return Measure(step=step, of=of, losses={"high_noise": high, "low_noise": low})


def test_held_out_losses_have_a_series_for_each_expert_and_the_best_is_marked():
    view = RunView(
        losses={"high_noise": [StepPoint(s, 0.5) for s in range(1, 31)]},
        checkpoints=[Checkpoint(10, "a"), Checkpoint(20, "b")],
        measured=[
            measured(5, [9.0], [9.0], of="other clips"),
            measured(0, [0.5, 0.7], [0.2, 0.2]),
            measured(10, [0.3, 0.5], [0.1, 0.2]),
            measured(20, [0.4, 0.6], [0.1, 0.3]),
        ],
    )
    run = plotted(view)
    high, low = [s for s in run.series if s.panel == HELD_OUT]
    assert (high.name, high.steps, high.values) == ("high_noise", [0, 10, 20], pytest.approx([0.6, 0.4, 0.5]))
    assert (low.name, low.values) == ("low_noise", pytest.approx([0.2, 0.15, 0.2])) and not low.noisy
    assert [(m.step, m.text) for m in run.marks if m.kind == "best"] == [(10, "best held-out loss")]
    assert not [s for s in plotted(RunView()).series if s.panel == HELD_OUT]


@pytest.mark.parametrize(
    ("rows", "panels"),
    [(5, ["loss"]), (8, ["loss", HELD_OUT]), (14, ["loss", HELD_OUT, LR]), (30, ["loss", "loss", HELD_OUT, LR])],
)
def test_held_out_losses_are_drawn_before_the_rate_is(rows: int, panels: list[str]):
    points = [StepPoint(s, 0.5, 1e-4) for s in range(1, 31)]
    view = RunView(
        losses={"high_noise": points, "low_noise": points},
        measured=[measured(s, [0.5], [0.4]) for s in (0, 10, 20)],
    )
    groups = groups_of([plotted(view)], None, rows)
    assert [g.panel for g in groups] == panels
    assert sum(g.rows + bool(g.title) for g in groups) == rows
    figure = draw([plotted(view)], Options(), None, 60, rows)
    assert len(figure.rows) == rows
    said = [text for text, _ in read(figure, 10)]
    assert ("held-out ● 0.5000 ○ 0.4000" in said) == (len(panels) > 1), said


@pytest.mark.parametrize("rates", [[1], [1, 1], [1, 2], [1, 1, 1, 2, 2, 2], [1, 2, 1, 1], [3, 2, 1, 0, 0, 0, 1]])
def test_a_rate_is_told_before_and_after_each_change_and_at_both_ends(rates: list[float]):
    found = lr_series("high_noise", [StepPoint(i, 0.1, rate) for i, rate in enumerate(rates)])
    last = len(rates) - 1
    assert found.steps == [i for i in range(last + 1) if i in (0, last) or not rates[i - 1] == rates[i] == rates[i + 1]]
    assert found.values == [rates[i] for i in found.steps]


def test_spikes_among_very_many_points_are_calmed_also_those_between_the_ones_looked_at():
    losses = [0.2 + 0.01 * math.sin(i) for i in range(3 * SAMPLE)]
    for i in (100, 101, 102, 5001):
        losses[i] = 90.0
    losses[4000] = math.nan
    found = series(*losses)
    assert max(found.means([i for i in range(len(losses)) if i != 4000], 0, calm=True)) < 0.22
    assert found.mean(101, 0) == pytest.approx(90.0)
