"""Orders to a running job, and a resume with a changed job file or from an older checkpoint, through the real
daemon."""

import shutil
import uuid
from pathlib import Path

import msgspec
import pytest

from daemon.errors import RequestRefused
from daemon.jobs.control_files import forget_stops, write_command
from daemon.wire import protocol as wire
from daemon.wire.client import Client
from presets.runs.control import TrainerCommand
from tests.daemon.conftest import Box, until
from tests.daemon.test_daemon import facts, file_events


async def happened(box: Box, kind: str, name: str = "one", count: int = 1):
    """Wait for the job's events of a kind, and give the newest."""
    return (
        await until(
            lambda: len(found := [e for e in file_events(box.run_dir(name)) if e.kind == kind]) >= count and found,
            f"{count} x {kind}",
        )
    )[-1]


async def at_step(client: Client, step: int, job: str = "one") -> None:
    async def there():
        return (await client.snapshot(job))[1].step >= step

    await until(there, f"step {step}")


async def test_orders_reach_the_trainer_and_their_events_come_back(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await at_step(client, 15)
        assert (await client.set("one", "training.lr", "5e-5")).state == "running"
        assert (await happened(box, "changed")).data == {"field": "training.lr", "old": 1e-4, "new": 5e-5, "step": 15}
        await client.save_now("one")
        assert (await happened(box, "checkpoint", count=2)).data["step"] == 15
        await client.sample_now("one")
        assert (await happened(box, "sample")).data["step"] == 15
        await client.set("one", "training.steps", "40")
        await happened(box, "changed", count=2)

        async def known():
            record, view = await client.snapshot("one")
            return (record.steps, view.steps) == (40, 40) and view.settings

        settings = await until(known)
        assert (
            settings["training.lr"],
            settings["training.steps"],
            settings["save.every"],
            settings["multistage.high.lr"],
        ) == (5e-5, 40, 250, None)
        await client.set("one", "save.every", " 7 ")
        await client.set("one", "save.every", "8")
        await happened(box, "changed", count=4)
        # in the order they were given
        assert [e.data["new"] for e in file_events(box.run_dir("one")) if e.kind == "changed"] == [5e-5, 40, 7, 8]


WRONG = [
    ("training.lr", "fast", r"training\.lr: expected number, got \"fast\""),
    ("training.lr", "-1", r"training\.lr: expected above 0"),
    ("training.steps", "1.5", r"training\.steps: expected integer"),
    ("target.rank", "8", r"target\.rank: cannot be changed while the job runs.*These can: training\.lr"),
    ("training.lrr", "1", r"training\.lrr: cannot be changed"),
    ("training.lr", "", r"training\.lr: expected"),
]


async def test_what_cannot_be_set_is_refused_before_anything_is_written(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await at_step(client, 5)
        for field, value, words in WRONG:
            with pytest.raises(RequestRefused, match=words):
                await client.set("one", field, value)
        await client.set("one", "save.keep", "9")
        await happened(box, "changed")
        assert [e.data["field"] for e in file_events(box.run_dir("one")) if e.kind == "changed"] == ["save.keep"]


async def test_a_job_that_does_not_run_takes_no_orders_and_says_what_to_do(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await client.submit(box.job("two"))
        advice = (
            r"two: is queued, so its trainer takes no commands\. Take it from the queue with: wanlora stop two\. Then"
            r" change its job file .*two\.toml, and queue it again with: wanlora resume two"
        )
        with pytest.raises(RequestRefused, match=advice):
            await client.set("two", "training.lr", "5e-5")
        await box.wait(client, "one", "running")
        await client.stop("one")
        await box.wait(client, "one")
        for order in (client.save_now, client.sample_now):
            with pytest.raises(
                RequestRefused,
                match=r"one: is stopped, so its trainer takes no commands\. Only a running job can do that",
            ):
                await order("one")
        with pytest.raises(RequestRefused, match="no such job"):
            await client.save_now("nobody")
        await client.cancel("two")
        path = box.job("three")
        path.write_text(path.read_text().partition("[[sample")[0])
        await client.submit(path)
        await at_step(client, 5, "three")
        with pytest.raises(RequestRefused, match="three: has no sample prompts to make previews of"):
            await client.sample_now("three")


async def test_a_queued_job_is_changed_as_it_is_advised(box: Box):
    """Also one that waits to go on with what it has trained."""
    box.start("--hold-at", "5")
    async with box.client() as client:
        path = box.job("two")
        for number, lr in enumerate(("5e-5", "3e-5")):
            await client.submit(box.job(f"one{number}"))
            await box.wait(client, f"one{number}", "running")
            await (client.resume("two") if number else client.submit(path))
            await client.stop("two")
            path.write_text(box.job("two").read_text().replace("[training]", f"[training]\nlr = {lr}"))
            assert (await client.resume("two")).state == "queued"
            await client.cancel(f"one{number}")
            if not number:
                await at_step(client, 5, "two")
                await client.stop("two")
            await box.wait(client, "two")
        assert [e.data["job"]["training"]["lr"] for e in file_events(box.run_dir("two")) if e.kind == "started"] == [
            5e-5,
            3e-5,
        ]


async def test_the_same_order_request_acts_once(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await at_step(client, 5)
        request = wire.encode(wire.Request(id=uuid.uuid4().hex, command=wire.Set("one", "save.keep", "9")))
        for _ in range(2):
            await client._dealer.send(request)
            reply = wire.reply_decoder.decode(await client._dealer.recv())
            assert isinstance(reply.answer, wire.JobReply)
            await happened(box, "changed")
        await client.save_now("one")
        await happened(box, "checkpoint")
        assert len([e for e in file_events(box.run_dir("one")) if e.kind == "changed"]) == 1


def test_an_order_lies_there_once_whole_and_in_its_place(tmp_path: Path):
    for request, order in (
        ("a/../b", TrainerCommand(command="set", field="training.lr", value="1e-5")),
        ("b", TrainerCommand(command="save")),
        ("b", TrainerCommand(command="save")),
        ("c", TrainerCommand(command="stop")),
    ):
        write_command(tmp_path, request, order)
    there = [msgspec.json.decode(f.read_bytes()) for f in sorted((tmp_path / "control").iterdir())]
    assert there == [
        {"id": "a/../b", "command": "set", "field": "training.lr", "value": "1e-5"},
        {"id": "b", "command": "save"},
        {"id": "c", "command": "stop"},
    ]


def test_only_stops_are_forgotten_and_what_is_no_command_is_left_to_the_trainer(tmp_path: Path):
    write_command(tmp_path, "a", TrainerCommand(command="stop"))
    write_command(tmp_path, "b", TrainerCommand(command="save"))
    for name, content in (
        ("dance", b'{"command": "dance"}'),
        ("latin", b'{"id": "\xff", "command": "stop"}'),
        ("torn", b"{"),
    ):
        (tmp_path / "control" / f"{name}.json").write_bytes(content)
    forget_stops(tmp_path)
    assert sorted(f.stem.rpartition("-")[2] for f in (tmp_path / "control").iterdir() if f.stem.isalpha()) == [
        "dance",
        "latin",
        "torn",
    ]
    assert [msgspec.json.decode(f.read_bytes())["command"] for f in (tmp_path / "control").glob("*-*.json")] == ["save"]


async def stopped_at(box: Box, client: Client, step: int, name: str = "one", **options) -> Path:
    path = box.job(name, **options)
    await client.submit(path)
    await at_step(client, step, name)
    await client.stop(name)
    await box.wait(client, name, "stopped")
    return path


async def test_a_changed_job_file_is_taken_up_and_what_breaks_exactness_is_asked_about(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        path = await stopped_at(box, client, 15)
        assert (await client.resume_check("one")).changes == []
        path.write_text(path.read_text().replace("steps = 20", "steps = 17\nlr = 5e-5"))
        free = (await client.resume_check("one")).changes
        assert [(c.text, c.breaks) for c in free] == [
            ("training.lr: 0.0001 -> 5e-05", False),
            ("training.steps: 20 -> 17", False),
        ]
        path.write_text(path.read_text().replace("[training]", "[training]\nloss = 'mae'"))
        assert [c.field for c in (await client.resume_check("one")).changes if c.breaks] == ["training.loss"]
        with pytest.raises(
            RequestRefused, match=r"one: its job file has changed .*training\.loss: .mse. -> .mae..*--accept-changes"
        ):
            await client.resume("one")
        good = path.read_text()
        path.write_text(good + "[target]\nrank = 8\n")
        with pytest.raises(
            RequestRefused,
            match=r"one: its job file has changed so that its checkpoints do not fit it \(target\.rank: 16 -> 8\)",
        ):
            await client.resume("one", accepted=(await client.resume_check("one")).digest)
        path.write_text(good)
        assert (await client.show("one")).state == "stopped"
        shown = (await client.resume_check("one")).digest
        path.write_text(good.replace("'mae'", "'huber'"))
        with pytest.raises(
            RequestRefused,
            match=(
                r"one: its job file has other changes by now than those that were accepted \(training\.loss: .mse. ->"
                r" .huber.\)"
            ),
        ):
            await client.resume("one", accepted=shown)
        path.write_text(good.replace("lr = 5e-5", "lr = 6e-5"))  # this one needs no acceptance
        assert (await client.resume("one", accepted=shown)).steps == 17
        assert (await box.wait(client, "one")).step == 17
        assert facts(box.run_dir("one"), 2)["args"][-2:] == ["--resume", "--accept-changes"]
        assert [e.data["lr"] for e in file_events(box.run_dir("one")) if e.kind == "step" and e.attempt == 2] == [
            6e-5,
            6e-5,
        ]
        assert (await client.resume_check("one")).changes == []  # accepted: the next attempt has nothing to ask


async def test_a_change_that_is_taken_back_before_its_attempt_began_is_forgotten(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        path = await stopped_at(box, client, 15)
        await client.submit(box.job("two"))  # takes the GPU
        text = path.read_text()
        path.write_text(text.replace("steps = 20", "steps = 20\nlr = 5e-5"))
        assert (await client.resume("one")).state == "queued"
        await client.stop("one")
        path.write_text(text)
        await client.resume("one")
        await client.cancel("two")
        await box.wait(client, "one", "done")
        assert {e.data["lr"] for e in file_events(box.run_dir("one")) if e.kind == "step"} == {1e-4}


async def test_a_job_file_that_is_gone_broken_or_anothers(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        path = await stopped_at(box, client, 15)
        text = path.read_text()
        path.write_text("this is not TOML")
        with pytest.raises(RequestRefused, match="not valid TOML") as refused:
            await client.resume("one")
        assert refused.value.findings
        path.write_text(text.replace('"one"', '"other"'))
        with pytest.raises(RequestRefused, match=r"names another run by now \(other\)\. Set job\.name back to one"):
            await client.resume("one")
        path.unlink()
        await client.resume("one")
        assert (await box.wait(client, "one")).state == "done"


async def test_a_run_whose_own_job_file_is_torn_goes_on_with_a_yes(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        await stopped_at(box, client, 15)
        (box.run_dir("one") / "job.toml").write_text("[job")
        with pytest.raises(RequestRefused, match="nobody can tell what has changed"):
            await client.resume("one")
        asked = await client.resume_check("one")
        assert asked.verdict == "ask" and asked.changes == []
        await client.resume("one", accepted=asked.digest)
        assert (await box.wait(client, "one")).state == "done"
        assert facts(box.run_dir("one"), 2)["args"][-1] == "--accept-changes"


async def test_a_run_goes_back_to_a_chosen_checkpoint(box: Box):
    box.start("--hold-at", "25", "--measured")
    async with box.client() as client:
        await stopped_at(box, client, 25, steps=30)
        record, there = await client.checkpoints("one")
        assert record.name == "one" and [(c.step, c.size, c.path) for c in there] == [
            (s, 7, f"checkpoints/step_{s:09}") for s in (10, 20, 25)
        ]
        assert (
            there[0].losses["high_noise"] == pytest.approx(sum(1 / s for s in range(1, 10, 2)) / 5)
            and there[0].time > 0
        )
        assert [c.verdict for c in there] == ["worse", "best", "worse"] and "later ones overfit" in there[1].why
        with pytest.raises(RequestRefused, match=r"one: has no checkpoint of step 11\. These are there: 10, 20, 25"):
            await client.resume("one", from_step=11)
        await client.resume("one", from_step=10)
        await until(
            lambda: (
                file_events(box.run_dir("one"))[-1].attempt == 2 and file_events(box.run_dir("one"))[-1].kind == "step"
            )
        )
        assert facts(box.run_dir("one"), 2)["args"][-3:] == ["--resume", "--from", "10"]

        async def told():
            return (await client.snapshot("one"))[1].resumed == [10]

        await until(told)
        await client.stop("one")
        await box.wait(client, "one")
        await client.resume("one")
        await box.wait(client, "one", "done")
        assert facts(box.run_dir("one"), 3)["args"][-1] == "--resume"  # the choice was for one attempt


async def test_a_finished_run_goes_on_with_more_steps_or_from_a_checkpoint(box: Box):
    box.start()
    async with box.client() as client:
        path = box.job("one")
        await client.submit(path)
        await box.wait(client, "one", "done")
        with pytest.raises(
            RequestRefused,
            match=r"is done, there is nothing to resume. For more steps raise training\.steps in .*one\.toml",
        ):
            await client.resume("one")
        path.write_text(path.read_text().replace("steps = 20", "steps = 30"))
        assert (await client.resume("one")).state in ("queued", "starting")
        assert (await box.wait(client, "one", "done")).step == 30
        await client.resume("one", from_step=10)
        assert (await box.wait(client, "one", "done")).attempt == 3


async def test_a_run_that_the_daemon_did_not_begin_can_be_submitted_to_go_on(box: Box):
    box.start("--hold-at", "15")
    async with box.client() as client:
        with pytest.raises(RequestRefused, match="no run lies here that could be resumed"):
            await client.submit(box.job("two"), resume=True)
        path = await stopped_at(box, client, 15)
    box.kill9()
    for file in (box.dir / "state").glob("jobs.sqlite3*"):
        file.unlink()
    box.start()
    async with box.client() as client:
        with pytest.raises(RequestRefused, match="already holds a run") as refused:
            await client.submit(path)
        assert f"wanlora submit {path} --resume" in refused.value.fix
        original = path.read_text()
        path.write_text(original.replace("[training]", "[training]\nloss = 'mae'"))
        with pytest.raises(RequestRefused, match=r"training\.loss: .mse. -> .mae."):
            await client.submit(path, resume=True)
        path.write_text(original)
        held = box.run_dir("one") / "job.toml"
        whole = held.read_text()
        held.write_text("[job")
        with pytest.raises(
            RequestRefused, match=r"one: the run's own job\.toml cannot be read .*nobody can tell"
        ) as refused:
            await client.submit(path, resume=True)
        assert refused.value.fix == f"Accept it: wanlora submit {path} --accept-changes"
        held.write_text(whole)
        with pytest.raises(RequestRefused, match="no checkpoint of step 3"):
            await client.submit(path, resume=True, from_step=3)
        await client.submit(path, resume=True)
        assert (await box.wait(client, "one", "done")).step == 20
        assert next(e for e in file_events(box.run_dir("one")) if e.attempt == 2).data["resumed_from"] == 15
        shutil.copy(path, box.dir / "jobs/elsewhere.toml")
        # the daemon knows it by now
        again = await client.submit(box.dir / "jobs/elsewhere.toml", box.dir / "jobs/runs", resume=True, from_step=15)
        assert again.id == 1 and again.job_path == str(box.dir / "jobs/elsewhere.toml")
        assert (await box.wait(client, "one", "done")).attempt == 3
