"""What follows the end of a job, by a real daemon: commands, messages, the idle command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.errors import RequestRefused
from tests.daemon.conftest import Box
from tests.daemon.followup.conftest import Receiver, receiver  # noqa: F401
from tests.helpers.waiting import PATIENCE


def settings(box: Box, text: str) -> None:
    (box.dir / "settings.toml").write_text(text)


async def test_commands_run_at_the_end_with_the_run_in_their_environment(box: Box, waiting: Callable):
    told = box.dir / "told"
    settings(
        box, f"[when]\non_done = 'env | grep ^WANLORA_ >{told}; echo talk; exit 3'\non_failed = 'touch {told}-failed'"
    )
    box.start()
    async with box.client() as client:
        job = await client.submit(box.job("a", steps=20))
        assert (await box.wait(client, job.id)).state == "done"

        async def over():
            record = await client.show(job.id)
            return record if record.outcome else None

        record = await waiting(over, "the command's end")
    log = box.run_dir("a") / "logs" / "on_done_1.log"
    assert record.outcome == f"on_done ended with exit code 3. Its output: {log}"
    assert log.read_text() == "talk\n" and "job 1: on_done ended with exit code 3" in box.log()
    found = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert found["WANLORA_JOB"] == "a" and found["WANLORA_STATE"] == "done" and found["WANLORA_STEP"] == "20"
    assert found["WANLORA_FILES"] == f"{box.run_dir('a')}/a.safetensors"
    assert not (box.dir / "told-failed").exists()
    await waiting(lambda: not list((box.dir / "state" / "follow_ups").iterdir()), "nothing left in the state folder")


async def test_a_job_has_commands_of_its_own(box: Box, waiting: Callable):
    general = f"[when]\non_done = 'touch {box.dir}/general'\non_failed = 'touch {box.dir}/failed'"
    settings(box, f"[daemon]\nrestarts = 0\n{general}")
    box.start("--exit-at", "12")
    async with box.client() as client:
        own = f"echo $WANLORA_EVENT $WANLORA_STEP >>{box.dir}/own"
        job = await client.submit(box.job("a", steps=20), on_failed=own, on_done="")
        assert job.commands == ["done", "failed"]
        assert (await box.wait(client, job.id)).state == "failed"
        await waiting(lambda: (box.dir / "own").exists(), "its own command")
        await client.resume(job.id)  # from step 10, and through: die-at was passed
        await waiting(lambda: (box.dir / "own").read_text().count("\n") == 2, "the second failure")
        for bad in ("a\0b", "x" * 70000):
            with pytest.raises(RequestRefused, match="on_done"):
                await client.submit(box.job("b"), on_done=bad)
    assert (box.dir / "own").read_text() == "failed 12\nfailed 12\n"
    assert not (box.dir / "failed").exists() and not (box.dir / "general").exists()


async def test_a_daemon_killed_before_and_during_the_command_runs_it_once(box: Box, waiting: Callable):
    settings(
        box, f"[when]\non_done = 'echo x >>{box.dir}/ran; while [ ! -e {box.dir}/go ]; do sleep 0.05; done; exit 7'"
    )
    box.start()
    async with box.client() as client:
        job = await client.submit(box.job("a", steps=20))
        await waiting(lambda: (box.dir / "ran").exists(), "the command")
        for _ in range(3):
            box.kill9()
            box.start()
        (box.dir / "go").touch()

        async def over():
            return (await client.show(job.id)).outcome

        outcome = await waiting(over, "its exit code")
    assert outcome.startswith("on_done ended with exit code 7.") and (box.dir / "ran").read_text() == "x\n"


async def test_a_command_that_takes_too_long_is_ended_with_all_it_started(box: Box, waiting: Callable):
    settings(
        box, f"[when]\nminutes = 0.01\non_done = 'sh -c \"trap : TERM; touch {box.dir}/up; sleep 1000; sleep 1000\"'"
    )
    box.start()
    async with box.client() as client:
        job = await client.submit(box.job("a", steps=20))

        async def over():
            return (await client.show(job.id)).outcome

        assert "on_done was ended after 1 s" in await waiting(over, "its end")
        assert (await client.submit(box.job("b", steps=20))).id == 2
    await waiting(lambda: "sleep 1000" not in " ".join(box.processes().values()), "no process of it")


async def test_settings_that_cannot_be_read_hold_a_command_back_and_lose_nothing(
    box: Box, waiting: Callable, monkeypatch: pytest.MonkeyPatch
):
    box.start("--hold-at", "5")
    async with box.client() as client:
        job = await client.submit(box.job("a", steps=20))
        await box.wait(client, job.id, "running")
        settings(box, "[when]\non_stopped = 5")
        box.kill9()
        box.start()  # all the same: it has a trainer to watch
        with pytest.raises(RequestRefused, match=r"when\.on_stopped"):  # perhaps they say where it may lie
            await client.submit(box.job("b"))
        await client.stop(job.id)
        await box.wait(client, job.id)
        await waiting(lambda: "waits until the settings can be read" in box.log(), "the complaint")
        box.kill9()
        settings(box, f"[when]\non_stopped = 'touch {box.dir}/ran'")
        box.start()
        await waiting(lambda: (box.dir / "ran").exists(), "the command")


async def test_messages_are_sent_and_survive_the_daemon(box: Box, waiting: Callable, receiver: Receiver):  # noqa: F811
    tables = [f'[[notify]]\nkind = "webhook"\nurl = "{receiver.url}/hook"\non = ["done", "stopped"]']
    settings(box, "\n".join(tables))
    receiver.codes = [503, 200]
    box.start("--hold-at", "5")
    async with box.client() as client:
        job = await client.submit(box.job("a", steps=20))
        await box.wait(client, job.id, "running")
        await client.stop(job.id)
        await box.wait(client, job.id)
        await waiting(lambda: "once more in 5 s" in box.log(), "the first try")
        box.kill9()
        box.start()
        await waiting(lambda: "webhook was told that it is stopped: answered 200" in box.log(), "the second")
    assert [json.loads(heard.body)["event"] for heard in receiver.heard] == ["stopped", "stopped"]


async def test_a_message_on_trial_says_what_came_back(box: Box, receiver: Receiver):  # noqa: F811
    box.start()
    async with box.client(timeout=PATIENCE) as client:
        with pytest.raises(RequestRefused, match=r"there is no \[\[notify\]\]"):
            await client.notify_test()
        settings(
            box,
            f'[[notify]]\nkind = "ntfy"\nname = "phone"\nurl = "{receiver.url}/t"\n[[notify]]\nkind = "slack"\n',
        )
        secrets = box.dir / "secrets.toml"
        secrets.write_text(f'[slack]\nurl = "{receiver.url}/services/very-secret"\n')
        secrets.chmod(0o644)
        assert all(not said.ok and f"chmod 600 {secrets}" in said.text for said in await client.notify_test())
        assert receiver.heard == []
        secrets.chmod(0o600)
        phone, slack = await client.notify_test()
        assert (phone.name, phone.ok, phone.text) == ("phone", True, "answered 200: thank you") and slack.ok
        [slack] = await client.notify_test("slack")
        assert slack.ok and receiver.heard[-1].path == "/services/very-secret"
        with pytest.raises(RequestRefused, match="called nobody"):
            await client.notify_test("nobody")
    assert "very-secret" not in box.log()


async def test_the_idle_command_runs_once_and_not_before_a_job(box: Box, waiting: Callable):
    ran = box.dir / "ran"
    settings(box, f"[idle]\nminutes = 0.02\ncommand = 'echo x >>{ran}'")
    box.start()
    async with box.client() as client:
        await client.submit(box.job("held"), hold=True)  # neither of these starts by itself
        await client.submit(box.job("later"), after=["held"])
        job = await client.submit(box.job("a", steps=20))
        await box.wait(client, job.id)
        assert not ran.exists() or ran.read_text() == "x\n"
        await waiting(lambda: "the idle command ended with exit code 0" in box.log(), "the idle command")
        box.kill9()
        box.start()
        job = await client.submit(box.job("b", steps=20))
        await box.wait(client, job.id)
        await waiting(lambda: ran.read_text().count("x") == 2, "the one after the second job")
        assert (await client.queue()).idle_in is None


async def test_clients_are_told_beforehand_and_a_submit_ends_it(box: Box, waiting: Callable):
    settings(box, f"[idle]\nminutes = 4\nafter_start = true\ncommand = 'touch {box.dir}/ran'")
    box.start("--hold-at", "5")
    async with box.client() as client:

        async def told():
            return (await client.queue()).idle_in

        assert 0 < await waiting(told, "the announcement") <= 240
        await waiting(lambda: "the idle command runs in" in box.log(), "the warning")
        async for message in client.feed():
            if getattr(message, "idle_in", None):
                break
        await client.submit(box.job("a", steps=20))

        async def off():
            return (await client.queue()).idle_in is None

        await waiting(off, "its end")
    assert not (box.dir / "ran").exists() and not list(Path(box.dir, "state/follow_ups").glob("idle*"))
