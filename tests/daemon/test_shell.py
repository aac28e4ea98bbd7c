"""The real daemon with a trainer that writes down its environment: settings, secrets and GPUs of the shell that submits
or resumes."""

import json
import os
import sqlite3

import pytest

from daemon.errors import RequestRefused
from daemon.wire.client import Client
from presets.machine.shell import is_setting
from presets.machine.visible_gpus import NUMBERS, ORDER, VISIBLE
from tests.daemon.conftest import Box, until

TOKEN = "hf_TheTokenOfThisTest1234"
PROXY = "http://anna:geheimnis@127.0.0.1:9"


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that says nothing."""
    for name in list(os.environ):
        if is_setting(name) or name in (VISIBLE, ORDER, NUMBERS):
            monkeypatch.delenv(name)


def told(box: Box, name: str, attempt: int = 1) -> dict[str, str]:
    """The environment of an attempt, but for what it shares with any."""
    path = box.dir / "environ" / f"{name}-{attempt}.json"
    found = json.loads(path.read_text())
    return {k: v for k, v in found.items() if is_setting(k) or k in (VISIBLE, ORDER, NUMBERS)}


def written(box: Box) -> bytes:
    """Everything that the daemon, its job table and the run folders hold on disk, but for what the trainer's own test
    option wrote."""
    with sqlite3.connect(box.dir / "state" / "jobs.sqlite3") as table:
        table.execute("PRAGMA wal_checkpoint(FULL)")
    return b"\n".join(
        path.read_bytes() for path in sorted(box.dir.rglob("*")) if path.is_file() and path.parent.name != "environ"
    )


def start(box: Box, *options: str) -> None:
    (box.dir / "environ").mkdir(exist_ok=True)
    box.start("--environ", str(box.dir / "environ"), *options)


async def ran(box: Box, client: Client, name: str, gpus: list[int] | None = None) -> dict[str, str]:
    await client.submit(box.job(name, gpus=gpus))
    assert (await box.wait(client, name)).state == "done"
    return told(box, name)


async def test_settings_of_the_submitting_shell_reach_the_trainer_in_place_of_the_daemon_s(box: Box, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://old:1")
    start(box)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HTTP_PROXY")
    given = {
        "HF_HOME": "/data/hf",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_TOKEN": TOKEN,
        "https_proxy": PROXY,
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/ca.pem",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    async with box.client() as client:
        found = await ran(box, client, "one")
        assert {k: v for k, v in found.items() if is_setting(k)} == given
    everything = written(box)
    assert b"/data/hf" in everything and TOKEN.encode() not in everything and b"geheimnis" not in everything


async def test_a_job_from_another_machine_gets_the_daemon_s_own(box: Box, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/daemon/hf")
    start(box)
    monkeypatch.setenv("HF_HOME", "/laptop/hf")
    async with box.client(here=False) as client:
        assert (await ran(box, client, "one"))["HF_HOME"] == "/daemon/hf"


async def test_a_resume_brings_the_settings_of_its_own_shell(box: Box, monkeypatch):
    start(box, "--hold-at", "5")
    monkeypatch.setenv("HF_HOME", "/first")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        await client.stop("one")
        await box.wait(client, "one", "stopped")
        monkeypatch.setenv("HF_HOME", "/second")
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}2")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x")
        record = await client.resume("one")
        assert record.devices == ["GPU-x"]
        await box.wait(client, "one", "running", "done", "stopped")
        await until(lambda: (box.dir / "environ" / "one-2.json").exists())
    again = told(box, "one", 2)
    assert (again["HF_HOME"], again["HF_TOKEN"], again[VISIBLE]) == ("/second", f"{TOKEN}2", "GPU-x")
    assert TOKEN.encode() not in written(box)


async def test_after_a_restart_settings_are_there_and_a_missing_token_is_said_if_the_run_fails(box: Box, monkeypatch):
    start(box, "--hold-at", "5")
    monkeypatch.setenv("HF_HOME", "/data/hf")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    async with box.client() as client:
        await client.submit(box.job("holds"))
        await client.submit(box.job("waits"))
        await box.wait(client, "holds", "running")
    box.kill9()
    monkeypatch.delenv("HF_TOKEN")
    start(box, "--fail")
    async with box.client() as client:
        await client.stop("holds")
        assert (await box.wait(client, "holds")).state == "stopped"
        failed = await box.wait(client, "waits")
        assert (
            failed.state == "failed"
            and "HF_TOKEN of the shell that it came from was not at hand" in failed.outcome
            and "wanlora resume waits" in failed.outcome
        )
        assert told(box, "waits")["HF_HOME"] == "/data/hf" and "HF_TOKEN" not in told(box, "waits")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        await client.resume("waits")
        again = await box.wait(client, "waits", "failed")
        assert told(box, "waits", 2)["HF_TOKEN"] == TOKEN and "HF_TOKEN" not in again.outcome
    assert TOKEN.encode() not in written(box)


async def test_a_daemon_with_the_token_of_its_own_lends_it_after_a_restart(box: Box, monkeypatch):
    start(box, "--hold-at", "5")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    async with box.client() as client:
        await client.submit(box.job("holds"))
        await client.submit(box.job("waits"))
        await box.wait(client, "holds", "running")
    box.kill9()
    monkeypatch.setenv("HF_TOKEN", "the daemon's own")
    start(box)
    async with box.client() as client:
        await client.stop("holds")
        assert (await box.wait(client, "waits")).state == "done"
    assert told(box, "waits")["HF_TOKEN"] == "the daemon's own"


# --- GPUs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("daemon", "shell", "gpus", "expected"),
    [
        ("2,3", "5,GPU-9f,MIG-1-2", [1], "GPU-9f"),
        ("2,3", None, [0, 1], "2,3"),
        pytest.param(None, None, [1], "1", marks=pytest.mark.thorough),
        pytest.param("-1", None, [0], "", marks=pytest.mark.thorough),
        pytest.param("2,3", None, [1], "3", marks=pytest.mark.thorough),
        pytest.param(None, "MIG-1-2,MIG-3-4", [1], "MIG-3-4", marks=pytest.mark.thorough),
        pytest.param("2", "", [0], "", marks=pytest.mark.thorough),
        pytest.param("GPU-a,GPU-b", "", [3], "", marks=pytest.mark.thorough),
    ],
)
async def test_job_gpus_count_within_what_the_shell_or_else_the_daemon_shows(
    box: Box, monkeypatch, daemon, shell, gpus, expected
):
    if daemon is not None:
        monkeypatch.setenv(VISIBLE, daemon)
    start(box)
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv(ORDER, "FASTEST_FIRST")
    if shell is not None:
        monkeypatch.setenv(VISIBLE, shell)
    async with box.client() as client:
        found = await ran(box, client, "one", gpus)
    assert (found[VISIBLE], found[ORDER]) == (expected, "PCI_BUS_ID")
    assert found[NUMBERS] == (",".join(map(str, gpus)) if expected else "")


async def test_a_gpu_beyond_the_list_is_refused_at_once(box: Box, monkeypatch):
    start(box)
    monkeypatch.setenv(VISIBLE, "2,3")
    async with box.client() as client:
        with pytest.raises(
            RequestRefused, match=r"job.gpus: there is no GPU 2 among the 2 that CUDA_VISIBLE_DEVICES shows \(2,3\)"
        ):
            await client.submit(box.job("one", gpus=[2]))
        assert await client.jobs() == []


async def test_one_card_has_one_queue_whatever_its_shells_call_it(box: Box, monkeypatch):
    start(box, "--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("whole", gpus=[3]))
        monkeypatch.setenv(VISIBLE, "2,3")
        assert (await client.submit(box.job("second", gpus=[1]))).position == 1
        assert (await client.submit(box.job("beside", gpus=[0]))).position == 0
        monkeypatch.setenv(VISIBLE, "MIG-a,MIG-b")
        assert [(await client.submit(box.job(name, gpus=[i]))).position for i, name in enumerate(("a", "b"))] == [0, 0]
        for name in ("whole", "beside", "a", "b"):
            await box.wait(client, name, "running")
        assert (await client.show("second")).state == "queued"
        await client.stop("whole")
        await box.wait(client, "second", "running")


async def test_a_job_of_an_older_table_queues_by_the_same_names(box: Box):
    """Its entry holds no names of GPUs: they are found when the daemon starts."""
    start(box, "--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("held"))
        await client.submit(box.job("waits"))
        await box.wait(client, "held", "running")
    box.kill9()
    with sqlite3.connect(box.dir / "state" / "jobs.sqlite3") as table:
        for job, text in table.execute("SELECT id, entry FROM jobs").fetchall():
            entry = json.loads(text)
            del entry["record"]["devices"], entry["shell"], entry["secrets"], entry["lacking"]
            table.execute("UPDATE jobs SET entry = ? WHERE id = ?", (json.dumps(entry), job))
    box.start()
    async with box.client() as client:
        assert [r.devices for r in await client.jobs()] == [["0"], ["0"]]
        assert (await client.show("waits")).state == "queued"
