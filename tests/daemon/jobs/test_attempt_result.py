"""What an attempt came to, how far it came, and whether another one may go better."""

import msgspec
import pytest

from daemon.events.event_tail import Tail
from daemon.jobs.attempt_result import exit_noted, last_word, progress_of, result_of, with_reasons
from daemon.queue.entry import AttemptResult, Entry
from daemon.queue.restarts import Progress
from daemon.wire.protocol import JobRecord
from presets.runs.events import Event

STEP = {
    "expert": "high_noise", "loss": 0.1, "lr": 1e-4, "grad_norm": 0.1, "timestep": 900.0, "seconds": {"total": 1.0},
    "vram_gib": 0.0, "ram_gib": 0.0, "clips": [],
}  # fmt: skip


def entry(first_seq: int = 0, **values) -> Entry:
    record = JobRecord(id=1, name="one", job_path="/j", out="/runs", gpus=[0], state="running", attempt=1)
    return Entry(record=record, order=1, first_seq=first_seq, **values)


def tail_of(tmp_path, *events: tuple[str, dict]) -> Tail:
    lines = [
        msgspec.json.encode(Event(seq=seq, time=1.0, run="r", attempt=1, kind=kind, data=data)) + b"\n"
        for seq, (kind, data) in enumerate(events, 1)
    ]
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
    tail = Tail(tmp_path)
    tail.poll()
    return tail


def started(at: int = 0) -> tuple[str, dict]:
    return "started", {"name": "one", "job": {}, "plan": "", "device": "", "steps": 20, "resumed_from": at}


def step(at: int) -> tuple[str, dict]:
    return "step", {"step": at, **STEP}


def checkpoint(at: int) -> tuple[str, dict]:
    return "checkpoint", {"step": at, "path": "c", "sha256": "0"}


@pytest.mark.parametrize(
    ("events", "first_seq", "expected"),
    [
        ([], 0, Progress()),
        ([started()], 0, Progress()),
        ([started(), step(1)], 0, Progress(stepped=True)),
        ([started(), step(10), checkpoint(10)], 0, Progress(stepped=True, saved=True, resumable=True)),
        ([started(), step(10), checkpoint(10), started(10)], 3, Progress(resumable=True)),
        ([started(), step(10), checkpoint(10), started(10), step(11)], 3, Progress(stepped=True, resumable=True)),
        ([started(), step(10), checkpoint(10), step(11)], 4, Progress(resumable=True)),  # it has not begun yet
    ],
)
def test_progress_is_what_this_attempt_has_added(tmp_path, events, first_seq, expected):
    assert progress_of(entry(first_seq), tail_of(tmp_path, *events)) == expected


@pytest.mark.parametrize(("user", "may_pass"), [({"user": True}, False), ({"user": False}, True), ({}, False)])
def test_a_failure_may_pass_when_its_trainer_says_that_it_is_not_the_user_s(tmp_path, user, may_pass):
    tail = tail_of(tmp_path, ("failed", {"cause": "CUDA error", "next": "Look at the log", **user}))
    assert last_word(entry(), tail) == AttemptResult("failed", "CUDA error. Look at the log.", "CUDA error.", may_pass)


@pytest.mark.parametrize("code", [-9, -11, 3, None])
def test_an_end_without_a_word_may_pass(tmp_path, code):
    result = result_of(entry(), tail_of(tmp_path), exit_code=code, log=tmp_path / "log")
    assert result.state == "failed" and result.may_pass and result.outcome.startswith(result.cause)


def test_a_stop_is_no_failure(tmp_path):
    result = last_word(entry(), tail_of(tmp_path, ("stopped", {"step": 1, "path": "", "why": "SIGTERM received"})))
    assert result is not None and result.state == "stopped" and not result.may_pass


def test_a_final_failure_says_how_often_it_was_tried_and_what_was_lacking():
    end = AttemptResult("failed", "killed", "killed", may_pass=True)
    assert with_reasons(entry(), end) == end
    assert with_reasons(entry(restarts=1), end).outcome.startswith("It was restarted once without")
    assert with_reasons(entry(restarts=3), end).outcome.startswith("It was restarted 3 times without")
    assert "HF_TOKEN of the shell" in with_reasons(entry(lacking=["HF_TOKEN"]), end).outcome
    assert with_reasons(entry(restarts=3), AttemptResult("done")).outcome == ""


def test_an_exit_code_that_the_launcher_noted_is_found(tmp_path):
    log = tmp_path / "log"
    assert not exit_noted(log)
    log.write_text("step 1\n")
    assert not exit_noted(log)
    log.write_text("step 1\nE1126 torch/distributed/elastic/multiprocessing/api.py:986] failed (exitcode: -9) rank 0\n")
    assert exit_noted(log)
