"""How a daemon says what is wrong with it."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from daemon.jobs import health
from daemon.jobs.service import Service
from daemon.wire.blocking import daemon_status
from daemon.wire.paths import daemon_paths, make_private
from presets.report.measures import Judged
from presets.report.run_reader import read_run
from tests.daemon.conftest import Box
from tests.presets.report.test_held_out import measure, preview, run_with


@pytest.fixture
def made(short_dir):
    def service() -> Service:
        make_private(daemon_paths(short_dir).state)
        return Service(daemon_paths(short_dir), ["true"], epoch="e", settings=short_dir / "settings.toml")

    return service


async def test_a_sound_one_has_no_problem(made: Callable[[], Service], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "LEAST_FREE", 0)
    service = made()
    said = await health.health_of(service)
    assert said.problems == [] and said.table_writable and said.rss > 10**6 and said.descriptors > 2
    assert [disk.path for disk in said.disks] == [str(service.paths.state)] and said.disks[0].free > 0
    assert said.queue == {} and said.idle_in is None and said.connections == 0
    service.close()


async def test_how_long_it_has_run_is_not_told_by_a_clock_that_is_set(
    made: Callable[[], Service], monkeypatch: pytest.MonkeyPatch
):
    service, real = made(), time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    assert 0 < (await health.health_of(service)).uptime < 86_400
    service.close()


async def test_each_trouble_is_named(made: Callable[[], Service], monkeypatch: pytest.MonkeyPatch, short_dir):
    monkeypatch.setattr(health, "LEAST_FREE", 2**62)
    service = made()
    (short_dir / "settings.toml").write_text("[idle]\nminutes = 0\n")
    service.idle.problem = "the idle command ended with exit code 3."
    service.follow_ups._failed("job 1: slack could not be told")
    service.store._db.execute("PRAGMA query_only = 1")
    said = await health.health_of(service)
    table, settings, disk, idle, message = said.problems
    assert "job table cannot be written" in table and not said.table_writable
    assert f"The disk of {service.paths.state} has" in disk and "settings.toml" in settings
    assert idle.startswith("The idle command ended") and message == "job 1: slack could not be told"
    assert [text.partition(" job")[2] for text in said.failures] == [" 1: slack could not be told"]
    service.close()
    with pytest.raises(sqlite3.ProgrammingError):
        service.store.fact("x")


async def test_a_real_one_tells_its_clients(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        job = await client.submit(box.job("a"))
        await box.wait(client, job.id, "running")
        seen = daemon_status(box.dir, health=True)
        assert seen.health is not None and seen.health.table_writable and seen.health.connections >= 2
        [run] = seen.health.runs
        assert (run.job, run.name, run.state, run.trainer_alive) == (job.id, "a", "running", True)
        assert seen.health.queue == {"running": 1} and str(box.run_dir("a")) in {d.path for d in seen.health.disks}


async def test_the_best_checkpoint_is_the_one_that_the_others_name(made: Callable[[], Service], tmp_path: Path):
    run, service = run_with(tmp_path), made()
    view = read_run(run).view
    wobble = {10: [0.3, 0.2, 0.3, 0.2], 20: [0.2, 0.3, 0.2, 0.29], 30: [0.9] * 4}
    view.measured += [measure(step, losses, losses) for step, losses in wobble.items()]
    assert await health._best_step(service, str(run), view) == 20
    previews = [preview(s, speed=1 - s / 100, direction=1) for s in (10, 20, 30)]
    (run / "judge.json").write_bytes(msgspec.json.encode(Judged(name="pan", previews=previews)))
    assert await health._best_step(service, str(run), view) == 10
    service.close()
