"""Short texts about jobs."""

import time

import msgspec
from rich.cells import cell_len

from daemon.wire.protocol import JobRecord
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import device_text, fitted, gpus_text, price, shorten, waits_for


def queued(**more) -> JobRecord:
    return JobRecord(id=1, name="one", job_path="/j", out="/o", gpus=[0], state=more.pop("state", "queued"), **more)


def test_a_queued_job_says_what_it_waits_for_besides_its_turn():
    assert waits_for(queued()) == "" == waits_for(queued(state="failed", outcome="killed"))
    assert waits_for(queued(waiting="GPU 0 is used")) == "waits"
    soon = queued(restart_at=time.time() + 3659, restarts=2, most_restarts=3, waiting="killed")
    assert waits_for(soon) == "restarts in 1h 00m (2 of 3)"
    assert waits_for(queued(held="On hold.", restart_at=1.0, waiting="killed")) == ""
    assert waits_for(queued(restart_at=1.0, restarts=1, most_restarts=3)) == "restarts in 0s (1 of 3)"


def test_a_price_is_of_hours_and_none_at_no_rate():
    assert price(5400, 2.5, "$") == "$3.75"
    assert price(3600, 0.4, "EUR") == "EUR 0.40"
    assert price(3600, 0.0, "$") == ""


def test_wide_characters_take_two_cells_of_what_is_cut_in_the_middle():
    name = "一只猫在花园里慢慢走_0012.mp4"
    for width in range(30):
        assert cell_len(shorten(name, width)) == min(width, cell_len(name)), width
    assert shorten(name, 24) == "一只猫 … 慢慢走_0012.mp4" and shorten(name, 29) == name
    assert shorten("clip_0012.mp4", 9) == "cl…12.mp4"


def test_a_line_that_is_too_long_ends_with_a_whole_part():
    text = "18.2 s/step · 11h 04m in all · on an RTX 4090: 20.1 of 24 GiB · no GPU here: there is no driver"
    assert fitted(text, 60, 2) == fitted(text, 100, 1) == text
    assert fitted(text, 79, 1) == text.removesuffix(": there is no driver")
    assert fitted(text, 36, 2) == fitted(text, 70, 1) == text.partition(" · no")[0]
    assert fitted(text, 4, 1) == "18.2 s/step", "the first part stays"


def test_a_job_trains_on_the_cpu_where_its_trainer_says_so():
    assert device_text(queued(), None) == device_text(queued(), RunView()) == "GPU 0"
    short = msgspec.structs.replace(queued(gone=[1]), gpus=[0, 1, 2, 3])
    assert device_text(short, None) == "GPU 0,2,3 without 1"
    assert device_text(short, RunView(device="CPU")) == "CPU without 1"
    assert device_text(queued(), RunView(device="CPU")) == device_text(queued(on_cpu=True), None) == "CPU"
    assert (
        gpus_text(queued()) == "0"
        and gpus_text(queued(on_cpu=True)) == gpus_text(queued(), RunView(device="CPU")) == "CPU"
    )
