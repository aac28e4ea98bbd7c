"""A running trainer obeys, survives a full disk, and goes on after a fault as if nothing had been. Whole runs in this
process."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.adapters import lora
from engine.run import run_job
from engine.runfolder import checkpoint, disk_full
from engine.runfolder.console import Console
from engine.system import fault_injection
from engine.training import restore
from presets.diagnosis import diagnosis
from presets.job.schema import Job
from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from tests.helpers.jobs import events, of_kind, write_image_job
from tests.helpers.training.sameness import branch

torch.set_num_threads(1)
Commands = dict[int, list[dict]]  # told by step, 0 for the first phase


@pytest.fixture
def armed():
    yield fault_injection.arm
    fault_injection.arm([])


def commands_at(patch: pytest.MonkeyPatch, run: Path, commands: Commands, *, phase: str = "") -> None:
    """Commands arrive while the trainer says that the step is done, or that it pauses: so between this step and the
    next."""
    left, show = dict(commands), Console.show

    def shown(self: Console, event: Event) -> None:
        show(self, event)
        if (event.kind == "step" and not phase) or (event.kind == "phase" and event.data["name"] == phase):
            for n, command in enumerate(left.pop(0 if phase else event.data["step"], [])):
                aside = run / "control" / f"{n}.tmp"
                aside.write_text(json.dumps({"id": f"{event.seq}-{n}", **command}))
                aside.rename(run / "control" / f"{event.seq}-{n}.json")

    patch.setattr(Console, "show", shown)


@pytest.fixture
def at_step(monkeypatch) -> Callable[..., None]:
    return partial(commands_at, monkeypatch)


def new(field: str, value: object) -> dict:
    return {"command": "set", "field": field, "value": str(value)}


def train(job: Path, *, resume: bool = False, **how) -> int:
    return run_job(job, None, resume=resume, workers=0, device="cpu", **how)


def same(run: Path, other: Path, *, but: list[int]) -> bool:
    """The state of the newest checkpoints to the bit, and what was told on the way there, `but` for checkpoints of
    these steps."""
    a, b = (checkpoint.load(checkpoint.newest(r)[0]) for r in (run, other))
    flat = [checkpoint._split([s.lora, s.optimizer, s.ema], "", tensors := {}) and tensors for s in (a, b)]
    assert flat[0].keys() == flat[1].keys() and a.step == b.step
    return all(torch.equal(flat[0][k], flat[1][k]) for k in flat[0]) and [
        d for d in branch(run) if d["kind"] != "checkpoint" or d["step"] not in but
    ] == branch(other)


def edited(path: Path, **values) -> Path:
    job: Job = load_job(path)
    for field, value in values.items():
        job = with_value(job, field.replace("__", "."), value)
    save_job(job, path)
    return path


def test_commands_are_obeyed_between_steps_or_refused_with_the_reason(tiny, tmp_path, at_step):
    job = write_image_job(tmp_path, tiny, prompts=0, steps=4, save={"every": 3})
    run = tmp_path / "runs" / "t"
    at_step(
        run,
        {
            1: [
                {"command": "save"},
                {"command": "sample"},
                new("training.lr", "0.5e-3"),
                new("training.loss", "mae"),
                new("training.lr", "fast"),
                {"command": "dance"},
            ],
            2: [new("multistage.low.lr", "2e-3"), new("training.lr", "5e-4")],
            4: [new("training.steps", 5)],
        },
    )
    assert train(job) == 0
    assert [(d["step"], d["lr"]) for d in of_kind(run, "step")] == [
        (1, 1e-3),
        (2, 5e-4),
        (3, 2e-3),
        (4, 2e-3),
        (5, 5e-4),
    ]
    assert [{k: v for k, v in d.items() if k != "order"} for d in of_kind(run, "changed")] == [
        {"field": "training.lr", "old": 1e-3, "new": 5e-4, "step": 1},
        {"field": "multistage.low.lr", "old": None, "new": 2e-3, "step": 2},
        {"field": "training.steps", "old": 4, "new": 5, "step": 4},
    ]
    assert [d["step"] for d in of_kind(run, "checkpoint")] == [1, 3, 5]
    refused = [d["message"] for d in of_kind(run, "finding") if d["code"] == "command-refused"]
    assert [
        message.partition(" was refused")[0].partition("-")[2] or message.partition(" was refused")[0]
        for message in refused
    ] == ["5.json", "sample", "set training.loss = mae", "set training.lr = fast"]
    assert any("is 0.0005 already" in d["text"] for d in of_kind(run, "log"))
    assert not list((run / "control").iterdir())
    assert json.loads((checkpoint.newest(run)[0] / "state.json").read_text())["job"]["multistage"]["low"]["lr"] == 2e-3


def test_intervals_and_numbers_kept_count_from_when_they_are_set(tiny, tmp_path, at_step):
    job = write_image_job(
        tmp_path,
        tiny,
        prompts=1,
        steps=7,
        sample={"every": 0, "first": False, "steps": 1, "num_frames": 1},
        save={"every": 100, "keep": 9},
        dataset={"num_frames": 1},
    )
    run = tmp_path / "runs" / "t"
    at_step(run, {1: [new("save.every", 2), new("sample.every", 3)], 5: [new("sample.every", 0), new("save.keep", 2)]})
    assert train(job) == 0
    assert [d["step"] for d in of_kind(run, "checkpoint")] == [2, 4, 6, 7]
    assert [d["step"] for d in of_kind(run, "sample")] == [3, 7], "the last ones are always made"
    assert [checkpoint.step_of(f) for f in checkpoint.listed(run)] == [6, 7]


def test_the_shift_of_previews_counts_from_when_it_is_set(tiny, tmp_path, at_step):
    sample = {"every": 1, "first": False, "steps": 1, "num_frames": 1}
    job = write_image_job(tmp_path, tiny, prompts=1, steps=3, sample=sample, dataset={"num_frames": 1})
    run = tmp_path / "runs" / "t"
    at_step(run, {1: [new("sample.shift", 3)], 2: [new("sample.shift", "")]})
    assert train(job) == 0
    assert [d["shift"] for d in of_kind(run, "sample")] == [5.0, 3.0, 5.0]


def test_fewer_steps_than_are_done_end_the_run_properly_now(tiny, tmp_path, at_step):
    job = write_image_job(
        tmp_path, tiny, prompts=1, steps=8, sample={"every": 0, "first": False, "steps": 1}, save={"every": 8}
    )
    run = tmp_path / "runs" / "t"
    at_step(run, {3: [new("training.steps", 2)]})
    assert train(job) == 0
    assert [e.kind for e in events(run) if e.kind in ("changed", "checkpoint", "sample", "done")] == [
        "changed",
        "checkpoint",
        "sample",
        "done",
    ]
    assert (
        of_kind(run, "done")[-1]["step"]
        == of_kind(run, "checkpoint")[-1]["step"]
        == of_kind(run, "sample")[-1]["step"]
        == 3
    )
    assert lora.read_metadata(run / "t_low_noise.safetensors")["wanlora.step"] == "3"


def test_orders_that_come_during_the_last_previews_are_obeyed_or_refused(tiny, tmp_path, at_step):
    job = write_image_job(
        tmp_path, tiny, prompts=1, steps=2, sample={"every": 0, "first": False, "steps": 1}, save={"every": 8}
    )
    run = tmp_path / "runs" / "t"
    at_step(run, {0: [new("training.steps", 3), new("training.loss", "mae")]}, phase="sampling")
    assert train(job) == 0
    assert [e.kind for e in events(run) if e.kind in ("step", "changed", "checkpoint", "sample", "done")] == [
        "step",
        "step",
        "checkpoint",
        "sample",
        "changed",
        "step",
        "checkpoint",
        "sample",
        "done",
    ]
    assert [d["message"].partition(" was")[0] for d in of_kind(run, "finding") if d["code"] == "command-refused"] == [
        "set training.loss = mae"
    ]
    assert (
        of_kind(run, "done")[0]["step"] == 3
        and lora.read_metadata(run / "t_low_noise.safetensors")["wanlora.step"] == "3"
    )
    assert not list((run / "control").iterdir())


SET = {4: [new("training.lr", 3e-4), new("training.steps", 7)]}
HOW = {"steps": 9, "lr_scheduler": "cosine", "ema": True, "gradient_accumulation": 2}


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> Path:
    """Steps 1 to 7, the learning rate and the steps set after step 4, a checkpoint after each third step, an average, a
    schedule."""
    job = write_image_job(tmp_path_factory.mktemp("straight"), tiny, prompts=0, save={"every": 3, "keep": 3}, **HOW)
    with pytest.MonkeyPatch.context() as patch:
        commands_at(patch, job.parent / "runs" / "t", SET)
        assert train(job) == 0
    return job.parent / "runs" / "t"


@pytest.mark.parametrize(
    "cuts",
    [
        ["sigterm:forward:6"],
        pytest.param(["raise:optimizer.before-step:6", "raise:forward:4"], marks=pytest.mark.thorough),
        pytest.param(["raise:checkpoint.before-event:6"], marks=pytest.mark.thorough),
    ],
)
def test_what_was_set_is_set_again_at_the_same_step_after_a_fault(tiny, tmp_path, at_step, armed, straight, cuts):
    """The second fault strikes before step 4 is reached again. The stop comes between two micro-batches."""
    job = write_image_job(tmp_path, tiny, prompts=0, save={"every": 3, "keep": 3}, **HOW)
    run = tmp_path / "runs" / "t"
    at_step(run, SET)
    for n, fault in enumerate(cuts):
        armed([fault])
        assert train(job, resume=n > 0) == (75 if "sigterm" in fault else 1)
    if "sigterm" in cuts[0]:
        assert of_kind(run, "stopped") == [{"step": 5, "path": "checkpoints/step_000000005", "why": "SIGTERM received"}]
        position = json.loads((checkpoint.newest(run)[0] / "state.json").read_text())["position"]
        assert (position["step"], position["micro_step"], position["batch"]) == (5, 0, 10) and len(
            position["next_clips"]
        ) == 1
    armed([])
    assert train(job, resume=True) == 0
    assert same(run, straight, but=[5])
    assert not [d for d in of_kind(run, "finding") if d["code"] == "not-comparable"]
    views = []
    for folder in (run, straight):
        views.append(RunView())
        for event in events(folder):
            apply_event(views[-1], event)
    told, wanted = ({e: [(p.step, p.loss, p.lr) for p in points] for e, points in v.losses.items()} for v in views)
    assert told == wanted and views[0].steps == 7 and views[0].settings == views[1].settings
    assert [c.step for c in views[0].checkpoints if c.step != 5] == [3, 6, 7]


def test_a_newer_wish_takes_the_place_of_what_was_to_be_set_again(tiny, tmp_path, at_step, armed):
    """Set after step 5 and lost with it; the next attempt, from step 3 on, is told otherwise after step 4."""
    job = write_image_job(tmp_path, tiny, prompts=0, steps=7, save={"every": 3}, dataset={"num_frames": 1})
    run = tmp_path / "runs" / "t"
    at_step(run, {5: [new("training.lr", 3e-4)]})
    armed(["raise:forward:6"])
    assert train(job) == 1
    armed([])
    assert [d["step"] for d in of_kind(run, "changed")] == [5]
    at_step(run, {4: [new("training.lr", 7e-4)]})
    assert train(job, resume=True) == 0
    assert [(d["step"], d["lr"]) for d in of_kind(run, "step")][-4:] == [(4, 1e-3), (5, 7e-4), (6, 7e-4), (7, 7e-4)]


def test_previews_that_were_ordered_and_cut_short_by_a_stop_are_made_by_the_next_attempt(tiny, tmp_path, at_step):
    job = write_image_job(
        tmp_path,
        tiny,
        prompts=1,
        steps=3,
        sample={"every": 0, "first": False, "steps": 2, "num_frames": 1},
        dataset={"num_frames": 1},
    )
    run = tmp_path / "runs" / "t"
    at_step(run, {1: [{"command": "sample"}]})
    at_step(run, {0: [{"command": "stop"}]}, phase="sampling")
    assert train(job) == 75
    assert not of_kind(run, "sample") and len(list((run / "control").glob("*.json"))) == 1
    assert train(job, resume=True) == 0
    assert [d["step"] for d in of_kind(run, "sample")] == [1, 3] and not list((run / "control").iterdir())


@pytest.mark.thorough  # test_faults has kills behind an order
def test_an_order_that_a_kill_left_behind_is_not_obeyed_again_at_an_earlier_step(tiny, tmp_path, at_step, monkeypatch):
    """The kill comes when the change is told, and its file still lies there."""
    job = write_image_job(tmp_path, tiny, prompts=0, steps=5, save={"every": 2})
    run = tmp_path / "runs" / "t"
    at_step(run, {3: [new("training.lr", 3e-4)]})
    show = Console.show

    def shown(self: Console, event: Event) -> None:
        show(self, event)
        if event.kind == "changed" and event.attempt == 1:
            raise fault_injection.InjectedFault

    monkeypatch.setattr(Console, "show", shown)
    assert train(job) == 1 and len(list((run / "control").iterdir())) == 1
    assert train(job, resume=True) == 0 and not list((run / "control").iterdir())
    assert [d["step"] for d in of_kind(run, "changed")] == [3, 3]
    assert [(d["step"], d["lr"]) for d in of_kind(run, "step")][-3:] == [(3, 1e-3), (4, 3e-4), (5, 3e-4)]


def test_going_back_to_an_older_checkpoint(tiny, tmp_path, capsys):
    job = write_image_job(
        tmp_path,
        tiny,
        prompts=1,
        steps=4,
        save={"every": 1, "keep": 4},
        sample={"every": 2, "first": False, "steps": 1},
    )
    run = tmp_path / "runs" / "t"
    assert train(job) == 0
    first = (run / "events.jsonl").read_bytes()
    losses = {d["step"]: d["loss"] for d in of_kind(run, "step")}
    assert train(job, resume=True, from_step=9) == 1
    assert "1, 2, 3, 4" in capsys.readouterr().err and (run / "events.jsonl").read_bytes() == first
    assert train(edited(job, training__lr=2e-3), resume=True, from_step=2) == 0
    assert (run / "events.jsonl").read_bytes().startswith(first), "what was told is never taken back"
    assert [f.name[-1] for f in checkpoint.listed(run)] == ["1", "2", "3", "4"]
    left = run / "abandoned" / "attempt_1"
    assert (
        [f.name[-1] for f in checkpoint.listed(left)] == ["3", "4"]
        and (left / "samples/step_000000004/00.mp4").exists()
        and (left / "t_low_noise.safetensors").exists()
    )
    view = RunView()
    for event in events(run):
        apply_event(view, event)
    assert {p.step: p.loss for points in view.abandoned[0].losses.values() for p in points} == {
        3: losses[3],
        4: losses[4],
    } and view.abandoned[0].folder == "abandoned/attempt_1"
    now = {p.step: p.loss for points in view.losses.values() for p in points}
    assert now[3] == losses[3] and now[4] != losses[4] and view.state == "done"
    assert of_kind(run, "changed") == [{"field": "training.lr", "old": 1e-3, "new": 2e-3, "step": 2, "edited": True}]
    assert train(edited(job, training__steps=5), resume=True) == 0
    assert train(job, resume=True, from_step=2) == 0, "the checkpoint is of a job of 4 steps, and the file has 5 by now"
    assert [d["step"] for d in of_kind(run, "step")][-3:] == [3, 4, 5]


def test_other_clips_are_asked_about_and_another_card_is_told(tiny, tmp_path, monkeypatch):
    job = write_image_job(tmp_path, tiny, prompts=0, steps=1)
    run = tmp_path / "runs" / "t"
    assert train(job) == 0
    (tmp_path / "clips" / "0.txt").write_text("another caption")
    monkeypatch.setattr(restore, "device_name", lambda device: "NVIDIA H900")
    assert train(edited(job, training__steps=2), resume=True) == 1
    assert (
        "the clips or captions have changed" in of_kind(run, "failed")[-1]["cause"]
        and "--accept-changes" in of_kind(run, "failed")[-1]["next"]
        and of_kind(run, "failed")[-1]["user"]
    )
    assert train(job, resume=True, accept_changes=True) == 0
    clips, card = [d["message"] for d in of_kind(run, "finding") if d["code"] == "not-comparable"]
    assert (
        "the clips or captions have changed: from step 2 on" in clips
        and "another card (NVIDIA H900, before: CPU)" in card
    )


def test_looking_back_meets_what_was_set_at_its_step(tiny, tmp_path, at_step, armed, monkeypatch):
    """A rate too high is found after step 4, when it was set, and a resume that begins with it does not find it at step
    2."""
    monkeypatch.setattr(diagnosis, "EARLY", 2)
    monkeypatch.setattr(diagnosis, "LOOK_EVERY", 2)
    job = write_image_job(tmp_path, tiny, prompts=0, steps=8, lr=1e-4, save={"every": 5})
    run = tmp_path / "runs" / "t"
    at_step(run, {3: [new("training.lr", 5e-4)]})
    armed(["raise:forward:7"])
    assert train(job) == 1
    assert train(job, resume=True) == 0
    assert [d["step"] for d in of_kind(run, "finding") if d["code"] == "detail-worse"] == [4]


def test_a_clip_that_goes_away_does_not_keep_the_checkpoint_from_being_written(tiny, tmp_path, monkeypatch):
    job = write_image_job(tmp_path, tiny, prompts=0, steps=2, save={"every": 2})
    show = Console.show

    def shown(self: Console, event: Event) -> None:
        show(self, event)
        if event.kind == "step" and event.data["step"] == 2:
            (tmp_path / "clips" / "0.mp4").rename(tmp_path / "0.mp4")

    monkeypatch.setattr(Console, "show", shown)
    assert train(job) == 0
    assert of_kind(tmp_path / "runs" / "t", "done")[-1]["step"] == 2


def test_a_full_disk_pauses_the_run_which_goes_on_by_itself(tiny, tmp_path, armed, monkeypatch):
    monkeypatch.setattr(disk_full, "RETRY_SECONDS", 0.01)
    job = write_image_job(
        tmp_path, tiny, prompts=1, steps=2, save={"every": 2}, sample={"every": 2, "first": False, "steps": 1}
    )
    run = tmp_path / "runs" / "t"
    points = {
        "event.mid-write:1": 40,
        "save.before-rename:2": 3,
        "save.after-optimizer:2": 1,
        "lora-file.before-rename:2": 3,
        "preview.before-video:2": 3,
    }
    armed([f"enospc:{point}" for point, times in points.items() for _ in range(times)])
    assert train(job) == 0
    paused = [d["text"] for d in of_kind(run, "phase") if d["name"] == "paused"]
    for text, what in zip(
        paused,
        ["events.jsonl", "the checkpoint of step 2", "t_000000002_high_noise.safetensors", "preview 1 after step 2"],
        strict=True,
    ):
        assert f"the disk is full: {what}" in text and " needs " in text and "are free at" in text
    assert [e.seq for e in events(run)] == list(range(1, len(events(run)) + 1))
    assert [d["step"] for d in of_kind(run, "checkpoint")] == [d["step"] for d in of_kind(run, "sample")] == [2]
    assert all(checkpoint.verify(f) == "" for f in checkpoint.listed(run)) and not [
        f for f in of_kind(run, "finding") if f["code"] == "preview-failed"
    ]
    assert not [p for p in run.rglob("*") if ".tmp" in p.name or p.name == ".reserve"]


def test_a_stop_while_the_disk_is_full_keeps_the_checkpoint_there_is(tiny, tmp_path, armed, at_step):
    job = write_image_job(tmp_path, tiny, prompts=0, steps=4, save={"every": 2})
    run = tmp_path / "runs" / "t"
    armed(["enospc:save.begin:4"] * 2)
    at_step(run, {0: [{"command": "stop"}]}, phase="paused")
    assert train(job) == 75
    (stopped,) = of_kind(run, "stopped")
    assert (stopped["step"], stopped["path"]) == (
        4,
        "checkpoints/step_000000002",
    ) and "what came after step 2" in stopped["why"]
    armed([])
    assert train(job, resume=True) == 0 and of_kind(run, "done")[-1]["step"] == 4


def test_a_stop_while_a_lora_file_waits_for_room_keeps_its_checkpoint(tiny, tmp_path, armed, at_step):
    job = write_image_job(tmp_path, tiny, prompts=0, steps=4, save={"every": 2})
    run = tmp_path / "runs" / "t"
    armed(["enospc:lora-file.before-rename:2"] * 2)
    at_step(run, {0: [{"command": "stop"}]}, phase="paused")
    assert train(job) == 75
    (stopped,) = of_kind(run, "stopped")
    assert (stopped["step"], stopped["path"]) == (
        2,
        "checkpoints/step_000000002",
    ) and "could not be saved" not in stopped["why"]
    armed([])
    assert train(job, resume=True) == 0 and [d["step"] for d in of_kind(run, "step")] == [1, 2, 3, 4]


def test_steps_that_were_not_finite_are_counted_on_after_a_resume(tiny, tmp_path, armed):
    """Steps 2 and 3 are skipped, a fault ends the run behind the checkpoint of step 3, and step 4 is the third in a
    row."""
    job = write_image_job(tmp_path, tiny, prompts=0, steps=6, save={"every": 3})
    run = tmp_path / "runs" / "t"
    armed(["nan:target:2", "nan:loss:3", "raise:forward:4"])
    assert train(job) == 1
    before = checkpoint.load(checkpoint.newest(run)[0])
    armed(["nan:loss:4"])
    assert train(job, resume=True) == 1
    assert "3 steps in a row were not finite" in of_kind(run, "failed")[-1]["cause"]
    found = [d for d in of_kind(run, "finding") if d["code"] == "non-finite"]
    assert (
        [d["step"] for d in found] == [2, 3, 4]
        and "number 3 in this run" in found[-1]["message"]
        and "clips 0/" in found[0]["message"]
        and "timesteps" in found[0]["message"]
    )
    after = checkpoint.load(checkpoint.newest(run)[0])
    assert after.step == 3 and all(
        torch.equal(v, after.lora[e][k]) and v.isfinite().all() for e in before.lora for k, v in before.lora[e].items()
    )
