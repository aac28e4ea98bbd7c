"""What a request leaves on the disk, without a process of its own."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.jobs.requests import Requests
from daemon.jobs.service import Service
from daemon.queue.entry import Entry
from daemon.table import job_copies
from daemon.table.job_store import Store
from daemon.wire.paths import daemon_paths, make_private
from daemon.wire.protocol import Answer, JobRecord, JobReply, Jobs, PlannedTime, Refused, Request, Submit, reply_decoder
from tests.helpers.waiting import PATIENCE


@pytest.fixture
async def service(short_dir: Path) -> Iterator[Service]:
    """With one job that runs, so that others wait."""
    make_private(daemon_paths(short_dir).state)
    service = Service(daemon_paths(short_dir), ["true"], epoch="e", settings=short_dir / "settings.toml")
    running = JobRecord(id=1, name="first", job_path="/j", out="/runs", gpus=[0], state="running", steps=100)
    service.queue.entries[1] = Entry(record=running, order=1)
    service._save([1])
    yield service
    service.close()


def job_file(folder: Path, name: str) -> str:
    path = folder / f"{name}.toml"
    path.write_text(f'[job]\nname = "{name}"\ngpus = [0]\n[[datasets]]\npath = "clips"\n')
    return str(path)


async def answer(service: Service, id: str, asked: Submit) -> Answer:
    return reply_decoder.decode(await Requests(service).reply(Request(id=id, command=asked))).answer


@pytest.mark.parametrize(
    "more",
    [{}, {"hold": True}, {"planned": PlannedTime(step=2.0)}, {"on_done": "true", "priority": 3}],
    ids=["plain", "held", "planned", "commands"],
)
async def test_a_job_that_waits_is_committed_once_and_as_it_is(service: Service, short_dir: Path, more: dict):
    said: list[str] = []
    service.store._db.set_trace_callback(said.append)
    for n in range(3):
        found = await answer(service, f"r{n}", Submit(job_file(short_dir, f"job{n}"), **more))
        assert isinstance(found, JobReply) and found.job.id == n + 2
        assert said.count("COMMIT") == n + 1
        table = Store(service.paths.database)  # as a daemon after a kill would find it
        kept = table.entries()[-1]
        assert table.answer(f"r{n}") is not None
        table.close()
        now = service.queue.entries[found.job.id]
        kept.record.starts_at, kept.record.ends_at = now.record.starts_at, now.record.ends_at  # reckoned anew
        assert kept == now


async def test_a_refused_resumption_leaves_the_commands_of_the_job_as_they_were(service: Service, short_dir: Path):
    ended = service.queue.entries[1]
    ended.record.state, ended.commands, ended.record.out = "failed", {"failed": "as before"}, str(short_dir)
    asked = Submit(job_file(short_dir, "first"), out=str(short_dir), resume=True, on_failed="rm", on_done="rm")
    found = await answer(service, "r", asked)
    assert isinstance(found, Refused) and service.queue.entries[1].commands == {"failed": "as before"}


async def test_a_state_disk_that_is_slow_holds_up_nobody_and_two_at_once_get_two_numbers(
    service: Service, short_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    slow, go = threading.Event(), threading.Event()

    def fsync(path: Path) -> None:
        slow.set()
        go.wait(PATIENCE)

    monkeypatch.setattr(job_copies, "fsync", fsync)
    asking = [
        asyncio.create_task(answer(service, name, Submit(job_file(short_dir, name)))) for name in ("one", "two", "one_")
    ]
    (short_dir / "one_.toml").write_text((short_dir / "one.toml").read_text())  # the same run folder
    async with asyncio.timeout(PATIENCE):
        while not slow.is_set():
            await asyncio.sleep(0.01)
        listed = await Requests(service).reply(Request(id="list", command=Jobs()))
        assert [r.name for r in reply_decoder.decode(listed).answer.jobs] == ["first"]
        go.set()
        found = await asyncio.gather(*asking)
    jobs = {a.job.name: a.job.id for a in found if isinstance(a, JobReply)}
    (refused,) = (a for a in found if isinstance(a, Refused))
    assert sorted(jobs) == ["one", "two"] and sorted(jobs.values()) == [2, 3] and "already uses" in refused.what
    folder = service.paths.job_file(2).parent
    assert {f.name for f in folder.iterdir()} == {"job-2.toml", "job-3.toml"}
    assert f'"{service.queue.entries[2].record.name}"' in service.paths.job_file(2).read_text()
