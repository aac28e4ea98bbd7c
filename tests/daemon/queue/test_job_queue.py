"""The pure machine: what each event changes, and what it asks to be done."""

import random

import pytest

from daemon.processes.proc import ProcessId
from daemon.queue import restarts
from daemon.queue.entry import AskStop, AttemptResult, Changed, Entry, Kill, Launch, Terminate
from daemon.queue.job_queue import CANCEL_GRACE, LINGER_GRACE, STOP_GRACE, Queue
from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, RUNNING_STATES, JobRecord
from presets.errors import UserError

NOW = 1000.0


def record(job: int, gpus: list[int] | None = None, name: str = "") -> JobRecord:
    return JobRecord(
        id=job, name=name or f"job{job}", job_path=f"/j/{job}.toml", out="/runs", gpus=gpus or [0], state="queued"
    )


def launched(queue: Queue, job: int, *, now: float = NOW) -> None:
    queue.launched(job, ProcessId(100 + job, 1, "boot"), now, first_seq=0, oom_kills=0)
    queue.started(job)


def queue_of(*gpus: list[int]) -> Queue:
    """Jobs 1, 2, ... submitted in this order; those that may run are running."""
    queue = Queue([])
    for job, indices in enumerate(gpus, 1):
        if Launch(job) in queue.submit(record(job, indices), NOW):
            launched(queue, job)
    return queue


def states(queue: Queue) -> list[str]:
    return [e.record.state for e in queue.entries.values()]


def daemon_paths(queue: Queue) -> list[int]:
    return [e.record.position for e in queue.entries.values()]


@pytest.mark.parametrize(
    ("gpus", "expected", "positions"),
    [
        ([[0]], ["running"], [0]),
        ([[0], [0], [0]], ["running", "queued", "queued"], [0, 1, 2]),
        ([[0], [1]], ["running", "running"], [0, 0]),
        ([[0], [0], [1], [1]], ["running", "queued", "running", "queued"], [0, 1, 0, 1]),
        ([[0, 1], [0], [1], [2]], ["running", "queued", "queued", "running"], [0, 1, 1, 0]),
        # the last must not overtake the job for both GPUs
        ([[0], [0, 1], [1]], ["running", "queued", "queued"], [0, 1, 2]),
        ([[0, 0]], ["running"], [0]),
    ],
)
def test_a_job_runs_when_it_heads_the_queue_of_each_of_its_gpus(gpus, expected, positions):
    queue = queue_of(*gpus)
    assert states(queue) == expected and daemon_paths(queue) == positions


def test_a_launch_is_saved_before_it_is_done():
    queue = Queue([])
    instructions = queue.submit(record(1), NOW)
    assert instructions.index(Changed(1)) < instructions.index(Launch(1))
    assert queue.entries[1].record.attempt == 1 and queue.entries[1].record.state == "starting"


def test_the_next_job_starts_when_the_gpu_is_free():
    queue = queue_of([0], [0], [0])
    instructions = queue.ended(1, AttemptResult("done"), NOW + 5)
    assert Launch(2) in instructions and Launch(3) not in instructions
    assert states(queue) == ["done", "starting", "queued"] and daemon_paths(queue) == [0, 0, 1]
    done = queue.entries[1].record
    assert (done.finished_at, done.pid) == (NOW + 5, 0)


@pytest.mark.parametrize(
    "result", [AttemptResult("done"), AttemptResult("stopped", "why"), AttemptResult("failed", "cause")]
)
def test_an_end_is_what_the_result_says(result):
    queue = queue_of([0])
    queue.ended(1, result, NOW)
    assert (queue.entries[1].record.state, queue.entries[1].record.outcome) == (result.state, result.outcome)


def test_a_launch_that_fails_frees_the_gpu():
    queue = Queue([])
    queue.submit(record(1), NOW)
    queue.submit(record(2), NOW)
    assert Launch(2) in queue.ended(1, AttemptResult("failed", "no such program"), NOW)


# --- stop, cancel, resume -------------------------------------------------------------------------------------


def test_stop_asks_once_however_often_it_is_said():
    queue = queue_of([0])
    assert queue.stop(1, NOW) == [Changed(1), AskStop(1)]
    assert queue.stop(1, NOW + 1) == []
    assert queue.entries[1].record.state == "stopping"
    queue.ended(1, AttemptResult("stopped", "stopped on request"), NOW + 2)
    assert queue.stop(1, NOW + 3) == [] and states(queue) == ["stopped"]


def test_a_queued_job_stops_at_once_and_comes_back_with_resume():
    queue = queue_of([0], [0], [0])
    queue.stop(2, NOW)
    assert states(queue) == ["running", "stopped", "queued"] and daemon_paths(queue) == [0, 0, 1]
    queue.resume(2, NOW)
    assert states(queue) == ["running", "queued", "queued"] and daemon_paths(queue) == [0, 2, 1]
    assert not queue.entries[2].resume  # it has nothing to go on from


def test_a_stop_is_repeated_as_sigterm_only_when_nothing_moves():
    queue = queue_of([0])
    queue.stop(1, NOW)
    assert queue.tick(NOW + STOP_GRACE - 1, {1: NOW}) == []
    assert queue.tick(NOW + STOP_GRACE, {1: NOW + 600}) == []  # a long save, with events
    assert queue.tick(NOW + 600 + STOP_GRACE - 1, {1: NOW + 600}) == []
    assert queue.tick(NOW + 600 + STOP_GRACE, {1: NOW + 600}) == [Terminate(1)]
    assert queue.tick(NOW + 601 + STOP_GRACE, {1: NOW + 600}) == []


def test_cancel_terminates_then_kills_and_kills_again():
    queue = queue_of([0])
    assert queue.cancel(1, NOW) == [Changed(1), Terminate(1)]
    assert queue.cancel(1, NOW) == []
    assert queue.tick(NOW + CANCEL_GRACE - 0.1, {1: NOW}) == []
    assert queue.tick(NOW + CANCEL_GRACE, {1: NOW}) == [Kill(1)]
    assert queue.tick(NOW + CANCEL_GRACE + 0.1, {1: NOW}) == []
    assert queue.tick(NOW + 2 * CANCEL_GRACE, {1: NOW}) == [Kill(1)]
    queue.ended(1, AttemptResult("failed", "killed"), NOW)
    assert queue.entries[1].record.state == "cancelled"
    assert queue.tick(NOW + 99, {}) == []


def test_a_stop_can_be_hardened_into_a_cancel_but_not_softened():
    queue = queue_of([0])
    queue.stop(1, NOW)
    assert Terminate(1) in queue.cancel(1, NOW)
    assert queue.stop(1, NOW) == []
    queue.ended(1, AttemptResult("stopped", "SIGTERM received"), NOW)
    assert states(queue) == ["cancelled"]


def test_a_job_done_before_the_cancel_reached_it_is_done():
    queue = queue_of([0])
    queue.cancel(1, NOW)
    queue.ended(1, AttemptResult("done"), NOW)
    assert states(queue) == ["done"]


def test_a_queued_job_is_cancelled_at_once():
    queue = queue_of([0], [0])
    queue.cancel(2, NOW)
    assert states(queue) == ["running", "cancelled"] and queue.cancel(2, NOW) == []
    assert queue.entries[2].record.outcome == "Cancelled before it began."


def test_a_queued_job_that_would_go_on_with_a_run_keeps_its_checkpoints_when_cancelled():
    queue = queue_of([0], [0])
    queue.ended(1, AttemptResult("stopped"), NOW)
    queue.resume(1, NOW)
    queue.submit(record(3), NOW, resume=True)  # a run that another began
    for job in (1, 3):
        queue.cancel(job, NOW)
        assert queue.entries[job].record.outcome == "Cancelled. Its checkpoints stay in the run folder."


@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_resume_queues_at_the_end_and_goes_on_from_the_checkpoint(end):
    queue = queue_of([0], [0], [0])
    queue.ended(1, AttemptResult(end, "x"), NOW)
    launched(queue, 2)
    queue.resume(1, NOW)
    assert states(queue) == ["queued", "running", "queued"] and daemon_paths(queue) == [2, 0, 1]
    assert queue.entries[1].resume and queue.entries[1].record.outcome == ""
    queue.ended(2, AttemptResult("done"), NOW)
    launched(queue, 3)
    assert Launch(1) in queue.ended(3, AttemptResult("done"), NOW)
    assert queue.entries[1].record.attempt == 2


@pytest.mark.parametrize("verb", ["stop", "cancel", "resume"])
def test_what_makes_no_sense_is_refused_and_changes_nothing(verb):
    queue = queue_of([0], [1])
    queue.ended(2, AttemptResult("done"), NOW)
    with pytest.raises(UserError, match="is done, there is nothing to"):
        getattr(queue, verb)(2, NOW)
    with pytest.raises(UserError, match="is running"):
        queue.resume(1, NOW)
    assert states(queue) == ["running", "done"]


def test_one_run_folder_belongs_to_one_live_job():
    queue = queue_of([0])
    with pytest.raises(UserError, match=r"job 1 \(running\) already uses the run folder /runs/same"):
        queue.entries[1].record.name = "same"
        queue.submit(record(2, [1], name="same"), NOW)
    queue.ended(1, AttemptResult("stopped", ""), NOW)
    queue.submit(record(2, [1], name="same"), NOW)
    with pytest.raises(UserError, match="job 2"):
        queue.resume(1, NOW)


def test_a_name_means_the_live_job_else_the_newest():
    queue = Queue([])
    for job, state in ((1, "stopped"), (2, "running"), (3, "failed"), (4, "done")):
        queue.entries[job] = Entry(record=record(job, name="same" if job < 4 else "5"), order=job)
        queue.entries[job].record.state = state
    assert queue.find("same").record.id == 2
    queue.entries[2].record.state = "done"
    assert queue.find("same").record.id == 3
    assert queue.find("1").record.id == 1 and queue.find("5").record.id == 4
    for nobody in ("6", "", "same ", "9" * 400, "\u0665"):
        with pytest.raises(UserError, match="no such job"):
            queue.find(nobody)


# --- trainers -------------------------------------------------------------------------------------------------


def test_a_trainer_that_said_its_last_word_and_stays_is_killed():
    queue = queue_of([0])
    queue.said_last_word(1, NOW)
    assert queue.tick(NOW + LINGER_GRACE - 1, {1: NOW}) == []
    assert queue.tick(NOW + LINGER_GRACE, {1: NOW + LINGER_GRACE}) == [Kill(1)]


def test_a_restarted_daemon_repeats_what_was_asked_for():
    for verb, repeated in (("stop", AskStop(1)), ("cancel", Terminate(1))):
        old = queue_of([0])
        getattr(old, verb)(1, NOW)
        new = Queue(list(old.entries.values()))
        assert new.adopted(1, NOW + 10) == [repeated]
    assert queue_of([0]).adopted(1, NOW) == []


def test_a_launch_that_never_happened_keeps_its_place():
    old = Queue([])
    old.submit(record(1), NOW)
    old.submit(record(2), NOW)
    new = Queue(list(old.entries.values()))
    assert Launch(1) in new.never_launched(1, NOW)
    assert states(new) == ["starting", "queued"] and new.entries[1].record.attempt == 1


def test_a_launch_that_never_happened_and_was_stopped_is_stopped():
    old = Queue([])
    old.submit(record(1), NOW)
    old.stop(1, NOW)
    new = Queue(list(old.entries.values()))
    new.never_launched(1, NOW)
    assert states(new) == ["stopped"] and new.entries[1].record.attempt == 0


# --- reboot ---------------------------------------------------------------------------------------------------


def rebooted() -> Queue:
    queue = queue_of([0], [0], [1])
    queue.entries[1].record.step = 70
    restarts.broken_off(queue, NOW + 100, {})
    return queue


def test_after_a_reboot_nothing_starts_by_itself():
    queue = rebooted()
    assert states(queue) == ["stopped", "queued", "stopped"]
    assert "The machine restarted while this job ran at step 70" in queue.entries[1].record.outcome
    assert "wanlora resume job1" in queue.entries[1].record.outcome
    assert queue.paused and queue.entries[2].record.outcome == queue.paused
    assert queue.fill(NOW) == []
    again = Queue(list(queue.entries.values()), paused=queue.paused)  # and another daemon keeps to it
    assert again.fill(NOW) == [] and again.tick(NOW, {}) == []


def test_after_a_reboot_a_resume_starts_that_job_and_a_new_one_starts_beside_what_waits():
    queue = rebooted()
    assert Launch(2) in queue.resume(2, NOW)
    assert not queue.paused and queue.entries[2].record.outcome == ""
    queue = rebooted()
    instructions = queue.resume(1, NOW)
    assert Launch(1) in instructions and Launch(2) not in instructions
    assert queue.paused and queue.entries[2].record.outcome == queue.paused
    queue = rebooted()
    for job, gpu in ((4, 0), (5, 7)):  # also on the GPU that the paused one waits for
        assert queue.place_for(record(job, [gpu])) == 0
        instructions = queue.submit(record(job, [gpu]), NOW)
        assert Launch(job) in instructions and Launch(2) not in instructions
    assert states(queue) == ["stopped", "queued", "stopped", "starting", "starting"]
    assert queue.paused and queue.entries[2].record.outcome == queue.paused
    restarts.resume_all(queue, NOW)
    assert [e.record.id for e in queue.queued()] == [1, 2] and not queue.paused  # what was broken off comes first


def test_what_was_done_before_the_reboot_is_done():
    queue = queue_of([0], [1])
    restarts.broken_off(queue, NOW, {2: AttemptResult("done")})
    assert states(queue) == ["stopped", "done"]


def test_a_reboot_without_queued_jobs_pauses_nothing():
    queue = queue_of([0])
    restarts.broken_off(queue, NOW, {})
    assert not queue.paused and Launch(2) in queue.submit(record(2), NOW)


# --- whatever happens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_no_history_breaks_the_rules(seed):
    rng = random.Random(seed)
    queue, now, restarted = Queue([]), NOW, 0
    for _ in range(200):
        now += rng.random() * 5
        job = rng.randint(1, max(1, len(queue.entries)))
        before = {e.record.id: e.record.state for e in queue.entries.values()}
        act = rng.choice(
            ["submit", "stop", "cancel", "resume", "end", "end", "tick", "launch", "launch", "restart", "reboot"]
        )
        try:
            if act == "submit":
                new = len(queue.entries) + 1
                joining = record(new, rng.sample(range(3), rng.randint(1, 3)))
                foretold = queue.place_for(joining)
                instructions = queue.submit(joining, now)
                assert joining.position == foretold
            elif not queue.entries:
                continue
            elif act in ("stop", "cancel", "resume"):
                instructions = getattr(queue, act)(job, now)
            elif act == "end" and before[job] in RUNNING_STATES:
                instructions = queue.ended(job, AttemptResult(rng.choice(["done", "stopped", "failed"])), now)
            elif act == "launch" and before[job] == "starting" and queue.entries[job].trainer is None:
                instructions = queue.launched(
                    job, ProcessId(job, 0, "b"), now, first_seq=0, oom_kills=0
                ) + queue.started(job)
            elif act == "restart":
                queue = Queue(list(queue.entries.values()), paused=queue.paused)
                restarted += 1
                instructions = []
                for entry in queue.running():
                    instructions += (
                        queue.adopted(entry.record.id, now)
                        if entry.trainer
                        else queue.never_launched(entry.record.id, now)
                    )
            elif act == "reboot" and rng.random() < 0.2:
                instructions = restarts.broken_off(queue, now, {})
            else:
                instructions = queue.tick(now, {e.record.id: now - 10 for e in queue.running()})
        except UserError:
            assert {e.record.id: e.record.state for e in queue.entries.values()} == before
            continue
        after = {e.record.id: e.record.state for e in queue.entries.values()}
        said = {i.job for i in instructions if isinstance(i, Changed)}
        assert {j for j in after if before.get(j) != after[j]} <= said  # no change goes unsaved and untold
        held = [gpu for e in queue.running() for gpu in e.record.gpus]
        assert len(held) == len(set(held))
        assert all((e.record.position > 0) == (e.record.state == "queued") for e in queue.entries.values())
        assert all(e.record.state in LIVE_STATES | ENDED_STATES for e in queue.entries.values())
        if queue.queued() and not queue.paused:  # the head of the queue is held up by something real
            assert set(queue.queued()[0].record.gpus) & set(held)
    assert restarted
