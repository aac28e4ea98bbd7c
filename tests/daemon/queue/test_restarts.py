"""What keeps a job waiting for more than its turn, in the pure machine."""

import pytest

from daemon.processes.proc import ProcessId
from daemon.queue import restarts
from daemon.queue.entry import AttemptResult, Changed, Kill, Launch
from daemon.queue.job_queue import CANCEL_GRACE, LINGER_GRACE, Queue
from daemon.queue.restarts import Progress, restart_delay
from daemon.wire.protocol import JobRecord
from presets.errors import UserError

NOW, WALL = 1000.0, 1.7e9
KILLED = AttemptResult("failed", "killed. Resume with ...", "killed.", may_pass=True)
FURTHER = Progress(stepped=True, saved=True, resumable=True)
STEPS_ONLY = Progress(stepped=True, resumable=True)
NOTHING = Progress(resumable=True)


def queue_of(*gpus: list[int]) -> Queue:
    """Jobs 1, 2, ... submitted in this order; those that may run are running."""
    queue = Queue([])
    for job, indices in enumerate(gpus, 1):
        record = JobRecord(id=job, name=f"job{job}", job_path="/j", out="/runs", gpus=indices, state="queued")
        if Launch(job) in queue.submit(record, NOW):
            run(queue, job)
    return queue


def run(queue: Queue, job: int) -> None:
    queue.launched(job, ProcessId(100 + job, 1, "boot"), NOW, first_seq=0, oom_kills=0)
    queue.started(job)


def states(queue: Queue) -> str:
    return " ".join(e.record.state for e in queue.entries.values())


def again(queue: Queue) -> Queue:
    """As the next daemon has it."""
    return Queue(list(queue.entries.values()), paused=queue.paused)


# --- a failed attempt -----------------------------------------------------------------------------------------


def delay(queue: Queue, result: AttemptResult = KILLED, progress: Progress = FURTHER, most: int = 3) -> float | None:
    return restart_delay(queue.entries[1], result, progress, most=most, delay=10.0)


def test_a_failure_that_may_pass_after_progress_is_restarted_and_nothing_else():
    queue = queue_of([0])
    assert delay(queue) == 10.0 and delay(queue, progress=STEPS_ONLY) == 10.0
    assert delay(queue, AttemptResult("failed", "bad clip")) is None
    assert delay(queue, AttemptResult("done")) is None
    assert delay(queue, progress=NOTHING) is None
    assert delay(queue, progress=Progress(stepped=True)) is None  # there is no checkpoint to go on from
    assert delay(queue, most=0) is None
    queue.entries[1].no_restart = True
    assert delay(queue) is None
    queue.entries[1].no_restart = False
    queue.stop(1, NOW)
    assert delay(queue) is None


def test_a_lost_gpu_is_a_reason_to_go_on_before_a_step_was_made_and_only_so_often():
    lost = AttemptResult("failed", "lost. Resume with ...", "lost.", may_pass=True, lost=True)
    queue, waits = queue_of([0, 1]), []
    while (wait := delay(queue, lost, NOTHING)) is not None:
        waits.append(wait)
        restarts.back_off(queue, 1, lost, NOW, delay=wait, most=3, saved=False)
        queue.tick(NOW + 1000, {})
        run(queue, 1)
    assert waits == [10.0, 20.0, 40.0]
    assert delay(queue, lost, Progress()) is None  # there is no checkpoint to go on from


def test_restarts_without_a_new_checkpoint_are_counted_and_come_ever_later():
    queue = queue_of([0])
    waits = []
    for progress in (FURTHER, STEPS_ONLY, NOTHING, STEPS_ONLY):
        waits.append(delay(queue, progress=progress))
        if waits[-1] is None:
            break
        restarts.back_off(queue, 1, KILLED, NOW, delay=waits[-1], most=3, saved=progress.saved)
        queue.tick(NOW + 1000, {})
        run(queue, 1)
    assert waits == [10.0, 20.0, 40.0, None]
    assert delay(queue) == 10.0  # a checkpoint that is new starts the count anew
    restarts.back_off(queue, 1, KILLED, NOW, delay=10.0, most=3, saved=True)
    assert queue.entries[1].restarts == 1


def backing_off() -> Queue:
    queue = queue_of([0], [0], [1])
    queue.wall = WALL
    restarts.back_off(queue, 1, KILLED, NOW, delay=10.0, most=3, saved=True)
    return queue


def test_a_job_in_its_back_off_keeps_its_gpu_and_starts_when_it_is_over():
    queue = backing_off()
    record = queue.entries[1].record
    assert states(queue) == "queued queued running" and record.position == 1
    assert (record.restart_at, record.restarts, record.most_restarts) == (NOW + 10 + WALL, 1, 3)
    assert record.outcome == record.waiting == "killed. It continues from its last checkpoint by itself."
    assert queue.tick(NOW + 9.9, {}) == [] and again(queue).fill(NOW + 9) == []
    queue = again(queue)  # a daemon that was restarted meanwhile keeps to it
    assert Launch(1) in queue.tick(NOW + 10, {})
    assert (record.attempt, record.restart_at, record.outcome, queue.entries[1].resume) == (2, 0.0, "", True)
    assert queue.tick(NOW + 11, {}) == []


@pytest.mark.parametrize(("verb", "state"), [("stop", "stopped"), ("cancel", "cancelled")])
def test_stop_and_cancel_end_a_back_off(verb, state):
    queue = backing_off()
    instructions = getattr(queue, verb)(1, NOW)
    assert Launch(2) in instructions and states(queue) == f"{state} starting running"
    assert queue.entries[1].record.restart_at == 0 and queue.tick(NOW + 100, {3: NOW + 100}) == []


def test_resume_ends_a_back_off_by_starting_at_once_and_counts_anew():
    queue = backing_off()
    assert Launch(1) in queue.resume(1, NOW + 1) and queue.entries[1].restarts == 0
    with pytest.raises(UserError, match="is queued, there is nothing to resume"):
        queue.resume(2, NOW)


def test_an_attempt_goes_back_to_an_older_checkpoint_once():
    queue = queue_of([0])
    queue.ended(1, AttemptResult("stopped"), NOW)
    queue.resume(1, NOW, from_step=10, accept_changes=True)
    assert queue.entries[1].from_step == 10
    queue.launched(1, ProcessId(1, 1, "b"), NOW, first_seq=5, oom_kills=0)
    restarts.back_off(queue, 1, KILLED, NOW, delay=1.0, most=3, saved=False)
    assert queue.entries[1].from_step == 10  # it had not come so far
    queue.tick(NOW + 1, {})
    run(queue, 1)
    assert queue.entries[1].from_step is None and queue.entries[1].accept_changes


# --- GPUs that others use -------------------------------------------------------------------------------------


def test_a_job_whose_gpu_is_used_keeps_its_place_and_holds_up_no_other_gpu():
    queue = queue_of([0], [0], [1], [1])
    queue.ended(1, AttemptResult("done"), NOW)
    assert states(queue) == "done starting running queued"
    instructions = restarts.cannot_start(queue, 2, "bob", NOW)
    assert Changed(2) in instructions and states(queue) == "done queued running queued"
    entry = queue.entries[2]
    assert (entry.record.outcome, entry.record.attempt, entry.record.position) == ("bob", 0, 1)
    assert restarts.cannot_start(queue, 2, "bob", NOW) == []
    assert Launch(4) in queue.ended(3, AttemptResult("done"), NOW)
    assert again(queue).fill(NOW) == []
    assert restarts.cannot_start(queue, 2, "carol", NOW) == [Changed(2)] and entry.record.outcome == "carol"
    assert entry.record.waiting == "carol"
    assert Launch(2) in restarts.can_start(queue, 2, NOW) and entry.record.outcome == "" == entry.record.waiting
    assert restarts.can_start(queue, 2, NOW) == []


def test_a_job_that_waits_for_its_gpu_is_started_anyway_or_taken_away():
    queue = queue_of([0])
    queue.ended(1, AttemptResult("stopped"), NOW)
    queue.resume(1, NOW)
    restarts.cannot_start(queue, 1, "bob", NOW)
    assert Launch(1) in queue.resume(1, NOW, anyway=True) and queue.entries[1].anyway
    restarts.cannot_start(queue, 1, "bob", NOW)
    queue.stop(1, NOW)
    assert states(queue) == "stopped" and restarts.can_start(queue, 1, NOW) == []


def test_what_goes_before_all_others_still_does_after_its_gpu_was_used():
    queue = backing_off()
    queue.set_priority(2, 5, NOW)
    assert Launch(1) in queue.tick(NOW + 10, {}) and queue.entries[1].record.first
    assert Launch(2) not in restarts.cannot_start(queue, 1, "bob", NOW + 10)
    assert [e.record.id for e in queue.queued()] == [1, 2] and Launch(1) in restarts.can_start(queue, 1, NOW + 11)
    run(queue, 1)
    assert not queue.entries[1].record.first
    queue.ended(1, AttemptResult("stopped"), NOW)
    queue.resume(1, NOW)
    assert [e.record.id for e in queue.queued()] == [1]
    assert not queue.entries[1].record.first


# --- a restart of the machine ---------------------------------------------------------------------------------


def test_what_a_restart_broke_off_comes_first_and_alone():
    queue = queue_of([0], [1], [0], [1])
    restarts.broken_off(queue, NOW, {}, what="The container restarted")
    assert states(queue) == "stopped stopped queued queued"
    assert queue.entries[1].record.outcome.startswith("The container restarted while this job ran. Resume")
    assert "wanlora resume --all" in queue.entries[3].record.outcome
    queue = again(queue)
    instructions = queue.resume(2, NOW)
    assert Launch(2) in instructions and states(queue) == "stopped starting queued queued"
    assert Launch(4) not in queue.ended(2, AttemptResult("done"), NOW)  # the others still wait
    instructions = restarts.resume_all(queue, NOW)
    assert Launch(1) in instructions and Launch(4) in instructions and not queue.paused
    assert states(queue) == "starting done queued starting" and queue.entries[1].resume


def test_by_choice_what_a_restart_broke_off_goes_on_by_itself_before_the_others():
    queue = queue_of([0], [1], [0], [1])
    queue.entries[2].order = 99
    instructions = restarts.broken_off(queue, NOW, {}, most=3)
    assert {Launch(1), Launch(2)} <= set(instructions) and not queue.paused
    assert states(queue) == "starting starting queued queued"
    assert queue.entries[1].order < queue.entries[2].order < queue.entries[3].order


def test_a_job_that_takes_the_machine_down_each_time_is_not_started_for_ever():
    queue = queue_of([0])
    for _ in range(3):
        assert Launch(1) in restarts.broken_off(queue, NOW, {}, most=3)
        run(queue, 1)
    assert Launch(1) in restarts.broken_off(queue, NOW, {}, most=3, gained=frozenset({1}))  # it got further
    for _ in range(2):
        run(queue, 1)
        restarts.broken_off(queue, NOW, {}, most=3)
    run(queue, 1)
    restarts.broken_off(queue, NOW, {}, most=3)
    assert states(queue) == "stopped" and "That was so 4 times" in queue.entries[1].record.outcome
    assert Launch(1) in queue.resume(1, NOW) and queue.entries[1].restarts == 0


@pytest.mark.parametrize("most", [None, 3])
def test_what_the_user_was_ending_when_the_machine_restarted_is_ended(most):
    queue = queue_of([0], [1], [2])
    queue.stop(1, NOW)
    queue.cancel(2, NOW)
    restarts.broken_off(queue, NOW, {3: AttemptResult("done")}, most=most)
    assert states(queue) == "stopped cancelled done"
    assert restarts.resume_all(queue, NOW) == [] and states(queue) == "stopped cancelled done"


@pytest.mark.parametrize("most", [None, 3])
def test_a_job_that_was_to_be_restarted_counts_as_broken_off(most):
    queue = backing_off()
    restarts.broken_off(queue, NOW, {}, most=most)
    assert states(queue) == ("starting queued starting" if most else "stopped queued stopped")
    assert queue.entries[1].restart_due == 0 == queue.entries[1].record.restart_at
    assert most or "while this job was to be restarted" in queue.entries[1].record.outcome


@pytest.mark.parametrize("most", [None, 3])
def test_a_job_that_its_user_holds_is_held_after_a_restart_of_the_machine(most):
    queue = backing_off()
    queue.hold(1, NOW)
    restarts.broken_off(queue, NOW, {}, most=most)
    assert Launch(1) not in restarts.resume_all(queue, NOW) and queue.entries[1].record.held
    queue.release(1, NOW)
    assert not queue.entries[1].record.held and queue.entries[1].record.position == 1


def test_who_stops_a_job_that_was_broken_off_does_not_want_it_back():
    queue = queue_of([0])
    restarts.broken_off(queue, NOW, {})
    assert queue.stop(1, NOW) == [Changed(1)]  # so that the next daemon knows, too
    assert queue.stop(1, NOW) == restarts.resume_all(queue, NOW) == []


def test_a_job_that_was_broken_off_can_be_cancelled():
    queue = queue_of([0], [0])
    restarts.broken_off(queue, NOW, {})
    assert Changed(1) in queue.cancel(1, NOW) and states(queue) == "cancelled queued"
    assert queue.entries[1].record.outcome.startswith("Cancelled.") and not queue.entries[1].interrupted
    queue.cancel(2, NOW)
    assert restarts.resume_all(queue, NOW) == [] and states(queue) == "cancelled cancelled" and not queue.paused
    queue = queue_of([0])
    queue.ended(1, AttemptResult("stopped"), NOW)
    with pytest.raises(UserError, match="is stopped, there is nothing to cancel"):
        queue.cancel(1, NOW)


def test_the_queue_is_paused_no_more_when_the_last_that_waited_is_removed():
    queue = queue_of([0], [0])
    restarts.broken_off(queue, NOW, {})
    assert queue.paused
    queue.remove(2, NOW)
    assert queue.paused == ""


def test_what_was_broken_off_stays_so_when_another_job_has_its_run_folder_by_now():
    queue = queue_of([0])
    restarts.broken_off(queue, NOW, {})
    queue.submit(JobRecord(id=2, name="job1", job_path="/j", out="/runs", gpus=[1], state="queued"), NOW)
    assert restarts.resume_all(queue, NOW) == [] and states(queue) == "stopped starting"
    queue.ended(2, AttemptResult("done"), NOW)
    assert Launch(1) in restarts.resume_all(queue, NOW)


def test_a_pause_from_before_each_job_had_its_own_still_holds():
    queue = queue_of([0], [0])
    queue.ended(1, AttemptResult("stopped"), NOW)
    entry = queue.entries[2]
    entry.record.state, entry.record.outcome = "queued", "The machine restarted."
    old = Queue([entry], paused="The machine restarted.")
    assert Launch(2) not in old.fill(NOW) and Launch(2) in old.resume(2, NOW) and old.paused == ""


# --- the clock ------------------------------------------------------------------------------------------------


def test_stamps_are_the_wall_s_whatever_the_clock_of_intervals_shows():
    queue = queue_of([0])
    queue.wall = WALL
    run_at = NOW + 5
    queue.entries[1].record.state = "starting"
    queue.launched(1, ProcessId(1, 1, "b"), run_at, first_seq=0, oom_kills=0)
    queue.ended(1, AttemptResult("done"), run_at + 1)
    record = queue.entries[1].record
    assert (record.started_at, record.finished_at) == (run_at + WALL, run_at + 1 + WALL)


def test_a_last_word_that_is_heard_at_every_tick_still_falls_due():
    queue = queue_of([0])
    for second in range(int(LINGER_GRACE)):
        queue.said_last_word(1, NOW + second)
        assert queue.tick(NOW + second, {1: NOW}) == []
    queue.said_last_word(1, NOW + LINGER_GRACE)
    assert queue.tick(NOW + LINGER_GRACE, {1: NOW}) == [Kill(1)]
    queue.said_last_word(1, NOW + LINGER_GRACE)
    assert queue.tick(NOW + LINGER_GRACE + CANCEL_GRACE, {1: NOW}) == [Kill(1)]


def test_a_signal_that_was_due_by_the_clock_of_an_older_daemon_is_due_anew():
    queue = queue_of([0])
    queue.entries[1].due, queue.entries[1].due_signal = WALL, "kill"
    queue.adopted(1, NOW)
    queue.said_last_word(1, NOW)
    assert queue.tick(NOW + LINGER_GRACE, {1: NOW}) == [Kill(1)]
