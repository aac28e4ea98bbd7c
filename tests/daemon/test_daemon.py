"""The real daemon over its real sockets, with trainers that train nothing."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.errors import NotRunning, RequestRefused
from daemon.jobs.service import BEAT_REST
from daemon.processes.proc import identify
from daemon.processes.start_trainer import torchrun
from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, Beat, JobRecord, encode
from presets.runs.events import Event, read_events
from presets.runs.run_view import RunView, apply_event
from tests.daemon.conftest import FAKE, Box, until
from tests.helpers.waiting import PATIENCE


def file_events(run_dir: Path) -> list[Event]:
    return [event for event, _ in read_events(run_dir / "events.jsonl")]


def folded(events: list[Event]) -> bytes:
    view = RunView()
    for event in events:
        apply_event(view, event)
    return encode(view)


def facts(run_dir: Path, attempt: int = 1) -> dict:
    line = next(x for x in (run_dir / f"logs/attempt_{attempt}.log").read_text().splitlines() if x.startswith("facts "))
    return json.loads(line.removeprefix("facts "))


async def follow_to_end(client: Client, job: int | str, since: int = 0) -> tuple[list[Event], list[JobRecord]]:
    events, records = [], []
    async for item in client.follow(job, since):
        if isinstance(item, Event):
            events.append(item)
        elif isinstance(item, JobRecord):
            records.append(item)
            if item.state in ENDED_STATES:
                return events, records
    raise AssertionError("a follow never ends by itself")


async def test_a_job_is_queued_launched_and_done(box: Box):
    box.start()
    async with box.client() as client:
        record = await client.submit(box.job("one"))
        assert (record.id, record.name, record.state, record.steps) == (1, "one", "queued", 20)
        events, records = await asyncio.wait_for(follow_to_end(client, record.id), PATIENCE)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert events == file_events(box.run_dir("one"))
        end = await client.show("one")
        assert (end.state, end.step, end.attempt, end.pid, end.position) == ("done", 20, 1, 0, 0)
        assert end == records[-1]
        record, view = await client.snapshot("1")
        assert record == end and encode(view) == folded(events)
        assert await client.jobs() == [end]


async def test_the_trainer_gets_its_gpus_a_neutral_folder_and_the_job_as_submitted(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        path = box.job("one", gpus=[3, 1])
        await client.submit(path)
        path.write_text("this is not TOML any more")
        await box.wait(client, 1, "running")
        told = await until(lambda: facts(box.run_dir("one")))
        assert told["gpus"] == "1,3" and told["cwd"] == "/"
        job_file = Path(told["args"][2])
        assert str(box.dir / "jobs" / "clips") in job_file.read_text()
        assert told["args"][2:] == [str(box.dir / "state/jobs/job-1.toml"), "--out", str(box.dir / "jobs/runs")]
        assert told["session"] == (await client.show(1)).pid != os.getsid(box.process.pid)


async def test_one_gpu_one_job_at_a_time(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        submitted = [
            await client.submit(box.job("first")),
            await client.submit(box.job("second")),
            await client.submit(box.job("elsewhere", gpus=[1])),
        ]
        assert [r.position for r in submitted] == [0, 1, 0]
        await box.wait(client, "first", "running")
        await box.wait(client, "elsewhere", "running")
        assert [(r.state, r.position) for r in await client.jobs()] == [("running", 0), ("queued", 1), ("running", 0)]
        await client.stop("first")
        assert (await box.wait(client, "first")).state == "stopped"
        await box.wait(client, "second", "running")
        first, second = file_events(box.run_dir("first")), file_events(box.run_dir("second"))
        assert first[-1].kind == "stopped" and second[0].time >= first[-1].time


async def test_stop_then_resume_goes_on_from_the_checkpoint(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await until(lambda: "one" in str(box.run_dir("one")) and (box.run_dir("one") / "events.jsonl").exists())
        assert (await client.stop("one")).state == "stopping"
        stopped = await box.wait(client, "one")
        assert (stopped.state, stopped.outcome) == ("stopped", "stopped on request")
        step = stopped.step
        await client.resume("one")
        done = await box.wait(client, "one", "done", "running")
        if done.state == "running":
            done = await box.wait(client, "one", "done") if step >= 5 else done
        assert facts(box.run_dir("one"), 2)["args"][-1] == "--resume"
        assert (await client.show("one")).attempt == 2
        events = file_events(box.run_dir("one"))
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert next(e for e in events if e.attempt == 2).data["resumed_from"] == step


async def test_a_stop_request_to_an_earlier_attempt_does_not_stop_the_next_one(box: Box):
    box.start("--exit-at", "3")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "failed")
        control = box.run_dir("one") / "control"
        (control / "stop.json").write_text('{"id": "old", "command": "stop"}')
        await client.resume("one")
        assert (await box.wait(client, "one", "failed", "stopped")).state == "failed"


async def test_a_stop_is_honoured_when_no_control_file_can_be_written(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await until(lambda: (box.run_dir("one") / "events.jsonl").exists() and len(file_events(box.run_dir("one"))) > 6)
        shutil.rmtree(box.run_dir("one") / "control")
        (box.run_dir("one") / "control").write_text("in the way")
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"
        assert "asked with SIGTERM instead" in box.log()


async def test_cancel_ends_even_a_deaf_trainer(box: Box):
    box.start("--deaf", "--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        assert (await client.cancel("one")).state == "stopping"
        assert (await box.wait(client, "one")).state == "cancelled"
        with pytest.raises(RequestRefused, match="is cancelled, there is nothing to stop"):
            await client.stop("one")


async def test_kill_9_of_a_client_hurts_nobody(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        await client.submit(box.job("one"))
        script = (
            "import asyncio\nfrom pathlib import Path\nfrom daemon.wire.client import Client\nasync def main():\n   "
            f" async with Client(Path({str(box.dir)!r})) as c:\n        async for x in c.follow('one'):\n           "
            " print(x, flush=True)\nasyncio.run(main())"
        )
        watcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            assert watcher.stdout is not None and any(b"Event(" in line for line in watcher.stdout)
        finally:
            watcher.kill()
            watcher.communicate()
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"


async def test_kill_9_of_the_daemon_the_next_one_adopts_and_nothing_is_missed(box: Box):
    box.start("--hold-at", "60", "--pace", "0.02")
    async with box.client() as client:
        await client.submit(box.job("one", steps=100))
        await client.submit(box.job("two"))
        following = asyncio.create_task(follow_to_end(client, "one"))
        running = await box.wait(client, "one", "running")
        box.kill9()
        trainer = identify(running.pid)
        assert trainer is not None
        seen = len(file_events(box.run_dir("one")))
        await until(lambda: len(file_events(box.run_dir("one"))) > seen + 5)  # it goes on alone
        box.start()
        adopted = await client.show("one")
        assert (adopted.state, adopted.pid) == ("running", running.pid) and identify(running.pid) == trainer
        assert (await client.show("two")).state == "queued"
        await client.stop("one")
        events, records = await asyncio.wait_for(following, PATIENCE)
        assert records[-1].state == "stopped"
        assert folded(events) == folded(file_events(box.run_dir("one"))) == encode((await client.snapshot("one"))[1])
        await box.wait(client, "two", "running", "done", "stopped")


async def test_a_trainer_that_ended_while_no_daemon_ran_is_accounted_for(box: Box):
    box.start("--pace", "0.02")
    async with box.client() as client:
        await client.submit(box.job("one", steps=30))
        await box.wait(client, "one", "running")
        box.kill9()
        await until(lambda: file_events(box.run_dir("one"))[-1].kind == "done" and not box.processes())
        box.start()
        assert (await box.wait(client, "one")).state == "done"


async def test_a_restarted_daemon_knows_a_long_run_from_its_first_answer(box: Box):
    box.start("--pace", "0", "--hold-at", "9000")
    async with box.client() as client:
        await client.submit(box.job("one", steps=9001))
        await until(
            lambda: (box.run_dir("one") / "events.jsonl").exists() and len(file_events(box.run_dir("one"))) > 9900
        )
        box.kill9()
        box.start()
        record, view = await client.snapshot("one")
        assert view.last_seq == file_events(box.run_dir("one"))[-1].seq and record.step == 9000


async def test_a_stop_taken_by_a_daemon_that_died_still_stands(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        pid = (await box.wait(client, "one", "running")).pid
        os.kill(pid, signal.SIGSTOP)  # it cannot honour anything before the daemon is gone
        await client.stop("one")
        box.kill9()
        # as if the daemon had died just before writing it
        next((box.run_dir("one") / "control").glob("*.json")).unlink()
        box.start()
        assert (await client.show("one")).state == "stopping"
        os.kill(pid, signal.SIGCONT)
        assert (await box.wait(client, "one")).state == "stopped"


async def test_sigterm_ends_the_daemon_and_not_the_trainer(box: Box):
    pid = box.start("--hold-at", "5")
    async with box.client() as client:
        record = await client.submit(box.job("one"))
        record = await box.wait(client, "one", "running")
    os.kill(pid, signal.SIGHUP)  # the login ends: nothing happens
    os.kill(pid, signal.SIGTERM)
    assert box.process.wait(PATIENCE) == 0
    assert identify(record.pid) is not None
    assert not list((box.dir / "run").iterdir())  # no socket is left that nobody serves
    with pytest.raises(NotRunning, match="wanlora daemon start"):
        async with box.client():
            pass


async def test_detach_for_500_events_then_attach_shows_everything(box: Box):
    box.start("--pace", "0.0005", "--hold-at", "700")
    async with box.client() as client:
        await client.submit(box.job("one", steps=1000))
        events = []
        async for item in client.follow("one"):
            if isinstance(item, Event):
                events.append(item)
                if len(events) == 20:
                    break
    await until(lambda: len(file_events(box.run_dir("one"))) > 700)
    async with box.client() as client:
        _, view = await client.snapshot("one")
        late, _ = [], await client.stop("one")
        rest, _ = await asyncio.wait_for(follow_to_end(client, "one", since=events[-1].seq), PATIENCE)
        late = events + rest
        assert late == file_events(box.run_dir("one"))
        assert folded(late) == encode((await client.snapshot("one"))[1])
        assert encode(view) == folded(late[: view.last_seq])


async def test_replay_comes_in_pages_and_from_anywhere(box: Box):
    box.start("--pace", "0")
    async with box.client() as client:
        await client.submit(box.job("one", steps=1200))
        await box.wait(client, "one", "done")
        every = file_events(box.run_dir("one"))
        assert len(every) > 1200
        for since in (0, 1, 499, 500, 777, len(every) - 1, len(every), len(every) + 5, -3):
            assert await client.replay("one", since) == every[max(0, since) :]


async def test_two_clients_stop_one_job_once(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as a, box.client() as b:
        await a.submit(box.job("one"))
        await box.wait(a, "one", "running")
        await asyncio.gather(a.stop("one"), b.stop("one"))
        assert (await box.wait(a, "one")).state == "stopped"
        assert [e.kind for e in file_events(box.run_dir("one"))].count("stopped") == 1
        assert (await b.stop("one")).state == "stopped"


async def test_refusals_say_what_and_how_to_mend_it(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        with pytest.raises(RequestRefused, match="no such job file"):
            await client.submit(box.dir / "nothing.toml")
        bad = box.dir / "bad.toml"
        bad.write_text('[job]\nname = "x"\n[training]\nlrr = 1\n[[datasets]]\npath = "clips"\n')
        with pytest.raises(
            RequestRefused, match=r"training\.lrr: unknown key\. Did you mean training\.lr\?"
        ) as refused:
            await client.submit(bad)
        assert [(f.severity, f.field) for f in refused.value.findings] == [("error", "training.lrr")]
        with pytest.raises(RequestRefused, match="no such job"):
            await client.stop("nobody")
        await client.submit(box.job("one"))
        with pytest.raises(RequestRefused, match=r"job 1 \(\w+\) already uses the run folder"):
            await client.submit(box.job("one"))
        with pytest.raises(RequestRefused, match="nothing to resume"):
            await client.resume("one")
        await box.wait(client, "one", "running")
        await client.stop("one")
        await box.wait(client, "one")
        with pytest.raises(RequestRefused, match="already holds a run") as refused:
            await client.submit(box.job("one"))
        assert "wanlora resume 1" in refused.value.fix
        other = await client.submit(box.job("one"), box.dir / "elsewhere")
        assert other.out == str(box.dir / "elsewhere")
        assert (await client.show("one")).id == other.id  # the live one of two jobs with one name


async def test_a_job_that_says_failed_and_one_that_dies_without_a_word(box: Box):
    box.start("--fail")
    async with box.client() as client:
        await client.submit(box.job("said"))
        assert (await box.wait(client, "said")).outcome == "2 errors in the job. Fix them."
    box.process.terminate()
    box.process.wait()
    box.start("--die-at", "7")
    async with box.client() as client:
        await client.submit(box.job("killed"))
        killed = await box.wait(client, "killed")
        assert killed.state == "failed"
        assert (
            "killed by SIGKILL after step 7" in killed.outcome
            and "last words of the log" in killed.outcome
            and "wanlora resume killed" in killed.outcome
        )
    box.process.terminate()
    box.process.wait()
    box.start("--exit-at", "4")
    async with box.client() as client:
        await client.submit(box.job("left"))
        assert "exit code 3 and without a word after step 4" in (await box.wait(client, "left")).outcome


async def test_a_trainer_that_cannot_be_launched_fails_with_its_reason(box: Box):
    box.start(command=["/nonexistent/trainer"])
    async with box.client() as client:
        await client.submit(box.job("one"))
        failed = await box.wait(client, "one")
        assert (
            failed.state == "failed"
            and "could not be launched" in failed.outcome
            and "/nonexistent/trainer" in failed.outcome
        )
        assert "Fix that, then: wanlora resume one" in failed.outcome
        assert "Fix that, then: wanlora resume one" in failed.outcome
        (box.dir / "in_the_way").write_text("a file")
        await client.submit(box.job("two"), box.dir / "in_the_way")
        assert "could not be launched" in (await box.wait(client, "two")).outcome


async def test_a_damaged_line_is_reported_and_the_run_goes_on(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await until(
            lambda: (box.run_dir("one") / "events.jsonl").exists() and len(file_events(box.run_dir("one"))) >= 7
        )
        path = box.run_dir("one") / "events.jsonl"
        await client.stop("one")
        await box.wait(client, "one")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b'{"v":1,"seq":4,"time"\n'
    path.write_bytes(b"".join(lines) + b'{"torn')
    box.kill9()
    box.start()
    async with box.client() as client:
        events = await client.replay("one")
        assert [e.seq for e in events] == list(range(1, len(lines) + 1))
        assert events[3].kind == "finding" and events[3].data["code"] == "events-damaged"
        _, view = await client.snapshot("one")
        assert encode(view) == folded(events) and view.state == "stopped"
        assert "cannot be read" in view.findings[0]["message"]


async def test_the_beat_carries_state_seq_and_liveness(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        epoch = (await client.hello()).epoch
        await client.submit(box.job("one"))
        async for item in client.follow("one"):
            if isinstance(item, Beat) and item.runs and item.runs[0].last_seq >= 7:
                assert item.epoch == epoch
                run = item.runs[0]
                assert (run.job, run.state, run.trainer_alive) == (1, "running", True) and run.seconds_since_step >= 0
                break


async def test_beats_stay_small_and_every_job_has_its_turn(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        for n in range(BEAT_REST + 10):
            await client.submit(box.job(f"job{n}"))
        await box.wait(client, "job0", "running")
        seen: set[int] = set()
        async for item in client.feed():
            if isinstance(item, Beat):
                assert item.runs[0].job == 1 and len(item.runs) <= 1 + BEAT_REST
                seen.update(run.job for run in item.runs)
                if seen == set(range(1, BEAT_REST + 11)):
                    break


async def test_a_stalled_subscriber_holds_up_nobody(box: Box):
    box.start("--pace", "0.0002", "--hold-at", "6000")
    script = (
        "import zmq\ns = zmq.Context().socket(zmq.SUB)\ns.setsockopt(zmq.RCVHWM, 10)\ns.setsockopt(zmq.SUBSCRIBE,"
        f" b'')\ns.connect('ipc://{box.dir}/run/feed.sock')\nwhile True:\n    s.recv()\n    print('got', flush=True)"
    )
    stalled = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert stalled.stdout is not None and stalled.stdout.readline() == b"got\n"
        os.kill(stalled.pid, signal.SIGSTOP)
        async with box.client() as client:
            await client.submit(box.job("one", steps=7000))
            following = asyncio.create_task(follow_to_end(client, "one"))
            await until(
                lambda: (
                    len(file_events(box.run_dir("one"))) > 6000
                    if (box.run_dir("one") / "events.jsonl").exists()
                    else False
                )
            )
            await client.stop("one")
            events, _ = await asyncio.wait_for(following, PATIENCE)
            assert events == file_events(box.run_dir("one"))
    finally:
        stalled.kill()
        stalled.wait()
        stalled.stdout.close()


async def test_a_removed_runtime_directory_is_made_again(box: Box):
    pid = box.start()
    shutil.rmtree(box.dir / "run")

    async def back():
        try:
            async with box.client() as client:
                return (await client.hello()).pid
        except NotRunning:
            return 0

    assert await until(back) == pid


async def test_a_daemon_whose_whole_directory_is_removed_goes(box: Box):
    box.start()
    process, box.process = box.process, None
    shutil.rmtree(box.dir / "state")
    assert await asyncio.to_thread(process.wait, PATIENCE) == 1
    assert "the state directory was removed" in box.log() and "Traceback" not in box.log()


async def test_many_clients_come_and_go_without_a_trace(box: Box):
    pid = box.start()

    def descriptors() -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    async with box.client() as client:
        await client.hello()
        before = descriptors()
        for _ in range(20):
            async with box.client() as other:
                async for _ in other.feed():
                    break
        await until(lambda: descriptors() <= before + 2)


def under_torchrun(*options: str) -> list[str]:
    command = torchrun()
    assert command[-2:] == ["-m", "engine"]
    return [*command[:-2], str(FAKE), *options]


async def test_under_torchrun_a_hangup_ends_nothing_and_stop_works(box: Box):
    box.start(command=under_torchrun("--hold-at", "5"))
    async with box.client() as client:
        await client.submit(box.job("one"))
        launcher = (await box.wait(client, "one", "running")).pid
        worker = facts(box.run_dir("one"))["pid"]
        assert os.getsid(launcher) == launcher and os.getsid(box.process.pid) not in (launcher, os.getsid(worker))
        for pid in (box.process.pid, launcher, worker):
            os.kill(pid, signal.SIGHUP)
        before = file_events(box.run_dir("one"))[-1].seq
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"
        assert file_events(box.run_dir("one"))[-1].seq > before
        # torchrun lived to the end
        assert "failed (exitcode: 75)" in (box.run_dir("one") / "logs/attempt_1.log").read_text()


async def test_under_torchrun_a_killed_worker_is_named_and_a_killed_launcher_leaves_no_orphan(box: Box):
    box.start(command=under_torchrun("--hold-at", "5"))
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        os.kill(facts(box.run_dir("one"))["pid"], signal.SIGKILL)
        killed = await box.wait(client, "one")
        assert killed.state == "failed" and "killed by SIGKILL" in killed.outcome and "Traceback" not in killed.outcome

        await client.submit(box.job("two"))
        launcher = (await box.wait(client, "two", "running")).pid
        os.kill(launcher, signal.SIGKILL)
        assert (await box.wait(client, "two")).state == "stopped"  # its worker was asked to save and stop
        assert not [p for p in box.processes() if p != box.process.pid]
