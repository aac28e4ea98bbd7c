"""What is offered of a run as it stands, action by action and state by state; and that its last word counts at once."""

import pytest

from daemon.wire.protocol import JobRecord
from presets.runs.run_view import Phase, RunView, apply_event
from presets.runs.time_left import ToCome
from tests.helpers.interface.runs import Tape
from wanlora_tui.feeds.offers import COMMANDS, as_told, offer

BEGAN = 1_790_000_000.0


def record(state: str, **more) -> JobRecord:
    return JobRecord(
        id=1, name="a", job_path="/j", out="/r", gpus=[0], state=state, pid=7, started_at=BEGAN, attempt=1, **more
    )


def view(phase: str = "training", *, last: str = "", prompts: int = 1, step: int = 5, saved: bool = True) -> RunView:
    tape = Tape()
    tape.start()
    found = RunView()
    for n in range(1, step + 1):
        tape.step(n)
    if saved:
        tape.checkpoint(step)
    match last:
        case "stopped":
            tape.add("stopped", step=step, path="", why="asked")
        case "failed":
            tape.add("failed", cause="out of memory", next="less")
        case "done":
            tape.add("done", step=step, files=["a"], seconds=1.0)
    for event in tape.events:
        apply_event(found, event)
    if not last:
        found.phase = Phase(phase)
    found.to_come = ToCome(part=(1, 2), switch_every=10, prompts=prompts, first=True)
    return found


RUNNING = {"stop_run", "change_run", "save_now", "sample_now"}
CASES = {
    "running": (record("running"), view(), RUNNING),
    "starting": (record("starting"), RunView(), {"stop_run", "sample_now"}),
    "before the first step": (record("running"), view("loading", step=0, saved=False), RUNNING - {"save_now"}),
    "saving": (record("running"), view("saving"), RUNNING - {"save_now"}),
    "sampling": (record("running"), view("sampling"), RUNNING - {"sample_now"}),
    "paused": (record("running"), view("paused"), {"stop_run", "change_run"}),
    "without prompts": (record("running"), view(prompts=0), RUNNING - {"sample_now"}),
    "stopping": (record("stopping"), view(), set()),
    "said stopped": (record("running"), view(last="stopped"), set()),
    "said done": (record("stopping"), view(last="done"), set()),
    "said failed": (record("running"), view(last="failed"), set()),
    "queued": (record("queued"), RunView(), set()),
    "held": (record("queued", held="on hold"), RunView(), set()),
    "queued, waits for a GPU": (record("queued", waiting="others use it"), RunView(), {"resume_run"}),
    "restarts": (record("queued", restart_at=BEGAN + 9, restarts=1, most_restarts=3), view(), {"resume_run"}),
    "stopped": (record("stopped"), view(last="stopped"), {"resume_run", "go_back"}),
    "failed at once": (record("failed"), RunView(), {"resume_run"}),
    "cancelled": (record("cancelled"), view(), {"resume_run", "go_back"}),
    "done": (record("done"), view(last="done"), {"go_back"}),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_can_work_is_offered(name: str):
    of, seen, offered = CASES[name]
    assert {action for action in COMMANDS if offer(action, of, seen)} == offered


def test_what_is_under_way_will_be_possible_again():
    assert offer("save_now", record("running"), view("saving")) is None
    assert offer("sample_now", record("running"), view("sampling")) is None
    assert offer("resume_run", record("running"), view(last="stopped")) is None
    assert offer("sample_now", record("running"), view(prompts=0)) is False


def test_there_is_nothing_to_compare_without_previews():
    assert not offer("compare", record("running"), view())
    assert offer("copy_path", record("queued"), RunView()) is True


def test_the_last_word_counts_before_the_daemon_has_seen_the_end():
    told = as_told(record("running"), view(last="failed"))
    assert (told.state, told.outcome) == ("failed", "out of memory. less.")
    assert as_told(record("running"), view()).state == "running"
    later = record("running")
    later.started_at = BEGAN + 1e6  # another attempt, which has said nothing yet
    assert as_told(later, view(last="failed")).state == "running"
    assert as_told(record("queued"), view(last="failed")).state == "queued"


def test_a_resumed_run_that_loads_is_not_told_to_have_ended_as_the_attempt_before():
    tape, found = Tape(), view(last="stopped")
    tape.attempt, tape.events = 2, [None] * found.last_seq  # type: ignore[list-item]
    apply_event(found, tape.add("phase", name="loading", done=0, total=3, text="checking the job"))
    resumed = record("starting")
    resumed.started_at = found.updated_at - 1
    assert as_told(resumed, found).state == "starting"
    assert {action for action in COMMANDS if offer(action, resumed, found)} >= {"stop_run"}
    assert not offer("resume_run", resumed, found)


def test_a_run_whose_end_nobody_noted_has_ended_with_its_last_event():
    seen = view(last="done")
    assert as_told(record("done"), seen).finished_at == seen.updated_at
    assert as_told(record("done", finished_at=7.0), seen).finished_at == 7.0
