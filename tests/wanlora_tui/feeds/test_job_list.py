"""The jobs screen's fold of the feed, and the two lights."""

from typing import Any

from daemon.wire.protocol import Beat, JobChanged, JobRecord, RunBeat, RunEvent
from presets.runs.run_view import RunView, apply_event
from tests.helpers.interface.runs import usual
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.feeds.status_lights import daemon_light, trainer_light


def job(id: int, state: Any = "running", **more: Any) -> JobRecord:
    return JobRecord(id=id, name=f"job{id}", job_path="/j", out="/o", gpus=[0], state=state, **more)


def beat(id: int, seq: int, alive: bool = True, since: float = 0.0) -> RunBeat:
    return RunBeat(id, "running", seq, trainer_alive=alive, seconds_since_step=since)


def folded(until: int) -> RunView:
    view = RunView()
    for event in usual(until=until).events:
        apply_event(view, event)
    return view


def test_running_jobs_come_first_then_the_queue_then_the_newest():
    job_list = JobList()
    job_list.load(
        [job(1, "done"), job(2, "queued", position=2), job(3, "failed"), job(4, "queued", position=1), job(5)]
    )
    assert [r.id for r in job_list.ordered()] == [5, 4, 2, 3, 1]


def test_events_are_folded_and_a_gap_asks_for_the_whole():
    job_list, events = JobList(), usual().events
    job_list.load([job(1)])
    assert job_list.apply(RunEvent(1, events[0])) == [1]  # nothing was loaded yet
    job_list.load_view(job(1), RunView())
    for event in events[:20]:
        assert job_list.apply(RunEvent(1, event)) == []
    assert job_list.views[1].last_seq == 20
    assert job_list.apply(RunEvent(1, events[25])) == [1]
    assert job_list.views[1].last_seq == 20


def test_a_beat_betrays_a_lost_last_event():
    job_list = JobList()
    job_list.load([job(1)])
    job_list.load_view(job(1), folded(50))
    seq = job_list.views[1].last_seq
    assert job_list.apply(Beat("e", [beat(1, seq)])) == []
    assert job_list.apply(Beat("e", [beat(1, seq + 1)])) == [1]


def test_an_older_record_does_not_win():
    job_list = JobList()
    job_list.load([job(1, "done", revision=5)])
    job_list.apply(JobChanged(job(1, "running", revision=4)))
    assert job_list.records[1].state == "done"


def test_the_two_lights_fail_apart():
    view = folded(50)
    assert daemon_light(None).level == "waiting" and daemon_light(1.0).level == "good"
    assert daemon_light(9.0).text == "daemon not answering, training continues"
    assert trainer_light(job(1), view, beat(1, 9), 1.0).text == "trainer progressing"
    assert trainer_light(job(1), view, beat(1, 9, since=70.0), 1.0) == ("bad", "trainer stalled: no step for 1m 10s")
    assert trainer_light(job(1), view, beat(1, 9, alive=False), 1.0).level == "bad"
    assert trainer_light(job(1), view, beat(1, 9), 12.0) == ("waiting", "trainer not seen for 12s")
    assert trainer_light(job(1, "done"), view, None, 1.0).text == "trainer finished"
    assert trainer_light(job(1, "queued", position=2), view, None, 1.0).text == "waiting in the queue, position 2"


def test_a_slow_step_is_not_a_stall():
    view = folded(50)
    view.seconds_per_step = 44.0  # 720p
    assert trainer_light(job(1), view, beat(1, 9, since=100.0), 1.0).level == "good"
