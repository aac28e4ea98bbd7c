"""The queue as users arrange it, with the real daemon and over its death."""

import pytest

from daemon.errors import RequestRefused
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord, PlannedTime, Welcome
from presets.job.toml_file import load_job
from tests.daemon.conftest import Box, until
from tests.helpers.interface.harness import wanlora

FOREVER = ("--hold-at", "2")


async def line(client: Client) -> list[str]:
    records = [r for r in await client.jobs() if r.state == "queued"]
    return [r.name for r in sorted(records, key=lambda r: (-r.priority, r.order))]


def arranged(r: JobRecord) -> tuple:
    return r.id, r.name, r.state, r.priority, r.order, r.position, r.held, r.after


async def test_the_queue_is_arranged_and_a_new_daemon_keeps_to_it(box: Box):
    box.start(*FOREVER)
    async with box.client() as client:
        first = await client.submit(box.job("first"))
        await box.wait(client, first.id, "running")
        for name, options in {
            "a": {},
            "b": {"priority": 2},
            "c": {"hold": True},
            "d": {"after": ["a"], "planned": PlannedTime(3.0, 20.0)},
            "e": {},
        }.items():
            record = await client.submit(box.job(name), **options)
            assert (record.held != "", record.after) == (name == "c", [2] if name == "d" else [])
        assert await line(client) == ["b", "a", "c", "d", "e"]
        await client.move("e", "before", "a")
        await client.move("c", "last")
        await client.set_priority("d", -1)
        await client.hold("b")
        wanted = ["b", "e", "a", "c", "d"]
        assert await line(client) == wanted
        removed = await client.remove("e")
        assert removed.name == "e" and not (box.dir / "jobs/6.toml").exists()
        for verb, words in ((client.remove, "is running, so it stays"), (client.hold, "cannot be held")):
            with pytest.raises(RequestRefused, match=words):
                await verb("first")
        with pytest.raises(RequestRefused, match="no such job"):
            await client.submit(box.job("f"), after=["nobody"])
        wanted.remove("e")
        before = [arranged(r) for r in await client.jobs()]
        box.kill9()
        box.start()
        assert [arranged(r) for r in await client.jobs()] == before and await line(client) == wanted
        assert (await client.submit(box.job("f"), hold=True)).id == 7  # 6 was e's
        await client.release("b")
        await client.stop("first")
        await box.wait(client, "b", "running")
        await client.cancel("a")
        held = await client.show("d")
        assert "It comes after a (#2), which was cancelled" in held.held
        await client.stop("b")
        await box.wait(client, "b")
        assert (await client.show("d")).state == "queued"
        await client.release("d")
        await box.wait(client, "d", "running")


async def test_names_and_numbers(box: Box):
    box.start(*FOREVER)
    async with box.client() as client:
        await client.submit(box.job("orbit"))
        await client.submit(box.job("1", gpus=[1]))
        await box.wait(client, 1, "running")
        await box.wait(client, 2, "running")
        assert (await client.show("1")).id == 2 and "means 1 (#2, running) here, and not orbit (#1" in client.note
        assert [(await client.show(key)).id for key in (1, "#1", "id:1", "orbit")] == [1] * 4
        said = wanlora("stop", "1", "--dir", box.dir)
        assert (said.returncode == 0 and "1: " in said.stderr) or "1 saves" in said.stderr
        assert "1 means 1 (#2, " in said.stderr and "id:1" in said.stderr
        await box.wait(client, 2, "stopped")
        assert (await client.show(1)).state == "running"
        assert wanlora("stop", "#1", "--dir", box.dir).returncode == 0
        await box.wait(client, 1, "stopped")


async def test_a_job_is_renamed_before_and_after_it_begins(box: Box):
    box.start(*FOREVER)
    async with box.client() as client:
        await client.submit(box.job("first"))
        await client.submit(box.job("second"))
        await box.wait(client, "first", "running")
        for wrong, words in (("no good", "job.name"), ("first", "already holds a run"), ("", "job.name")):
            with pytest.raises(RequestRefused, match=words):
                await client.rename("second", wrong)
        (box.run_dir("taken")).mkdir()
        (box.run_dir("taken") / "job.toml").touch()
        with pytest.raises(RequestRefused, match="already holds a run"):
            await client.rename("second", "taken")
        renamed = await client.rename("second", "other")
        assert renamed.run_dir == str(box.run_dir("other"))
        label = await client.rename("first", "label")
        assert (label.name, label.run_dir) == ("label", str(box.run_dir("first")))
        box.kill9()
        box.start()
        await client.stop("label")
        await box.wait(client, "label")
        await box.wait(client, "other", "running")
        assert load_job(box.run_dir("other") / "job.toml").job.name == "other"
        assert not box.run_dir("second").exists()
        _, view = await client.snapshot("other")
        assert view.name == "other"
        await client.stop("other")
        await box.wait(client, "other")
        for name, folder in (("other", "other"), ("label", "first")):  # their job files say second and first
            assert (await client.resume_check(name)).verdict == "fits"
            await client.resume(name)
            record = await box.wait(client, name, "running")
            assert record.run_dir == str(box.run_dir(folder)) and record.attempt == 2
            await client.stop(name)
            await box.wait(client, name)


async def test_nothing_that_an_earlier_attempt_did_is_shown_of_the_next(box: Box):
    box.start(*FOREVER)
    async with box.client() as client:
        await client.submit(box.job("one"))

        async def trains():
            return (await client.show("one")).doing == "training"

        await until(trains, "training")
        await client.stop("one")
        assert (await box.wait(client, "one")).doing == ""
        await client.submit(box.job("two"))
        await box.wait(client, "two", "running")
        await client.resume("one")
        assert ((await client.show("one")).state, (await client.show("one")).doing) == ("queued", "")
        await client.stop("one")
        # the next attempt never says a word: the folder that it needs cannot be had
        logs = box.run_dir("one") / "logs"
        logs.rename(logs.with_name("away"))
        logs.touch()
        await client.resume("one")
        await client.stop("two")
        assert (await box.wait(client, "one", "failed")).doing == ""


async def test_ends_and_starts_are_told_and_removal_brings_clients_up_to_date(box: Box):
    box.start("--pace", "0.05")
    async with box.client() as client:
        await client.submit(box.job("one", steps=100_000))
        await client.submit(box.job("two"), planned=PlannedTime(6.0, 60.0))

        async def told():
            one, two = await client.jobs()
            return one.ends_at is not None and two.starts_at is not None and (one, two)

        one, two = await until(told, "estimates")
        assert one.starts_at == one.started_at
        assert one.ends_at - one.started_at > 1000  # 100,000 steps of 0.05 s and more
        assert abs(two.starts_at - one.ends_at) <= 0.1 * (one.ends_at - one.started_at)
        assert two.ends_at - two.starts_at == pytest.approx(180, abs=1000)
        listed = wanlora("jobs", "--dir", box.dir).stdout.splitlines()
        assert "WHEN" in listed[0] and "ends " in listed[1] and "starts in ~" in listed[2]
        feed = client.feed()
        assert isinstance(await anext(feed), Welcome)
        async with box.client() as other:
            await other.remove("two")
        async for message in feed:
            if isinstance(message, Welcome):
                break
        assert [r.name for r in await client.jobs()] == ["one"]
        with pytest.raises(RequestRefused, match="no such job"):
            await client.show(two.id)
