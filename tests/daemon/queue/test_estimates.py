"""When jobs will start and end: tables of cases, and the queue itself played through."""

from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.processes.proc import ProcessId
from daemon.queue import restarts
from daemon.queue.entry import AttemptResult, Launch, Left
from daemon.queue.estimates import LEAST_MOVE, Load, estimate, measure, refresh, seconds_left
from daemon.queue.job_queue import Queue
from daemon.wire.protocol import JobRecord, PlannedTime
from presets.runs.run_view import RunView
from presets.runs.spent import Spent

NOW = 1000.0


def load(job: int, gpus: str, seconds: float | None, *, held: bool = False, after: tuple[int, ...] = ()) -> Load:
    return Load(job, frozenset(gpus), seconds, held, frozenset(after))


@pytest.mark.parametrize(
    ("running", "queued", "expected"),
    [
        pytest.param([], [], {}, id="nothing"),
        pytest.param([load(1, "0", 60)], [], {1: (0, 60)}, id="one that runs"),
        pytest.param(
            [load(1, "0", 60)], [load(2, "0", 30), load(3, "0", 5)], {1: (0, 60), 2: (60, 90), 3: (90, 95)}, id="a line"
        ),
        pytest.param(
            [load(1, "0", 60), load(2, "1", 100)],
            [load(3, "01", 10), load(4, "0", 1)],
            {1: (0, 60), 2: (0, 100), 3: (100, 110), 4: (110, 111)},
            id="a small one does not overtake one for two GPUs",
        ),
        pytest.param(
            [load(1, "0", None)],
            [load(2, "0", 10), load(3, "1", 10)],
            {1: (0, None), 2: (None, None), 3: (0, 10)},
            id="what waits for a run of unknown length has no start",
        ),
        pytest.param(
            [], [load(1, "0", None), load(2, "0", 1)], {1: (0, None), 2: (None, None)}, id="a start without an end"
        ),
        pytest.param(
            [load(1, "0", 60)],
            [load(2, "0", 10, held=True), load(3, "0", 10)],
            {1: (0, 60), 2: (None, None), 3: (60, 70)},
            id="a held one is passed by",
        ),
        pytest.param(
            [load(1, "0", 60)],
            [load(2, "1", 10, after=(1,)), load(3, "1", 20)],
            {1: (0, 60), 3: (0, 20), 2: (60, 70)},
            id="one that comes after another lets the next go first",
        ),
        pytest.param(
            [], [load(1, "0", 10, after=(2,)), load(2, "1", 5)], {2: (0, 5), 1: (5, 15)}, id="after one behind it"
        ),
        pytest.param(
            [],
            [load(1, "0", 10, held=True), load(2, "1", 5, after=(1,))],
            {1: (None, None), 2: (None, None)},
            id="after a held one",
        ),
        pytest.param([load(1, "0", 0)], [load(2, "0", 7)], {1: (0, 0), 2: (0, 7)}, id="about to end"),
        pytest.param(
            [load(1, "0", 5), load(2, "1", 5)],
            [load(3, "01", 1)],
            {1: (0, 5), 2: (0, 5), 3: (5, 6)},
            id="two that end at once",
        ),
    ],
)
def test_estimates(running: list[Load], queued: list[Load], expected: dict):
    found = estimate(running, queued, NOW)
    moved = {
        job: tuple(None if at is None else at - NOW for at in (span.starts, span.ends)) for job, span in found.items()
    }
    assert moved == expected


def entry(**record):
    queue = Queue([])
    queue.submit(
        JobRecord(id=1, name="a", job_path="/a", out="/r", gpus=[0], state="queued", **{"steps": 100} | record), NOW
    )
    return queue.entries[1]


@pytest.mark.parametrize(
    ("pace", "planned", "record", "from_step", "left"),
    [
        (0.0, None, {}, None, None),
        (2.0, None, {}, None, 200),
        (2.0, None, {"step": 40}, None, 120),
        (0.0, PlannedTime(3.0, 50), {}, None, 350),
        (2.0, PlannedTime(3.0, 50), {"step": 50}, None, 125),  # its own pace, and half of the rest
        (2.0, None, {"step": 140}, None, 0),
        (2.0, None, {"steps": 0}, None, None),
        (2.0, None, {"step": 80}, 30, 140),  # it goes back when it starts
    ],
)
def test_what_is_left_of_a_job(pace, planned, record, from_step, left):
    one = entry(**record)
    one.record.state, one.pace, one.planned, one.from_step = "queued", pace, planned, from_step
    assert seconds_left(one) == left
    one.record.state = "stopping"
    assert seconds_left(one) == 0


def test_what_its_own_events_say_counts_before_pace_and_plan():
    one = entry(step=40)
    one.pace, one.planned, one.left = 2.0, PlannedTime(3.0, 50), Left(500.0, 40, 100)
    assert seconds_left(one) == 500
    one.record.step, one.record.steps = 50, 110  # since then: 10 steps more are done, and 10 more wanted
    assert seconds_left(one) == 500
    one.record.state, one.from_step = "queued", 20  # it goes back
    assert seconds_left(one) == 560
    one.record.state, one.record.doing = "running", "paused"
    assert seconds_left(one) is None, "nobody knows when a disk has room"


def test_a_run_tells_what_is_left():
    one = entry()
    measure(one, RunView(), 0.0)
    assert one.left is None
    spent = Spent(costs={"high_noise": [2.0]})
    measure(one, RunView(steps=100, step=40, recent=[2.0], seconds_per_step=2.0, spent=spent), 0.0)
    assert one.left == Left(120.0, 40, 100)


def test_what_moves_a_little_is_not_told_again():
    queue = Queue([])
    for job in (1, 2):
        queue.submit(
            JobRecord(id=job, name=f"j{job}", job_path="/j", out="/r", gpus=[0], state="queued", steps=1000),
            NOW,
            planned=PlannedTime(10.0),
        )
    queue.launched(1, ProcessId(7, 1, "b"), NOW, first_seq=0, oom_kills=0)
    assert refresh(queue, NOW) == [1, 2]
    first, second = (queue.entries[job].record for job in (1, 2))
    assert (first.starts_at, first.ends_at, second.starts_at, second.ends_at) == (NOW, NOW + 1e4, NOW + 1e4, NOW + 2e4)
    assert refresh(queue, NOW + LEAST_MOVE / 2) == [] and first.ends_at == NOW + 1e4
    queue.entries[1].pace = 5.0
    assert refresh(queue, NOW) == [1, 2] and first.ends_at == NOW + 5e3 and second.starts_at == NOW + 5e3
    queue.hold(2, NOW)
    assert refresh(queue, NOW) == [2] and (second.starts_at, second.ends_at) == (None, None)
    queue.ended(1, AttemptResult("done"), NOW + 5)
    refresh(queue, NOW + 5)
    assert (first.starts_at, first.ends_at) == (None, None)


def test_what_waits_for_more_than_its_turn_keeps_its_gpus_from_those_behind():
    queue = Queue([])
    for job, gpus in ((1, [0]), (2, [0]), (3, [1]), (4, [1])):
        record = JobRecord(id=job, name=f"j{job}", job_path="/j", out="/r", gpus=gpus, state="queued", steps=10)
        queue.submit(record, NOW, planned=PlannedTime(10.0))
    queue.launched(1, ProcessId(7, 1, "b"), NOW, first_seq=0, oom_kills=0)
    restarts.back_off(queue, 1, AttemptResult("failed"), NOW, delay=500.0, most=3, saved=True)
    restarts.cannot_start(queue, 3, "bob", NOW)
    refresh(queue, NOW)
    spans = {job: (e.record.starts_at, e.record.ends_at) for job, e in queue.entries.items()}
    assert spans[1] == (NOW + 500, NOW + 600) and spans[2] == (NOW + 600, NOW + 700)
    assert spans[3] == spans[4] == (None, None)  # until bob goes


@given(
    st.lists(
        st.tuples(
            st.sampled_from([[0], [1], [0, 1], [2], [0, 1, 2]]),
            st.integers(1, 5),
            st.integers(-1, 1),
            st.sets(st.integers(1, 8), max_size=1),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_estimates_are_what_the_queue_then_does(jobs):
    """Every job is as long as it was planned to be: it starts and ends when it was told to."""
    queue, at, ends = Queue([]), 0.0, []
    launches = []
    for job, (gpus, seconds, priority, after) in enumerate(jobs, 1):
        record = JobRecord(
            id=job, name=f"j{job}", job_path="/j", out="/r", gpus=gpus, state="queued", steps=1, priority=priority
        )
        record.after = [j for j in after if j < job]
        launches += queue.submit(record, at, planned=PlannedTime(float(1000 * seconds)))
    refresh(queue, at)
    told = {job: (e.record.starts_at, e.record.ends_at) for job, e in queue.entries.items()}
    played = {}
    while True:
        for job in [i.job for i in launches if isinstance(i, Launch)]:
            played[job] = (at, at + 1000 * jobs[job - 1][1])
            heappush(ends, (played[job][1], job))
        if not ends:
            break
        at, launches = ends[0][0], []
        while ends and ends[0][0] == at:  # all that end at once, before the next is started
            over = heappop(ends)[1]
            queue.entries[over].record.state = "done"
        launches = queue.fill(at)
    assert told == played
