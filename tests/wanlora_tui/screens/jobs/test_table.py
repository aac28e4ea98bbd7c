"""Which columns the list of jobs has at which width, and what stands in them."""

import time
from typing import Any

import msgspec
import pytest
from textual.app import App, ComposeResult

from daemon.wire.protocol import JobRecord
from presets.runs.run_view import RunView, StepPoint, apply_event
from tests.helpers.interface.runs import usual
from wanlora_tui.screens.jobs import table as jobs_table
from wanlora_tui.screens.jobs.detail import loss_line, times_text
from wanlora_tui.screens.jobs.table import PADDING, JobTable, Rows, cells_of, layout

NOW = 1_790_000_100.0
LONG = "wan_i2v_motion_orbit_around_the_castle_in_the_rain_v3"


def job(id: int, name: str, state: Any, **more: Any) -> JobRecord:
    return JobRecord(id=id, name=name, job_path="/j", out="/o", gpus=[0], state=state, steps=5000, **more)


def training() -> RunView:
    view = RunView()
    for event in usual(until=120, steps=5000).events:
        apply_event(view, event)
    return view


def rows(*names: str) -> list[dict[str, str]]:
    running = job(1, names[0], "running", pid=7, submitted_at=NOW - 7200, started_at=1.0)
    others = [
        job(i, name, "done", submitted_at=NOW - 9000, started_at=NOW - 8000, finished_at=NOW - 4000)
        for i, name in enumerate(names[1:], 2)
    ]
    return [cells_of(running, training(), NOW), *(cells_of(r, None, NOW) for r in others)]


def keys(width: int, *names: str) -> list[str]:
    return [c.key for c in layout(rows(*names), width)]


def name_width(width: int, *names: str) -> int:
    return next(c.width for c in layout(rows(*names), width) if c.key == "name")


@pytest.mark.parametrize("width", [40, 60, 80, 96, 120, 200])
@pytest.mark.parametrize("names", [("orbit_v1", "style_v1"), (LONG, "style_v1")])
def test_no_column_reaches_over_the_edge(width: int, names: tuple[str, ...]):
    assert sum(c.width + PADDING for c in layout(rows(*names), width)) < width


def test_short_names_leave_room_for_the_times():
    assert {"started", "finished"} <= set(keys(120, "orbit_v1", "style_v1"))
    assert "submitted" in keys(140, "orbit_v1", "style_v1")
    assert "started" not in keys(80, "orbit_v1", "style_v1")


@pytest.mark.parametrize("width", [120, 160, 200])
def test_a_name_is_whole_before_a_time_gets_a_column(width: int):
    columns = layout(rows(LONG, "style_v1"), width)
    assert name_width(width, LONG, "style_v1") == len(LONG) or not {c.key for c in columns} & {"started", "submitted"}
    assert sum(c.width + PADDING for c in columns) < width


@pytest.mark.parametrize("name", ["wan_i2v_orbit_v12", "wan_i2v_orbit_castle_rain_v3"])
def test_a_name_of_a_usual_length_is_whole_in_80_columns(name: str):
    """Two of them often differ in their last letters alone; numbers give way."""
    columns = layout(rows(name, "style_v1"), 80)
    assert name_width(80, name, "style_v1") == len(name)
    assert {"state", "step", "eta", "loss", "gpu"} <= {c.key for c in columns}


def test_what_is_left_is_the_long_names():
    columns = layout(rows(LONG, "style_v1"), 80)
    assert name_width(80, LONG, "style_v1") > 20
    assert 79 - sum(c.width + PADDING for c in columns) <= 0


def test_columns_that_say_nothing_leave_their_room_to_the_names():
    """Nothing runs: loss, pace and expert are empty, and a long name is whole in 80 columns."""
    idle = [cells_of(job(1, LONG[:40], "queued", position=1), None, NOW)]
    assert next(c.width for c in layout(idle, 80) if c.key == "name") == 40
    assert not {"loss", "pace", "expert", "eta"} & {c.key for c in layout(idle, 80)}


def test_without_a_column_of_its_own_the_end_stands_in_that_of_the_eta():
    assert next(c.header for c in layout(rows(LONG, "style_v1"), 80) if c.key == "eta") == "ETA/END"
    assert next(c.header for c in layout(rows("orbit_v1", "style_v1"), 160) if c.key == "eta") == "ETA"


def test_a_column_does_not_shrink_again():
    wide = layout(rows("orbit_v1"), 80)
    narrower = layout([r | {"eta": "9s"} for r in rows("orbit_v1")], 80, wide)
    assert [c.width for c in narrower] == [c.width for c in wide]


def test_the_times_of_a_job_are_told_as_far_as_it_has_come():
    hour = time.strftime("%H:%M", time.localtime(NOW))
    assert times_text(job(1, "a", "queued", submitted_at=NOW), NOW) == f"submitted {hour}"
    resumed = job(1, "a", "running", submitted_at=NOW, started_at=NOW, finished_at=NOW)
    assert "finished" not in times_text(resumed, NOW)  # that was the attempt before


def test_the_loss_in_a_line_shows_its_course():
    falling = [StepPoint(i, 1.0 - i / 100) for i in range(100)]
    assert loss_line(falling, 8) == "█▇▆▅▄▃▂▁"
    assert len(loss_line(falling, 30)) <= 30
    assert loss_line([StepPoint(1, float("nan"))], 8) == ""
    assert loss_line([StepPoint(1, 0.5)], 8) == "▁"


class Listed(App[None]):
    def compose(self) -> ComposeResult:
        yield JobTable(id="jobs")


async def test_a_row_goes_on_when_its_list_has_been_drawn_anew():
    app = Listed()
    async with app.run_test(size=(80, 10)) as pilot:
        table = app.query_one(JobTable)
        shown, running = Rows(table), job(1, "orbit_v1", "running")
        for step in (98, 99, 100, 101, 102):  # with the third digit all columns are drawn anew
            shown.show([msgspec.structs.replace(running, step=step)], {}, 1)
            await pilot.pause()
            assert f" {step}/5000" in table.render_line(1).text


async def test_columns_that_went_with_one_run_come_back_with_the_next():
    app = Listed()
    async with app.run_test(size=(100, 10)) as pilot:
        table = app.query_one(JobTable)
        shown, first, second = Rows(table), job(1, "orbit_v1", "running", pid=7), job(2, "style_v1", "queued")

        def headers() -> set[str]:
            return {column.label.strip() for column in table.columns}

        shown.show([first], {1: training()}, 1)
        await pilot.pause()
        assert {"ETA", "LOSS", "EXPERT"} <= headers()
        first.state, first.revision, first.finished_at = "done", 2, NOW
        shown.show([second, first], {}, 1)
        assert not {"ETA", "LOSS", "EXPERT"} & headers()
        second = msgspec.structs.replace(second, state="running", pid=8, revision=2)
        shown.show([second, first], {2: training()}, 1)
        await pilot.pause()
        assert {"ETA", "LOSS", "EXPERT"} <= headers()


async def test_columns_of_other_rows_are_chosen_as_if_nothing_had_been_there():
    """A list that is filtered and made narrower looks the same in either order."""
    app = Listed()
    async with app.run_test(size=(100, 10)) as pilot:
        table, one, two = app.query_one(JobTable), job(1, LONG, "running", pid=7), job(2, "style_v1", "done")

        def columns() -> list[tuple[str, int]]:
            return [(column.label, column.width) for column in table.columns]

        found = []
        for before in ([], [one, two]):
            shown = Rows(table)
            if before:
                shown.show(before, {1: training()}, 1)
            shown.show([two], {}, 2)
            await pilot.pause()
            found.append(columns())
        assert found[0] == found[1]


async def test_home_and_end_go_to_the_ends_of_the_list():
    app = Listed()
    async with app.run_test(size=(80, 10)) as pilot:
        table = app.query_one(JobTable)
        Rows(table).show([job(i, f"orbit_v{i}", "done") for i in range(1, 5)], {}, 2)
        await pilot.pause()
        table.focus()
        for key, row in (("home", 0), ("end", 3), ("g", 0), ("G", 3)):
            await pilot.press(key)
            assert table.cursor_row == row, key


class Sorted(Listed):
    clicked = ""

    def on_job_table_heading_clicked(self, event: JobTable.HeadingClicked) -> None:
        self.clicked = event.column


async def test_a_click_on_a_heading_tells_which_and_one_on_a_row_moves_the_cursor():
    app = Sorted()
    async with app.run_test(size=(80, 10)) as pilot:
        table = app.query_one(JobTable)
        Rows(table).show([job(i, f"orbit_v{i}", "done") for i in range(1, 5)], {}, 2)
        await pilot.pause()
        heading = table.render_line(0).text
        for word, key in (("NAME", "name"), ("STATE", "state"), ("STEP", "step")):
            await pilot.click(JobTable, offset=(heading.index(word), 0))
            assert app.clicked == key
        assert table.cursor_row == 1
        await pilot.click(JobTable, offset=(3, 4))
        assert table.cursor_row == 3


async def test_a_job_that_a_filter_hid_is_not_made_anew(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    def counted(record: JobRecord, *rest: Any) -> dict[str, str]:
        made.append(record.id)
        return cells_of(record, *rest)

    monkeypatch.setattr(jobs_table, "cells_of", counted)
    app = Listed()
    async with app.run_test(size=(80, 10)):
        records = [job(i, f"orbit_v{i}", "done") for i in range(1, 5)]
        shown = Rows(app.query_one(JobTable))
        for listed in (records, records[:1], records):
            shown.forget_others({r.id for r in records})
            shown.show(listed, {}, 1)
        assert made == [1, 2, 3, 4]
        shown.forget_others({1})
        shown.show(records, {}, 1)
        assert made[4:] == [2, 3, 4]


def test_a_run_on_the_cpu_is_called_so():
    assert cells_of(job(1, "a", "done", on_cpu=True), None, NOW)["gpu"] == "CPU"
    assert cells_of(job(1, "a", "running"), RunView(device="CPU"), NOW)["gpu"] == "CPU"
    assert cells_of(job(1, "a", "running"), training(), NOW)["gpu"] == "0"
