"""The jobs screen's fold of the feed, and the two lights."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from textual_image.widget import HalfcellImage

from daemon.wire.client import BegunAnew
from daemon.wire.protocol import Beat, JobChanged, JobRecord, RunBeat, RunEvent
from presets.runs.run_view import RunView, apply_event
from tests.helpers.interface.runs import usual
from tests.wanlora_tui.screens.test_dashboard import settle, shown
from wanlora_tui.feeds.job_list import STATES, JobList
from wanlora_tui.feeds.last_seen import LastSeenFile
from wanlora_tui.feeds.run_feed import RunFeed
from wanlora_tui.feeds.status_lights import daemon_light, trainer_light
from wanlora_tui.screenshot import RecordedApp
from wanlora_tui.widgets.redraw_throttle import Changed


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


def test_it_knows_when_the_idle_command_runs():
    job_list = JobList()
    job_list.apply(Beat("e", [], idle_in=90.0))
    assert job_list.idle_in == 90.0
    job_list.apply(Beat("e", []))
    assert job_list.idle_in is None


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


def test_a_beat_betrays_what_was_lost_of_a_run_that_has_ended():
    job_list = JobList()
    job_list.load([job(1, "done")])
    job_list.views[1] = folded(50)
    seq = job_list.views[1].last_seq
    ended = msgspec.structs.replace(beat(1, seq, alive=False), state="done")
    assert job_list.apply(Beat("e", [ended])) == []
    assert job_list.apply(Beat("e", [msgspec.structs.replace(ended, last_seq=seq + 1)])) == [1]


def test_a_beat_betrays_a_lost_change_of_a_job_and_a_lost_job():
    job_list = JobList()
    job_list.load([job(1, "queued")])
    waits = msgspec.structs.replace(beat(1, 0, alive=False), state="queued")
    assert job_list.apply(Beat("e", [waits])) == []
    assert job_list.apply(Beat("e", [msgspec.structs.replace(waits, state="cancelled")])) == [1]
    assert job_list.apply(Beat("e", [waits, msgspec.structs.replace(waits, job=2)])) == [2]


def test_an_answer_that_comes_late_does_not_take_back_what_the_feed_told(tmp_path: Path):
    feed = RunFeed(None, job(1, revision=3), LastSeenFile(tmp_path))  # type: ignore[arg-type]
    feed.apply(job(1, "stopped", revision=6))
    feed.take(job(1, "stopping", revision=5))  # the answer to a stop
    assert feed.record.state == "stopped"
    feed.take(job(1, "queued", revision=7))
    assert feed.record.state == "queued"


def test_a_run_that_begins_anew_is_fetched_whole():
    job_list = JobList()
    job_list.load([job(1)])
    job_list.load_view(job(1), folded(50))
    first = msgspec.structs.replace(usual().events[0], run="another")
    assert job_list.apply(RunEvent(1, first)) == [1]
    assert job_list.apply(Beat("e", [beat(1, 1)])) == [1]


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


async def test_the_dashboard_shows_the_new_run_and_says_so(tmp_path: Path):
    feed = RunFeed(None, job(1), LastSeenFile(tmp_path))  # type: ignore[arg-type]
    for event in usual(until=50).events:
        feed.apply(event)
    feed.apply(BegunAnew(1))
    assert feed.anew == 1 and feed.view.last_seq == 0
    for event in usual(until=2).events:
        feed.apply(msgspec.structs.replace(event, run="another"))
    assert feed.view.step == 2 and feed.view.run == "another"
    app = RecordedApp(feed, HalfcellImage)  # type: ignore[arg-type]
    feed.follow = lambda changed: asyncio.sleep(0)  # type: ignore[method-assign]
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        for _ in range(3):
            app.screen.post_message(Changed())
            await settle(pilot)
        assert shown(app.screen).count("begun anew") == 1


def test_sorted_by_state_what_goes_on_comes_first_and_what_is_well_last():
    states = ("done", "failed", "queued", "cancelled", "running", "starting", "stopped", "stopping")
    job_list = JobList()
    job_list.load([job(i, state) for i, state in enumerate(states, 1)])
    assert [r.state for r in job_list.arranged("state")] == list(STATES) and set(STATES) == set(states)
    assert STATES[0] == "running" and STATES[-1] == "done" and STATES.index("queued") < STATES.index("failed")


def test_the_queue_is_listed_as_it_was_arranged_and_a_held_job_at_its_place():
    job_list = JobList()
    job_list.load(
        [
            job(1, "queued", position=2, order=3),
            job(2, "queued", position=1, order=1, held="On hold."),
            job(3, "queued", position=1, order=2),
            job(4, "queued", position=1, order=9, priority=1),
        ]
    )
    assert [r.id for r in job_list.ordered()] == [4, 2, 3, 1]
    job_list.apply(Beat("e", [], "The machine restarted."))
    assert job_list.paused == "The machine restarted."
    assert job_list.paused_jobs == 0  # all of them were queued since
    job_list.records[1].waiting = job_list.records[2].waiting = "The machine restarted."
    job_list.records[3].waiting = "Another job has its folder."
    assert job_list.paused_jobs == 2


def test_what_an_earlier_attempt_did_last_is_not_what_the_trainer_does():
    view = folded(50)
    again = job(1, "starting", attempt=2, started_at=view.updated_at + 5)
    light = beat(1, view.last_seq)
    assert trainer_light(again, view, light, 0.0).text == "trainer starting"
    again.pid = 7  # launched, and silent so far
    assert trainer_light(again, view, light, 0.0).text == "trainer starting"
    view.updated_at += 10
    assert trainer_light(again, view, light, 0.0).text != "trainer starting"
    assert trainer_light(job(1, "queued", held="On hold."), view, light, 0.0).text == "held in the queue"
