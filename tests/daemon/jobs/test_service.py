"""What the service does at each tick, without a trainer."""

import time
from pathlib import Path

import pytest

from daemon.jobs.service import Service
from daemon.queue.entry import Entry
from daemon.wire.paths import daemon_paths, make_private
from daemon.wire.protocol import JobRecord, PlannedTime


async def test_estimates_are_times_of_day(short_dir: Path, monkeypatch: pytest.MonkeyPatch):
    make_private(daemon_paths(short_dir).state)
    service = Service(daemon_paths(short_dir), ["true"], epoch="e", settings=short_dir / "settings.toml")
    record = JobRecord(id=1, name="a", job_path="/j", out="/runs", gpus=[0], state="queued", steps=100)
    service.queue.entries[1] = Entry(record=record, order=1, planned=PlannedTime(step=1.0))
    monkeypatch.setattr(service.queue, "tick", lambda now, events: [])  # it starts nothing
    service.tick()
    assert record.starts_at == pytest.approx(time.time(), abs=60)
    assert record.ends_at == pytest.approx(time.time() + 100, abs=60)
    service.close()
