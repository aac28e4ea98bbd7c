"""Files that never come, are no files, or are far too large: only who asked for them is held up, and effects stay in
order."""

import asyncio
import os
import signal
import uuid
from pathlib import Path

import pytest

from daemon.errors import RequestRefused
from daemon.wire import protocol as wire
from tests.daemon.conftest import Box, until
from tests.daemon.test_daemon import facts, file_events
from tests.daemon.wire.test_protocol import Raw
from tests.helpers.waiting import LOOK, PATIENCE

# A network disk that does not answer, for the files of some names, until somebody opens the other end of the pipe
# beside them. A thread that waits for a real one waits in the same way: in open().
SLOW = """
import sys
from pathlib import Path
import daemon.jobs.intake, daemon.jobs.runner
def slow(real, name, gate):
    def wait(path):
        if path.name == name:
            open(gate(path)).close()
        return real(path)
    return wait
daemon.jobs.intake.load_job = slow(daemon.jobs.intake.load_job, "slow.toml", lambda path: path.with_suffix(".gate"))
daemon.jobs.runner.prepare = slow(daemon.jobs.runner.prepare, "stuck", lambda path: path.parent.parent / "stuck.gate")
from daemon.__main__ import main
sys.exit(main())
"""


class Gate:
    """The other end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)

    async def open(self) -> None:
        """Wait until somebody waits there, and let them go."""

        def opened() -> int | None:
            try:
                return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return None

        os.close(await until(opened))


@pytest.fixture
async def slow(box: Box) -> Box:
    box.program = ["-c", SLOW]
    box.start("--hold-at", "5")
    return box


async def others_are_served(box: Box, name: str) -> None:
    """A whole job, from its submission to its end, while somebody waits."""
    async with box.client(timeout=PATIENCE, retries=0) as other:
        await other.submit(box.job(name, gpus=[7]))
        await box.wait(other, name, "running")
        await other.stop(name)
        assert (await box.wait(other, name)).state == "stopped"


async def test_a_job_file_that_does_not_come_holds_up_nobody_else(slow: Box):
    gate = Gate(slow.dir / "jobs/slow.gate")
    async with slow.client() as client, slow.client() as other:
        submitting = asyncio.create_task(client.submit(slow.job("slow")))
        await others_are_served(slow, "quick")
        with pytest.raises(RequestRefused, match="no such job"):
            await other.cancel("slow")  # it has not been accepted
        assert not submitting.done()
        await gate.open()
        assert (await submitting).state == "queued"
        await slow.wait(other, "slow", "running")
        assert (await other.cancel("slow")).state == "stopping"


async def test_one_that_never_comes_is_refused_in_time_and_the_daemon_can_end(box: Box):
    patience = "from daemon.background_io import BackgroundIO\nBackgroundIO.__call__.__kwdefaults__['seconds'] = 4.0"
    box.program = ["-c", patience + SLOW]
    box.start("--hold-at", "5")
    gate = Gate(box.dir / "jobs/slow.gate")
    async with box.client(retries=30) as client:
        with pytest.raises(RequestRefused, match=r"slow\.toml: has not come for 4 s") as refused:
            await client.submit(box.job("slow"))
        assert "network disk" in refused.value.fix and await client.jobs() == []
        submitting = asyncio.create_task(client.submit(box.job("slow")))
        await others_are_served(box, "quick")
        box.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(box.process.wait, PATIENCE) == 0
        box.program = []
        await asyncio.to_thread(box.start)
        assert (await submitting).name == "slow"  # the next daemon was asked again, and nothing had happened yet
        assert [j.name for j in await client.jobs()] == ["quick", "slow"]
    gate.path.unlink()


async def test_a_request_that_is_asked_again_while_it_waits_acts_once(slow: Box):
    gate = Gate(slow.dir / "jobs/slow.gate")
    request = wire.encode(wire.Request(id=uuid.uuid4().hex, command=wire.Submit(str(slow.job("slow")))))
    first, second = Raw(slow), Raw(slow)  # who waits in vain hangs up and asks on a new connection
    try:
        await first.send(request)
        await others_are_served(slow, "quick")
        await second.send(request)
        asking = [
            asyncio.create_task(raw.ask(wire.encode(wire.Request(id=uuid.uuid4().hex, command=wire.Jobs()))))
            for raw in (first, second)
        ]
        await others_are_served(slow, "quicker")
        assert not any(task.done() for task in asking)  # a client's requests are answered in their order
        await gate.open()
        answers = await asyncio.gather(*asking)
        assert answers[0] == answers[1] and isinstance(answers[0].answer, wire.JobReply)
    finally:
        first.close()
        second.close()
    async with slow.client() as client:
        assert [j.name for j in await client.jobs()].count("slow") == 1
        await slow.wait(client, "slow", "running")


async def test_of_two_submissions_of_one_job_one_is_accepted(slow: Box):
    gate = Gate(slow.dir / "jobs/slow.gate")
    async with slow.client() as a, slow.client() as b:
        asking = [asyncio.create_task(client.submit(slow.job("slow"))) for client in (a, b)]
        await others_are_served(slow, "quick")

        async def keep_open() -> None:
            while True:  # one of them may come later
                await gate.open()
                await asyncio.sleep(LOOK)

        opening = asyncio.create_task(keep_open())
        told = await asyncio.gather(*asking, return_exceptions=True)
        opening.cancel()
        assert sorted(type(t).__name__ for t in told) == ["JobRecord", "RequestRefused"]
        assert "already uses the run folder" in str(next(t for t in told if isinstance(t, RequestRefused)))
        await slow.wait(a, "slow", "running")


@pytest.mark.parametrize("order", ["cancel", "stop"])
async def test_a_job_whose_run_folder_hangs_can_be_ended_before_it_starts(slow: Box, order: str):
    gate = Gate(slow.dir / "jobs/stuck.gate")
    async with slow.client() as client:
        await client.submit(slow.job("stuck"))
        await others_are_served(slow, "quick")
        assert (await client.show("stuck")).state == "starting"
        assert (await getattr(client, order)("stuck")).state == "stopping"
        await gate.open()
        ended = await slow.wait(client, "stuck")
        assert ended.state == ("cancelled" if order == "cancel" else "stopped")
        assert not list(slow.run_dir("stuck").glob("logs/*"))
        await client.resume("stuck")
        await gate.open()
        await slow.wait(client, "stuck", "running")
        await client.stop("stuck")
        assert (await slow.wait(client, "stuck")).state == "stopped"


async def test_a_daemon_killed_while_it_prepares_a_folder_begins_anew(slow: Box):
    Gate(slow.dir / "jobs/stuck.gate")
    async with slow.client() as client:
        await client.submit(slow.job("stuck"))
        await others_are_served(slow, "quick")
        slow.kill9()
        slow.program = ["-m", "daemon"]
        slow.start()
        assert (await slow.wait(client, "stuck", "running")).attempt == 1


# --- no files at all
# -----------------------------------------------------------------------------------------------------


async def test_a_job_file_that_is_none_is_refused_at_once(box: Box):
    box.start("--hold-at", "5")
    os.mkfifo(pipe := box.dir / "pipe.toml")
    large = box.dir / "large.toml"
    large.touch()
    os.truncate(large, 200 * 2**20)
    async with box.client(timeout=PATIENCE, retries=0) as client:
        for path, words in (
            (pipe, "it is a named pipe"),
            (Path("/dev/zero"), "it is a device"),
            (large, "it has 209,715,200 bytes"),
            (box.dir, "Is a directory"),
        ):
            with pytest.raises(RequestRefused, match=words):
                await client.submit(path)
        path = box.job("one")
        await client.submit(path)
        await box.wait(client, "one", "running")
        await client.stop("one")
        await box.wait(client, "one")
        path.unlink()
        os.mkfifo(path)
        for asking in (client.resume("one"), client.resume_check("one"), client.submit(path, resume=True)):
            with pytest.raises(RequestRefused, match="it is a named pipe"):
                await asking
        assert (await client.show("one")).state == "stopped"


async def test_pipes_in_a_run_folder_are_waited_for_by_nobody(box: Box):
    box.start("--hold-at", "5")
    async with box.client(timeout=PATIENCE, retries=0) as client:
        for name, lies in (("log", "logs/attempt_1.log"), ("order", "control/1.json")):
            pipe = box.run_dir(name) / lies
            pipe.parent.mkdir(parents=True)
            os.mkfifo(pipe)
            await client.submit(box.job(name, gpus=[len(name)]))
        assert (await box.wait(client, "log", "running", "failed")).state == "running"
        assert facts(box.run_dir("log"))  # in a file
        assert (await box.wait(client, "order", "running", "failed")).attempt == 1
        (box.run_dir("order") / "control/1.json").unlink()  # a real trainer would see what it is

        (folder := box.run_dir("log") / "checkpoints/step_000000001").mkdir(parents=True)
        os.mkfifo(folder / "manifest.json")
        assert 1 not in [c.step for c in (await client.checkpoints("log"))[1]]

        box.run_dir("events").mkdir(parents=True)
        os.mkfifo(box.run_dir("events") / "events.jsonl")
        await client.submit(box.job("events", gpus=[1]))
        failed = await box.wait(client, "events")
        assert failed.state == "failed" and "it is a named pipe" in failed.outcome
        for asking in (client.snapshot("events"), client.checkpoints("events")):
            with pytest.raises(RequestRefused, match="it is a named pipe"):
                await asking

        box.run_dir("held").mkdir()
        os.mkfifo(box.run_dir("held") / "job.toml")
        with pytest.raises(RequestRefused, match="it is a named pipe"):
            await client.submit(box.job("held", gpus=[2]), resume=True)


async def test_a_long_run_is_read_while_others_are_served(box: Box):
    """The first look at a run of many events: each other request comes through, and the events come complete."""
    box.start("--pace", "0")
    async with box.client() as client:
        await client.submit(box.job("one", steps=3000))
        await box.wait(client, "one", "done")
        box.kill9()
        lines = (box.run_dir("one") / "events.jsonl").read_bytes()
        box.start()
        reading = [asyncio.create_task(client.snapshot("one"))]
        async with box.client() as other:
            reading += [asyncio.create_task(other.replay("one")) for _ in range(3)]
            assert [j.name for j in await other.jobs()] == ["one"]
            (_, view), *replays = await asyncio.gather(*reading)
        assert view.last_seq == len(lines.splitlines()) and all(
            events == file_events(box.run_dir("one")) for events in replays
        )


async def test_one_client_asking_too_much_at_once_is_told(slow: Box):
    gate = Gate(slow.dir / "jobs/slow.gate")
    raw = Raw(slow)
    try:
        await raw.send(wire.encode(wire.Request(id="first", command=wire.Submit(str(slow.job("slow"))))))
        for n in range(40):
            await raw.send(wire.encode(wire.Request(id=f"r{n}", command=wire.Jobs())))
        told = wire.reply_decoder.decode(await raw.socket.recv())
        assert (
            isinstance(told.answer, wire.Refused)
            and "too many requests at once" in told.answer.what
            and told.id.startswith("r")
        )
        await others_are_served(slow, "quick")
        await gate.open()
        rest = [wire.reply_decoder.decode(await raw.socket.recv()) for _ in range(40)]
        assert {r.id for r in rest} | {told.id} == {"first"} | {f"r{n}" for n in range(40)}
    finally:
        raw.close()
    async with slow.client() as client:
        await slow.wait(client, "slow", "running")
