"""The plot on a screen: keys, mouse, other runs, no colour."""

import re
from pathlib import Path

import msgspec
import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.pilot import Pilot

from presets.errors import UserError
from presets.report.best import ranked_checkpoints
from presets.report.measures import Judged
from presets.report.run_reader import read_run
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.run_view import RunView
from tests.helpers import recorded_run
from tests.helpers.interface.wizard_pilot import until
from tests.helpers.tiers import thorough
from tests.presets.report.test_held_out import measure, preview, run_with
from wanlora_tui.plot.loss_plot import LossPlot
from wanlora_tui.plot.other_runs import read_folder
from wanlora_tui.screens.help import of_screen
from wanlora_tui.terminal.drawn_text import SafelyDrawn

pytestmark = pytest.mark.process  # takes seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    for name in ("noisy_v1", "noisy_v2"):
        recorded_run.write(place, name, seed=len(name), steps=1800)
    return place


class PlotApp(SafelyDrawn):
    CSS = "LossPlot { border-top: solid $primary; height: 1fr; }"

    def __init__(self, view: RunView) -> None:
        super().__init__()
        self.view = view

    def compose(self) -> ComposeResult:
        yield LossPlot(id="plot")

    def on_mount(self) -> None:
        self.plot.show(self.view)
        self.plot.focus()

    @property
    def plot(self) -> LossPlot:
        return self.query_one(LossPlot)


@pytest.fixture(scope="module")
def view(folder: Path) -> RunView:
    return read_folder(folder / "noisy_v1")


def lines(app: App[None]) -> list[str]:
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


async def press(pilot: Pilot[None], *keys: str) -> list[str]:
    for key in keys:
        await pilot.press(key)
        await pilot.pause()
    await pilot.pause()
    return lines(pilot.app)


def test_the_help_of_the_dashboard_has_the_keys_of_the_plot():
    assert {binding.id for binding in LossPlot.BINDINGS} == {a.id for a in of_screen("dashboard")["In the plot"]}
    assert "In the plot" not in of_screen("jobs")


async def test_keys_zoom_read_and_go_from_mark_to_mark(view: RunView):
    app = PlotApp(view)
    async with app.run_test(size=(100, 16)) as pilot:
        shown = await press(pilot)
        assert "+ - zoom" in shown[0] and "◆ checkpoint" in shown[-1] and "! not finite" in shown[-1]
        shown = await press(pilot, "m")
        assert "step 200" in shown[-1] and "◆ checkpoint" in shown[-1], "the preview of step 0 lies before the plot"
        shown = await press(pilot, "m", "m")
        assert "step 555" in shown[-1] and "not finite, skipped" in shown[-1]
        assert any("│" in line[10:] for line in shown[1:8])  # the cursor
        await press(pilot, "plus", "plus")
        window = app.plot.figure.window
        assert window.low < 555 < window.high and window.width < 500
        shown = await press(pilot, "greater_than_sign", "less_than_sign", "left")
        assert app.plot.figure.window == window and "step 5" in shown[-1] and "step 555" not in shown[-1]
        assert "steps" in shown[0]
        shown = await press(pilot, "0")
        assert app.plot.figure.window == app.plot.figure.whole and "steps" not in shown[0]


@pytest.mark.parametrize("columns", [78, 60])
async def test_what_the_cursor_reads_is_whole_and_the_plot_keeps_its_place(columns: int, view: RunView):
    """At steps with two marks as at the others, in the columns of a terminal of 80."""
    app = PlotApp(view)
    async with app.run_test(size=(columns, 12)) as pilot:
        rows = len(app.plot.figure.rows)
        seen = [[line.rstrip() for line in await press(pilot, "m")] for _ in range(6)]
        low = [len(app.plot.figure.rows)]
        for key in ["m"] * 5 + ["left"] * 6:  # between two marks there is less to read
            shown = await press(pilot, key)
            seen.append([line.rstrip() for line in shown])
            low.append(len(app.plot.figure.rows))
        read = [" ".join(lines[1 + low[0] :]) for lines in seen]
        assert any("▣" in words and "◆" in words and "lr" in words for words in read)
        assert not [words for words in read if words.endswith("…")], read
        assert len({*low}) == 1 and low[0] < rows, "rows that were needed stay"
        await press(pilot, "tab")
        app.set_focus(None)
        await pilot.pause()
        assert len(app.plot.figure.rows) == rows


async def test_a_zoomed_plot_stays_where_it_is_and_one_of_all_steps_follows(view: RunView, folder: Path):
    app = PlotApp(RunView())
    async with app.run_test(size=(100, 16)) as pilot:
        shown = await press(pilot, "plus", "left", "m", "0", "2", "g", "greater_than_sign")
        assert "loss, from the first step on" in shown[0]
        half = read_folder(folder / "noisy_v1")
        half.losses = {expert: points[:200] for expert, points in half.losses.items()}
        app.plot.show(half)
        before = app.plot.figure.window.high
        app.plot.show(view)
        assert app.plot.figure.window.high > before
        app.plot.show(half)
        await press(pilot, "plus")
        window = app.plot.figure.window
        app.plot.show(view)
        assert app.plot.figure.window == window


async def test_scale_smoothing_and_panels_by_keys(view: RunView):
    app = PlotApp(view)
    async with app.run_test(size=(100, 16)) as pilot:
        shown = await press(pilot, "g", "i", "left_square_bracket")
        assert "log, all points, mean of 4%" in shown[0]
        shown = await press(pilot, "2")
        assert any("loss low noise" in line for line in shown)
        shown = await press(pilot, "2", *["left_square_bracket"] * 9)
        assert not any("loss low noise" in line for line in shown) and "not smoothed" in shown[0]


async def test_the_wheel_zooms_at_the_pointer_dragging_pans_and_a_double_click_resets(view: RunView):
    app = PlotApp(view)
    async with app.run_test(size=(100, 16)) as pilot:
        await press(pilot)
        figure = app.plot.figure
        at = Offset(figure.left + 20, 5)
        step = figure.step_at(20)
        for _ in range(4):
            app.plot.post_message(mouse(events.MouseScrollUp, app.plot, at))
        await until(pilot, lambda: app.plot.figure.window.width < 0.5 * figure.window.width, "the zoom")
        assert app.plot.figure.step_at(20) == pytest.approx(step)
        before = app.plot.figure.window
        await pilot.mouse_down(app.plot, offset=(60, 5))
        await pilot.hover(app.plot, offset=(40, 5))
        await pilot.mouse_up(app.plot, offset=(40, 5))
        assert app.plot.figure.window.low > before.low and app.plot.figure.window.width == pytest.approx(before.width)
        await pilot.hover(app.plot, offset=(50, 6))
        await pilot.pause()
        assert lines(app)[-1].startswith("step ")
        await pilot.click(app.plot, offset=(50, 6), times=2)
        assert app.plot.figure.window == figure.whole


def mouse(kind: type[events.MouseEvent], plot: LossPlot, at: Offset) -> events.MouseEvent:
    return kind(plot, at.x, at.y, 0, 0, 0, False, False, False, at.x, at.y)


async def test_another_run_is_drawn_by_its_folder_and_taken_away_again(view: RunView, folder: Path):
    app = PlotApp(view)
    async with app.run_test(size=(100, 20)) as pilot:
        app.plot.add_run()
        await until(pilot, lambda: "run folder" in "\n".join(lines(app)), "the question")
        await press(pilot, *str(folder / "noisy_v2"), "enter")
        await until(pilot, lambda: "■□ noisy_v2" in lines(app)[0], "the other run")
        shown = "\n".join(await press(pilot))
        assert all(sign in shown for sign in "●○■□")
        await pilot.resize_terminal(80, 20)
        *_, values, more = await press(pilot, "left")
        assert re.search(r"^step 1800  ▣ preview  ◆ checkpoint  ● [\d.]+ ~[\d.]+  ○ [\d.]+ ~[\d.]+  ", values), values
        assert re.search(r"^■ ~[\d.]+  □ ~[\d.]+  lr 5e-5  ", more) and "…" not in values + more, more
        app.plot.add_run()
        await until(pilot, lambda: "✓" in "\n".join(lines(app)), "the question")
        await press(pilot, "enter")
        await until(pilot, lambda: "noisy_v2" not in lines(app)[0], "one run")


async def test_a_wrong_folder_is_said_where_it_was_typed_and_mended_there(view: RunView, folder: Path):
    app = PlotApp(view)
    async with app.run_test(size=(100, 20)) as pilot:
        app.plot.add_run()
        await until(pilot, lambda: "run folder" in "\n".join(lines(app)), "the question")
        shown = await press(pilot, *str(folder / "noisy_v"), "enter")
        assert "No run lies there" in "\n".join(shown) and "noisy_v" in "\n".join(shown)
        await press(pilot, "2", "enter")
        await until(pilot, lambda: "■□ noisy_v2" in lines(app)[0], "the other run")


async def test_a_folder_without_a_run_is_said(view: RunView, tmp_path: Path):
    with pytest.raises(UserError, match="no run can be read"):
        read_folder(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(b'{"v":1}\n\xff\xff\n[1]\n{"half')
    with pytest.raises(UserError, match="no step yet"):
        read_folder(tmp_path)


@pytest.mark.parametrize("size", [(20, 5), (1, 1), *thorough((10, 3), (60, 4))])
async def test_small_terminals_take_every_key(view: RunView, size: tuple[int, int]):
    app = PlotApp(view)
    async with app.run_test(size=size) as pilot:
        await press(
            pilot, "m", "left", "right", "plus", "minus", "2", "g", "i", "0", "right_square_bracket", "M", "comma"
        )
        assert app.is_running


async def test_the_best_checkpoint_is_the_one_that_the_machine_of_the_run_ranks_first(tmp_path: Path) -> None:
    run = run_with(tmp_path)
    view = read_run(run).view
    wobble = {10: [0.3, 0.2, 0.3, 0.2], 20: [0.2, 0.3, 0.2, 0.29], 30: [0.9] * 4}
    view.measured += [measure(step, losses, losses) for step, losses in wobble.items()]

    class Machine:
        """What its daemon answers."""

        async def checkpoints(self, job: int) -> tuple[None, list[StoredCheckpoint]]:
            return None, ranked_checkpoints(run, view)

    app = PlotApp(view)
    async with app.run_test(size=(80, 24)) as pilot:

        def best() -> list[tuple[int, str, str]]:
            return [(mark.step, mark.text, mark.why) for mark in app.plot._runs()[0].marks if mark.kind == "best"]

        assert best()[0][0] == 20
        app.plot._client = Machine()  # type: ignore[assignment]
        previews = [preview(s, speed=1 - s / 100, direction=1) for s in (10, 20, 30)]
        (run / "judge.json").write_bytes(msgspec.json.encode(Judged(name="pan", previews=previews)))
        app.plot.rank_anew()
        await until(pilot, lambda: best()[0][0] == 10, "the other mark")
        assert best()[0][1] == "best checkpoint" and best()[0][2].startswith("by its previews")
