"""Priorities, places, held jobs, jobs that come after others, removing and renaming. All of it in any order is played
in test_state_machine."""

import pytest

from daemon.queue import restarts
from daemon.queue.entry import AttemptResult, Changed, Launch, Removed
from daemon.queue.job_queue import Queue
from presets.errors import UserError
from tests.daemon.queue.test_job_queue import NOW, launched, queue_of, record, states


def line(queue: Queue) -> list[int]:
    return [e.record.id for e in queue.queued()]


def joined(queue: Queue, job: int, gpus: list[int] | None = None, *, hold: bool = False, **more) -> list:
    one = record(job, gpus)
    for field, value in more.items():
        setattr(one, field, value)
    return queue.submit(one, NOW, hold=hold)


def busy(*gpus: list[int]) -> Queue:
    """Job 1 has every GPU; 2, 3 ... wait."""
    return queue_of([0, 1, 2], *gpus)


# --- priorities and places -------------------------------------------------------------------------------------


def test_higher_priorities_come_first_and_equal_ones_in_order():
    queue = busy([0], [0])
    for job, priority in ((4, 5), (5, 0), (6, 5), (7, -1)):
        joined(queue, job, priority=priority)
    assert line(queue) == [4, 6, 2, 3, 5, 7]
    assert [queue.entries[j].record.position for j in line(queue)] == [1, 2, 3, 4, 5, 6]
    queue.set_priority(7, 6, NOW)
    assert line(queue)[0] == 7 and Launch(7) in queue.ended(1, AttemptResult("done"), NOW)


def test_a_job_for_two_gpus_is_not_starved_by_small_ones_but_gives_way_to_higher_ones():
    queue = queue_of([0], [0, 1])
    assert Launch(3) not in joined(queue, 3, [1]) and Launch(4) not in joined(queue, 4, [1], priority=-1)
    assert Launch(5) in joined(queue, 5, [1], priority=1)


def test_a_priority_that_is_none_is_refused():
    queue = busy([0])
    with pytest.raises(UserError, match="is no priority"):
        queue.set_priority(2, 10**9, NOW)
    with pytest.raises(UserError, match="is no priority"):
        joined(queue, 3, priority=-(10**9))
    assert sorted(queue.entries) == [1, 2]


def test_the_priority_of_an_ended_job_counts_when_it_is_resumed():
    queue = busy([0], [0])
    queue.stop(3, NOW)
    queue.set_priority(3, 2, NOW)
    queue.resume(3, NOW)
    assert line(queue) == [3, 2]


@pytest.mark.parametrize(
    ("job", "place", "other", "order", "priority"),
    [
        (4, "first", None, [4, 2, 3, 5, 6], 1),
        (2, "last", None, [3, 4, 5, 6, 2], -1),
        (5, "before", 3, [2, 5, 3, 4, 6], 1),
        (2, "after", 4, [3, 4, 2, 5, 6], 0),
        (3, "after", 2, [2, 3, 4, 5, 6], 1),
        (6, "before", 2, [6, 2, 3, 4, 5], 1),
    ],
)
def test_a_job_is_moved_and_takes_the_priority_of_its_place(job, place, other, order, priority):
    queue = busy()
    for number, own in ((2, 1), (3, 1), (4, 0), (5, 0), (6, -1)):
        joined(queue, number, priority=own)
    said = queue.move(job, place, NOW, other=other)
    assert line(queue) == order and queue.entries[job].record.priority == priority
    assert Changed(job) in said
    again = Queue(list(queue.entries.values()))
    assert line(again) == order


def test_what_does_not_wait_is_not_moved():
    queue = busy([0])
    for one, other in ((1, 2), (2, 1), (2, 2)):
        with pytest.raises(UserError, match="cannot"):
            queue.move(one, "before", NOW, other=other)
    with pytest.raises(UserError, match=r"is running, so it cannot be moved.*wanlora stop job1"):
        queue.move(1, "first", NOW)


def test_a_move_may_let_a_job_start():
    queue = queue_of([0], [0, 1], [1])
    assert Launch(3) in queue.move(3, "first", NOW)


# --- holding ---------------------------------------------------------------------------------------------------


def test_a_held_job_keeps_its_place_and_lets_others_by():
    queue = queue_of([0], [0], [0])
    queue.hold(2, NOW)
    assert queue.entries[2].record.held == "On hold. Let it go with: wanlora release job2"
    assert [queue.entries[j].record.position for j in (2, 3)] == [1, 1] and states(queue)[1] == "queued"
    assert Launch(3) in queue.ended(1, AttemptResult("done"), NOW)
    launched(queue, 3)
    joined(queue, 4)
    assert queue.release(2, NOW) and queue.entries[2].record.held == "" and line(queue) == [2, 4]
    assert Launch(2) in queue.ended(3, AttemptResult("done"), NOW)


def test_a_job_is_submitted_on_hold_and_released_onto_a_free_gpu():
    queue = Queue([])
    assert Launch(1) not in joined(queue, 1, hold=True)
    again = Queue(list(queue.entries.values()))
    assert again.fill(NOW) == []
    assert Launch(1) in again.release(1, NOW)


def test_holding_and_releasing_twice_changes_nothing_more():
    queue = busy([0])
    assert queue.hold(2, NOW) and queue.hold(2, NOW) == []
    assert queue.release(2, NOW) and queue.release(2, NOW) == []
    for verb in (queue.hold, queue.release):
        with pytest.raises(UserError, match="is running"):
            verb(1, NOW)


def test_a_held_job_that_is_stopped_and_resumed_is_not_held():
    queue = busy([0])
    queue.hold(2, NOW)
    with pytest.raises(UserError, match="wanlora release job2"):
        queue.resume(2, NOW)
    queue.stop(2, NOW)
    assert queue.entries[2].record.held == ""
    queue.resume(2, NOW)
    assert queue.entries[2].record.held == ""


# --- after -----------------------------------------------------------------------------------------------------


def test_a_job_starts_when_those_before_it_are_done():
    queue = queue_of([0], [1])
    joined(queue, 3, [2], after=[1, 2])
    assert queue.entries[3].record.state == "queued"
    queue.ended(1, AttemptResult("done"), NOW)
    assert queue.entries[3].record.after == [2]
    assert Launch(3) in queue.ended(2, AttemptResult("done"), NOW)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda q: q.ended(1, AttemptResult("failed", "x"), NOW), "job1 (#1), which failed; resume that"),
        (lambda q: q.ended(1, AttemptResult("stopped", "x"), NOW), "which was stopped"),
        (lambda q: q.cancel(1, NOW) + q.ended(1, AttemptResult("failed"), NOW), "which was cancelled"),
    ],
)
def test_a_job_is_held_when_the_one_before_it_does_not_get_done(end, words):
    queue = queue_of([0])
    joined(queue, 2, [1], after=[1])
    assert Changed(2) in end(queue)
    held = queue.entries[2].record.held
    assert words in held and held.endswith("Let it go with: wanlora release job2")
    twin = Queue(list(queue.entries.values()))
    assert twin.fill(NOW) == []
    assert Launch(2) in queue.release(2, NOW) and queue.entries[2].record.after == []


def test_a_resumed_one_is_waited_for_again():
    queue = queue_of([0])
    joined(queue, 2, [1], after=[1])
    queue.ended(1, AttemptResult("failed", "x"), NOW)
    queue.resume(1, NOW)
    assert queue.entries[2].record.held == "" and queue.entries[2].record.state == "queued"
    assert Launch(2) in queue.ended(1, AttemptResult("done"), NOW)


def test_release_waits_for_the_others_unless_told_otherwise():
    queue = queue_of([0], [1])
    joined(queue, 3, [2], after=[1, 2])
    queue.ended(1, AttemptResult("failed", "x"), NOW)
    queue.release(3, NOW)
    assert queue.entries[3].record.after == [2] and queue.entries[3].record.state == "queued"
    assert queue.release(3, NOW) == []
    assert Launch(3) in queue.release(3, NOW, anyway=True)


def test_predecessors_are_found_once_and_must_be_known():
    queue = queue_of([0], [0], [1])
    queue.ended(3, AttemptResult("done"), NOW)
    assert queue.predecessors(["job2", "#1", "2", "job3"]) == [2, 1]
    with pytest.raises(UserError, match="no such job"):
        queue.predecessors(["job2", "nobody"])


def test_no_circle_can_be_made():
    queue = queue_of([0], [0])
    joined(queue, 3, after=[2])
    joined(queue, 4, after=[3])
    queue.stop(2, NOW)
    for predecessors in ([4], [3], [2]):
        with pytest.raises(UserError, match="would come after itself"):
            queue.come_after(queue.entries[2], predecessors)
    queue.come_after(queue.entries[2], [1])


def test_one_whose_predecessor_is_in_no_table_is_held():
    queue = queue_of([0])
    joined(queue, 2, [1], after=[1])
    again = Queue([queue.entries[2]])
    assert again.fill(NOW) and "job #1, which is not in the list any more" in again.entries[2].record.held
    assert Launch(2) in again.release(2, NOW)


# --- removing --------------------------------------------------------------------------------------------------


def test_queued_and_ended_jobs_are_removed_and_running_ones_are_not():
    queue = queue_of([0], [0], [0])
    assert queue.remove(2, NOW)[0] == Removed(2) and queue.entries[3].record.position == 1
    with pytest.raises(UserError, match=r"is running, so it stays.*wanlora stop job1.*wanlora cancel job1"):
        queue.remove(1, NOW)
    queue.ended(1, AttemptResult("done"), NOW)
    assert queue.remove(1, NOW) == [Removed(1)] and list(queue.entries) == [3]


def test_to_remove_a_job_may_let_another_start():
    queue = queue_of([0], [0, 1], [1])
    assert Launch(3) in queue.remove(2, NOW)


def test_those_after_a_removed_job_are_held():
    queue = queue_of([0], [0])
    joined(queue, 3, [1], after=[2])
    assert Changed(3) in queue.remove(2, NOW)
    assert "job2 (#2), which is not in the list any more" in queue.entries[3].record.held
    assert Launch(3) in queue.release(3, NOW)


def test_those_after_a_done_job_that_is_removed_are_not():
    queue = queue_of([0], [1])
    joined(queue, 3, [1], after=[1])
    queue.ended(1, AttemptResult("done"), NOW)
    queue.remove(1, NOW)
    assert queue.entries[3].record.held == "" and Launch(3) in queue.ended(2, AttemptResult("done"), NOW)


# --- renaming --------------------------------------------------------------------------------------------------


def test_a_job_that_never_began_is_renamed_wholly():
    queue = queue_of([0], [0])
    queue.hold(2, NOW)
    assert Changed(2) in queue.rename(2, "other")
    renamed = queue.entries[2].record
    assert (renamed.name, renamed.run_dir, renamed.file_name) == ("other", "/runs/other", "job2")
    assert renamed.held.endswith("wanlora release other") and queue.find("other").record.id == 2
    queue.rename(2, "job2")
    assert (renamed.run_dir, renamed.file_name, renamed.run_name) == ("/runs/job2", "", "")


def test_a_job_that_has_begun_keeps_its_run_folder():
    queue = queue_of([0], [1])
    queue.ended(2, AttemptResult("failed", "Fix that, then: wanlora resume job2. Or: wanlora resume job22"), NOW)
    for job in (1, 2):
        queue.rename(job, f"other{job}")
        renamed = queue.entries[job].record
        assert (renamed.name, renamed.run_dir, renamed.file_name) == (f"other{job}", f"/runs/job{job}", "")
    assert queue.entries[2].record.outcome == "Fix that, then: wanlora resume other2. Or: wanlora resume job22"
    queue.rename(1, "job1")
    assert queue.entries[1].record.run_name == ""


def test_a_name_in_use_is_refused():
    queue = queue_of([0], [0], [0])
    with pytest.raises(UserError, match=r"another job that has not ended is called job1: job1 \(#1, running\)"):
        queue.rename(2, "job1")
    queue.rename(1, "other")
    with pytest.raises(UserError, match="already uses the run folder /runs/job1"):
        queue.rename(2, "job1")
    queue.stop(3, NOW)
    queue.rename(2, "job3")
    with pytest.raises(UserError, match="already uses the run folder"):
        queue.resume(3, NOW)


def test_after_one_that_goes_before_all_others_is_still_before_those():
    queue = busy([0], [0], [0])
    queue.entries[2].record.first = True
    queue.set_priority(4, 5, NOW)
    queue.move(3, "after", NOW, other=2)
    assert line(queue) == [2, 3, 4]
    queue.move(2, "last", NOW)
    assert line(queue) == [3, 4, 2]


def test_what_a_job_waits_for_names_it_as_it_is_called():
    queue = busy([0])
    queue.ended(1, AttemptResult("done"), NOW)
    old = queue.entries[2].record.name
    restarts.cannot_start(queue, 2, f"bob. At once with: wanlora resume {old} --anyway", NOW)
    queue.rename(2, "other")
    entry = queue.entries[2]
    now = "bob. At once with: wanlora resume other --anyway"
    assert (entry.busy, entry.record.waiting, entry.record.outcome) == (now, now, now)


def test_a_job_that_was_renamed_as_it_was_about_to_start_keeps_the_folder_that_it_got():
    queue = queue_of([0])
    folder = queue.entries[1].record.run_dir
    queue.rename(1, "second")
    restarts.cannot_start(queue, 1, "bob", NOW)
    queue.rename(1, "third")
    record = queue.entries[1].record
    assert (record.name, record.run_dir, record.file_name, record.attempt) == ("third", folder, "", 0)
