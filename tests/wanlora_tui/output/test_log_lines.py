"""A log by days and kinds."""

import time
from collections.abc import Iterator

import pytest

from presets.runs.run_view import LogLine
from wanlora_tui.output.log_lines import KINDS, text_lines, zone_of

DAY = 86400.0
AT = 1_790_000_000.0


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


LINES = [
    LogLine(AT, "started", "attempt 1 started"),
    LogLine(AT + 60, "checkpoint", "checkpoint a"),
    LogLine(AT + DAY, "failed", "failed: out of memory\nTraceback\n  at \x1b[31mhere"),
]


def test_each_day_is_named_and_the_zone_once():
    found = list(text_lines(LINES, "all"))
    days = [line for line in found if line.startswith("──")]
    assert len(days) == 2 and days[0].endswith("local time, XYZ, UTC+05:30") and "local time" not in days[1]
    assert found[2].endswith("◆ checkpoint a")


def test_a_text_of_several_lines_goes_on_below_and_controls_nothing():
    found = list(text_lines(LINES, "all"))
    assert found[-2].strip() == "Traceback" and "\x1b" not in found[-1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_shows_its_own_alone(kind: str):
    found = [line for line in text_lines(LINES, kind) if not line.startswith(("──", " "))]
    assert len(found) == sum(not KINDS[kind] or line.kind in KINDS[kind] for line in LINES)


def test_utc_is_named_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert zone_of(AT) == "UTC+00:00"
