"""How a job stands, and when it starts and ends, in words."""

import time

import pytest

from daemon.wire.protocol import JobRecord
from wanlora_tui.output.queue_words import clock_time, expected, from_now, standing

NOON = time.mktime((2026, 1, 14, 12, 0, 0, 0, 0, -1))  # a Wednesday; no clock is changed in the days after it


def job(state: str, **more) -> JobRecord:
    return JobRecord(id=1, name="a", job_path="/a", out="/r", gpus=[0], state=state, **more)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (job("queued", position=2), "… queued (2)"),
        (job("queued", position=1, held="On hold."), "‖ held"),
        (job("queued", position=1, after=[3, 4]), "… queued, after #3, #4"),
        (job("running"), "► running"),
        (job("running", doing="paused"), "► running, paused"),
        (job("done"), "✓ done"),
        (job("stopped", after=[3]), "■ stopped"),
    ],
)
def test_standing(record, words):
    assert standing(record) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "soon"), (89, "soon"), (90, "in ~2 min"), (5000, "in ~83 min"), (7200, "in ~2 h"), (3 * 86400, "in ~3 days")],
)
def test_from_now(seconds, words):
    assert from_now(seconds) == words


@pytest.mark.parametrize(
    ("hours", "words"), [(2.5, "14:30"), (13, "Thu 01:00"), (24 * 5, "Mon 12:00"), (24 * 7, "21 Jan 12:00")]
)
def test_the_clock_names_the_day_unless_it_is_today(hours, words):
    assert clock_time(NOON + hours * 3600, NOON) == words


def test_expected():
    assert expected(job("queued", starts_at=NOON + 7200, ends_at=NOON + 9000), NOON) == "starts in ~2 h, ends 14:30"
    assert expected(job("queued", starts_at=NOON + 7200), NOON) == "starts in ~2 h"
    assert expected(job("running", starts_at=NOON - 7200, ends_at=NOON + 9000), NOON) == "ends 14:30"
    assert expected(job("running", ends_at=NOON - 60), NOON) == "ends 12:00"
    assert expected(job("queued"), NOON) == ""
