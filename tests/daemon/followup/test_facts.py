"""Which changes of a state are endings, and what is told of them."""

from typing import Any

import pytest

from daemon.followup.facts import Standing, ended_so, environment_of
from daemon.queue.entry import Entry
from daemon.wire.protocol import JobRecord
from presets.runs.run_view import RunView


@pytest.mark.parametrize(
    ("before", "now", "event"),
    [
        (("running", 1), ("done", 1), "done"),
        (("starting", 1), ("failed", 1), "failed"),
        (("stopping", 1), ("stopped", 1), "stopped"),
        (("stopping", 1), ("cancelled", 1), "stopped"),
        (("starting", 1), ("stopped", 0), None),  # asked for before it was launched
        (("running", 1), ("queued", 1), "restarted"),
        (("starting", 1), ("queued", 1), "restarted"),
        (("running", 1), ("starting", 2), "restarted"),
        (("starting", 1), ("starting", 2), "restarted"),
        (("starting", 1), ("queued", 0), None),  # it was never launched
        (("starting", 1), ("starting", 1), None),  # nor here, and its turn came again at once
        (("starting", 1), ("running", 1), None),
        (("running", 1), ("stopping", 1), None),
        (("queued", 1), ("cancelled", 1), None),
        (("queued", 0), ("stopped", 0), None),
        (("queued", 0), ("starting", 1), None),
        (("failed", 1), ("queued", 1), None),
        (None, ("queued", 0), None),
        (("done", 1), ("done", 1), None),
    ],
)
def test_endings(before: tuple[Any, int] | None, now: tuple[Any, int], event: str | None):
    assert ended_so(Standing(*before) if before else None, Standing(*now)) == event


def test_the_environment_of_a_command():
    record = JobRecord(
        id=3, name="orbit", job_path="/j/orbit.toml", out="/r", gpus=[0], state="done", step=90, steps=90, attempt=2,
        outcome="a\0b", started_at=10.0, finished_at=70.4,
    )  # fmt: skip
    view = RunView(files=["orbit_high_noise.safetensors", "orbit_low_noise.safetensors"])
    assert environment_of(Entry(record=record, order=1), "done", view, running=1, queued=2) == {
        "WANLORA_JOB": "orbit",
        "WANLORA_ID": "3",
        "WANLORA_EVENT": "done",
        "WANLORA_STATE": "done",
        "WANLORA_OUTCOME": "ab",
        "WANLORA_RUN_DIR": "/r/orbit",
        "WANLORA_JOB_FILE": "/j/orbit.toml",
        "WANLORA_STEP": "90",
        "WANLORA_STEPS": "90",
        "WANLORA_ATTEMPT": "2",
        "WANLORA_SECONDS": "60",
        "WANLORA_FILES": "/r/orbit/orbit_high_noise.safetensors\n/r/orbit/orbit_low_noise.safetensors",
        "WANLORA_RUNNING": "1",
        "WANLORA_QUEUED": "2",
    }
