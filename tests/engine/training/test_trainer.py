"""Whole runs on the tiny base, in this process: what they write, and that they can be stopped and taken up again."""

import json
import os
import pty
import resource
import select
import shutil
import signal
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapters import lora
from engine.run import leave_page, run_job
from engine.runfolder import checkpoint
from engine.runfolder.console import Console
from engine.training import trainer
from presets.errors import UserError
from presets.job.schema import Job
from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.run_view import RunView, apply_event
from tests.helpers.jobs import events, of_kind, write_job
from tests.helpers.tiers import thorough
from tests.helpers.training.attempts import Attempt, Trainers
from tests.helpers.videos import write_clip, write_image
from tests.helpers.waiting import until


def final_loras(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{e}.{k}": v for e in ("high_noise", "low_noise") for k, v in load_file(run / f"t_{e}.safetensors").items()
    }


def step_losses(run: Path) -> dict[int, float]:
    return {d["step"]: d["loss"] for d in of_kind(run, "step")}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run_job(write_job(folder, tiny, trigger="frung"), None, resume=False, workers=1, device="cpu") == 0
    return folder / "runs" / "t"


def test_a_run_leaves_what_the_contract_says(finished):
    names = sorted(
        str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file() and "checkpoints" not in p.parts
    )
    assert names == sorted(
        [
            ".lock",
            "job.toml",
            "events.jsonl",
            "report.html",
            "t_high_noise.safetensors",
            "t_low_noise.safetensors",
            *(f"t_{s:09d}_{e}.safetensors" for s in (4, 8) for e in ("high_noise", "low_noise")),
            *(f"samples/step_{s:09d}/{name}" for s in (0, 4, 8) for name in ("00.mp4", "00.png", "sheet.png")),
            "samples/compare_00.png",
            "samples/compare_00.mp4",
        ]
    )
    assert [f.name for f in checkpoint.listed(finished)] == ["step_000000004", "step_000000008"]
    assert load_job(finished / "job.toml").datasets[0].path == str(finished.parents[1] / "clips")


def test_its_page_is_left_and_nothing_is_lost_where_it_cannot_be(finished, tmp_path, capsys):
    page = (finished / "report.html").read_text()
    assert "t_high_noise.safetensors" in page and page.count("<video ") == 3 and "8 of 8 steps" in page
    shutil.copytree(finished, tmp_path / "t")
    (tmp_path / "t/report.html").unlink()
    leave_page(tmp_path / "t")
    assert (tmp_path / "t/report.html").exists() and capsys.readouterr().err == ""
    for breaks in (
        lambda: (tmp_path / "t/report.html").unlink() or (tmp_path / "t/report.html").mkdir(),
        lambda: (tmp_path / "t/job.toml").write_text("no job"),
    ):
        breaks()
        leave_page(tmp_path / "t")
        assert "was not written: " in (said := capsys.readouterr().err) and "wanlora report " in said


def test_events_tell_the_whole_run(finished):
    kinds = [e.kind for e in events(finished) if e.kind not in ("phase", "finding", "log")]
    step, preview, saved = ["step"] * 4, ["sample"], ["checkpoint"]
    assert kinds == ["started", *preview, *step, *saved, *preview, *step, *saved, *preview, "done"]
    steps = of_kind(finished, "step")
    assert [d["expert"] for d in steps] == ["high_noise"] * 2 + ["low_noise"] * 2 + ["high_noise"] * 2 + [
        "low_noise"
    ] * 2
    assert all((d["timestep"] >= 900) == (d["expert"] == "high_noise") for d in steps)
    assert all(set(d["seconds"]) == {"data", "vae", "transformer", "optimizer", "total"} for d in steps)
    assert {c for d in steps for c in d["clips"]} == {f"0/{i}.mp4@64" for i in range(3)}
    view = RunView()
    for event in events(finished):
        apply_event(view, event)
    assert (
        view.state == "done"
        and view.step == 8
        and view.files == ["t_high_noise.safetensors", "t_low_noise.safetensors"]
    )


def test_the_last_word_before_a_step_is_of_training(finished):
    """Not of the previews before it, for as long as it takes."""
    told = [e for e in events(finished) if e.kind not in ("finding", "log")]
    turned = [(a, b) for a, b in pairwise(told) if b.kind == "step" and a.kind != "step"]
    assert [b.data["step"] for _, b in turned] == [1, 5]
    for before, step in turned:
        assert before.kind == "phase"
        assert before.data == {"name": "training", "done": step.data["step"] - 1, "total": 8, "text": ""}


def test_both_experts_learnt(finished):
    for name, tensor in final_loras(finished).items():
        if "lora_B" in name:
            assert tensor.abs().max() > 0, name


def test_the_same_job_gives_the_same_bits_with_other_workers(tiny, tmp_path, finished):
    """And without previews, which training does not notice."""
    job = write_job(tmp_path, tiny, trigger="frung", prompts=0)
    assert run_job(job, None, resume=False, workers=2, device="cpu") == 0
    run = tmp_path / "runs" / "t"
    assert step_losses(run) == step_losses(finished)
    a, b = final_loras(run), final_loras(finished)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    with Trainers(cache=tmp_path_factory.mktemp("cache")) as trainers:
        yield trainers


def wait_for_step(run: Path, step: int, attempt: Attempt) -> None:
    attempt.wait_until(lambda: (run / "events.jsonl").exists() and max(step_losses(run), default=0) >= step)
    assert attempt.code is None, attempt.said()


LONG = {"steps": 14, "gradient_accumulation": 2, "dataset": {"num_frames": 1}}


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> Path:
    """The run of a LONG job that nothing interrupts. Its checkpoints come as often as it likes: they change no bit."""
    job = write_job(tmp_path_factory.mktemp("straight"), tiny, prompts=0, save={"every": 100}, **LONG)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    return job.parent / "runs" / "t"


def compare_with_uninterrupted(interrupted: Path, straight: Path) -> None:
    assert step_losses(interrupted) == step_losses(straight)
    a, b = final_loras(interrupted), final_loras(straight)
    assert all(torch.equal(a[k], b[k]) for k in a)
    mine, theirs = (checkpoint.load(checkpoint.newest(r)[0]) for r in (interrupted, straight))
    for expert in mine.optimizer:
        for i, state in mine.optimizer[expert]["state"].items():
            assert all(
                torch.equal(torch.as_tensor(v), torch.as_tensor(theirs.optimizer[expert]["state"][i][k]))
                for k, v in state.items()
            )


# test_faults has runs that stop for a signal, and runs that are killed
@pytest.mark.parametrize(
    "how", ["control", *(pytest.param(s, marks=pytest.mark.thorough) for s in ("sigterm", "sigkill"))]
)
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, trainers, straight, tmp_path, how):
    job = write_job(tmp_path / "cut", tiny, prompts=0, save={"every": 2}, **LONG)
    run = tmp_path / "cut" / "runs" / "t"
    attempt = trainers.start(job, workers=1)
    wait_for_step(run, 3, attempt)
    match how:
        case "control":
            (run / "control" / "1.tmp").write_text(json.dumps({"id": "1", "command": "stop"}))
            (run / "control" / "1.tmp").rename(run / "control" / "1.json")
        case "sigterm":
            attempt.kill(signal.SIGTERM)
        case "sigkill":
            attempt.kill()
    assert attempt.wait() == (-9 if how == "sigkill" else 75)
    last = events(run)[-1]
    if how != "sigkill":
        assert last.kind == "stopped" and checkpoint.verify(run / last.data["path"]) == ""
        assert not list((run / "control").glob("*"))
    assert run_job(job, None, resume=True, workers=1, device="cpu") == 0
    assert [e.seq for e in events(run)] == list(range(1, len(events(run)) + 1))
    compare_with_uninterrupted(run, straight)


def test_a_terminal_that_closes_saves_and_loses_nothing(tiny, trainers, straight, tmp_path):
    """The real thing: the trainer leads a session on a pseudo-terminal whose other end goes away, so that nothing can
    be said there any more."""
    job = write_job(tmp_path / "cut", tiny, prompts=0, save={"every": 100}, **LONG)
    run = tmp_path / "cut" / "runs" / "t"
    ours, theirs = pty.openpty()
    attempt = trainers.start(job, workers=1, terminal=os.ttyname(theirs))
    drained(ours, run, attempt)
    os.close(theirs)
    os.close(ours)
    assert attempt.wait() == 75
    last = events(run)[-1]
    assert (
        last.kind == "stopped"
        and last.data["why"] == "SIGHUP received"
        and checkpoint.verify(run / last.data["path"]) == ""
    )
    assert run_job(job, None, resume=True, workers=1, device="cpu") == 0
    compare_with_uninterrupted(run, straight)


def drained(terminal: int, run: Path, attempt: Attempt) -> None:
    """Read what is said on the terminal until the run is at its third step."""
    said = b""
    while max(step_losses(run) if (run / "events.jsonl").exists() else (), default=0) < 3:
        assert not attempt.ended.is_set(), said
        if select.select([terminal], [], [], 0.05)[0]:
            said += os.read(terminal, 65536)


def test_a_second_trainer_in_the_folder_is_refused(tiny, trainers, tmp_path, capsys):
    job = write_job(tmp_path, tiny, prompts=0, **LONG)
    attempt = trainers.start(job, workers=1)
    wait_for_step(tmp_path / "runs" / "t", 1, attempt)
    assert run_job(job, None, resume=True, workers=0, device="cpu") == 1
    assert "another trainer is running in this folder" in capsys.readouterr().err
    attempt.kill(signal.SIGTERM)
    attempt.wait()


SHORT = {"prompts": 0, "dataset": {"num_frames": 1}}  # of images: half the work of a step


def edited(path: Path, **values) -> Path:
    job: Job = load_job(path)
    for field, value in values.items():
        job = with_value(job, field.replace("__", "."), value)
    save_job(job, path)
    return path


def test_a_finished_run_is_not_overwritten_and_another_job_does_not_slip_in(tiny, tmp_path, capsys):
    job = write_job(tmp_path, tiny, **SHORT, steps=2)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    before = (tmp_path / "runs/t/events.jsonl").read_bytes()
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "runs/t/events.jsonl").read_bytes() == before
    assert run_job(edited(job, target__rank=3), None, resume=True, workers=0, device="cpu") == 1
    assert "target.rank" in capsys.readouterr().err
    assert (tmp_path / "runs/t/events.jsonl").read_bytes() == before


def test_more_steps_may_be_asked_for_on_resume(tiny, tmp_path):
    job = write_job(tmp_path, tiny, **SHORT, steps=2)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    assert run_job(edited(job, training__steps=4), None, resume=True, workers=0, device="cpu") == 0
    assert sorted(step_losses(tmp_path / "runs/t")) == [1, 2, 3, 4]
    assert of_kind(tmp_path / "runs/t", "changed") == [
        {"field": "training.steps", "old": 2, "new": 4, "step": 2, "edited": True}
    ]


def test_with_last_frames_and_masks_a_run_taken_up_again_is_the_uninterrupted_one(tiny, tmp_path):
    """Whatever the number of workers."""
    values = {"prompts": 0, "steps": 4, "batch_size": 2, "save": {"every": 2}, "dataset": {"last_frame": 0.5}}
    jobs = [write_job(tmp_path / name, tiny, clips=4, **values) for name in ("cut", "straight", "bare")]
    mask = write_clip(tmp_path / "mask.mp4", frames=12)  # once: two encodes may differ in a bit
    for job in jobs[:2]:
        shutil.copy(mask, job.parent / "clips" / "0.mask.mp4")
        write_image(job.parent / "clips" / "1.mask.png", 32, 24)
    cut, straight, bare = (job.parent / "runs" / "t" for job in jobs)
    assert run_job(edited(jobs[0], training__steps=1), None, resume=False, workers=2, device="cpu") == 0
    assert run_job(edited(jobs[0], training__steps=4), None, resume=True, workers=1, device="cpu") == 0
    assert run_job(jobs[1], None, resume=False, workers=0, device="cpu") == 0
    assert run_job(edited(jobs[2], training__steps=2), None, resume=False, workers=0, device="cpu") == 0  # each clip
    assert step_losses(cut) == step_losses(straight) and len(step_losses(cut)) == 4
    a, b = (final_loras(run) for run in (cut, straight))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not step_losses(bare).items() <= step_losses(straight).items()


# test_faults trains with averages, and the last is loaded below
@pytest.mark.parametrize("field", ["dop", "differential_guidance", *thorough("ema", "unload_text_encoder")])
def test_switches_of_the_guide_train(tiny, tmp_path, field):
    sample = {"every": 0, "first": False, "steps": 1, "num_frames": 1}
    job = write_job(tmp_path, tiny, prompts=1, steps=2, trigger="frung", sample=sample, dataset={"num_frames": 1})
    path = edited(
        job,
        **(
            {"advanced__differential_guidance": True}
            if field == "differential_guidance"
            else {f"training__{field}": True}
        ),
    )
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    steps = of_kind(tmp_path / "runs/t", "step")
    assert len(steps) == 2
    assert set(steps[0]["parts"]) == ({"main", "preservation"} if field == "dop" else {"main"})
    assert (checkpoint.load(checkpoint.newest(tmp_path / "runs/t")[0]).ema != {}) == (field == "ema")


def test_one_stage_alone(tiny, tmp_path):
    job = write_job(tmp_path, tiny, **SHORT, steps=1)
    edited(job, multistage__high_noise=False)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    run = tmp_path / "runs" / "t"
    assert {d["expert"] for d in of_kind(run, "step")} == {"low_noise"}
    assert (run / "t_low_noise.safetensors").exists() and not (run / "t_high_noise.safetensors").exists()


@pytest.fixture
def broken(tiny, tmp_path) -> Path:
    """A base whose low-noise expert answers numbers so large that the loss is infinite."""
    path = tmp_path / "broken"
    shutil.copytree(tiny, path)
    file = path / "transformer_2" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.bias"][0] = 3e38
    save_file(weights, file)
    return path


def test_three_bad_steps_stop_the_run_and_name_the_clips(broken, tmp_path, capsys):
    job = edited(write_job(tmp_path, broken, **SHORT, steps=9), multistage__high_noise=False)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    run = tmp_path / "runs" / "t"
    bad = [d for d in of_kind(run, "finding") if d["code"] == "non-finite"]
    assert len(bad) == 3 and "0.mp4@64" in "".join(d["message"] for d in bad) and not of_kind(run, "step")
    assert "3 steps in a row were not finite" in of_kind(run, "failed")[-1]["cause"]


def test_a_bad_step_is_skipped_and_never_reaches_the_weights(broken, tmp_path):
    """switch_every 2: pairs of bad steps between good ones. The run goes on, and its low-noise LoRA stays as it
    began."""
    job = write_job(tmp_path, broken, **SHORT, steps=8, save={"every": 4})
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    run = tmp_path / "runs" / "t"
    assert [d["step"] for d in of_kind(run, "step")] == [1, 2, 5, 6]
    assert [d["step"] for d in of_kind(run, "checkpoint")] == [4, 8]
    state = checkpoint.load(checkpoint.newest(run)[0])
    assert all(t.isfinite().all() for expert in state.lora.values() for t in expert.values())
    assert all(not t.any() for name, t in state.lora["low_noise"].items() if "lora_B" in name)
    assert any(t.any() for name, t in state.lora["high_noise"].items() if "lora_B" in name)


def test_a_full_disk_is_said_before_the_first_step(tiny, tmp_path):
    """A limit on the size of files stands in for the disk: the rehearsal of the first checkpoint cannot be written."""
    job = write_job(tmp_path, tiny, **SHORT, steps=4)
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limit[1]))
    try:
        assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    failed = of_kind(tmp_path / "runs/t", "failed")[-1]
    assert "checkpoint" in failed["cause"] and not of_kind(tmp_path / "runs/t", "step")


def test_weights_that_are_no_numbers_are_refused_before_training(tiny, tmp_path):
    for place in ("proj_out.bias", "blocks.1.ffn.net.2.weight"):
        base = shutil.copytree(tiny, tmp_path / place)
        file = base / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights[place].view(-1)[3] = float("nan")
        save_file(weights, file)
        job = write_job(tmp_path / f"job-{place}", base, prompts=0)
        assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
        failed = of_kind(tmp_path / f"job-{place}" / "runs" / "t", "failed")[-1]
        assert place in failed["cause"] and str(file) in failed["cause"] and failed["next"] == "Download it again."


def test_an_unknown_command_is_said_and_passed_over(tiny, trainers, tmp_path):
    job = write_job(tmp_path, tiny, prompts=0, **LONG)
    attempt = trainers.start(job, workers=1)
    run = tmp_path / "runs" / "t"
    wait_for_step(run, 1, attempt)
    for name, command in (("1", "dance"), ("2", "stop")):
        (run / "control" / f"{name}.tmp").write_text(json.dumps({"id": name, "command": command}))
        (run / "control" / f"{name}.tmp").rename(run / "control" / f"{name}.json")
    assert attempt.wait() == 75
    assert any(d["code"] == "command-refused" and "'dance'" in d["message"] for d in of_kind(run, "finding"))


def test_a_stop_in_the_middle_of_a_preview_ends_it(tiny, trainers, tmp_path):
    job = write_job(tmp_path, tiny, sample={"every": 0, "steps": 1000}, steps=2)
    attempt = trainers.start(job, workers=1)
    run = tmp_path / "runs" / "t"

    def sampling() -> bool:
        assert not attempt.ended.is_set(), attempt.said()
        return (run / "events.jsonl").exists() and any(
            d["name"] == "sampling" and d["done"] > 3 for d in of_kind(run, "phase")
        )

    until(sampling, "the middle of a preview")
    attempt.kill(signal.SIGTERM)
    assert attempt.wait() == 75 and not of_kind(run, "sample")


def test_unloading_the_text_encoder_trains_on_the_trigger_alone(tiny, tmp_path):
    from engine.data.dataset import build_dataset
    from presets.facts.gather import gather

    path = edited(write_job(tmp_path, tiny, trigger="frung"), training__unload_text_encoder=True)
    job = load_job(path)
    items = build_dataset(job, tmp_path, gather(job, tmp_path, out=tmp_path, scenes=False).datasets)
    assert {item.caption for item in items} == {"frung"}


def test_a_clip_that_goes_away_mid_run_costs_no_step(tiny, straight, tmp_path, monkeypatch):
    """The run fails with the clip's name and the state of the last whole step; with the clip back it ends at the same
    bits."""
    job = write_job(tmp_path / "cut", tiny, prompts=0, save={"every": 14}, **LONG)
    run, clip, away = tmp_path / "cut/runs/t", tmp_path / "cut/clips/0.mp4", tmp_path / "away.mp4"
    show = Console.show

    def shown(self, event):
        show(self, event)
        if event.kind == "step" and event.data["step"] == 3 and clip.exists():
            clip.rename(away)

    monkeypatch.setattr(Console, "show", shown)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    monkeypatch.undo()
    reached = max(step_losses(run))
    assert reached >= 3 and "0.mp4" in of_kind(run, "failed")[-1]["cause"]
    assert [d["step"] for d in of_kind(run, "checkpoint")] == [reached] and checkpoint.newest(run)[0] == run / of_kind(
        run, "checkpoint"
    )[-1]["path"]
    away.rename(clip)
    assert run_job(job, None, resume=True, workers=0, device="cpu") == 0
    assert [d["step"] for d in of_kind(run, "step")] == list(range(1, 15))
    compare_with_uninterrupted(run, straight)


def test_previews_that_end_the_run_cost_no_step(tiny, tmp_path, monkeypatch):
    def refused(run, step, *, missing=False):
        if step == 2:
            raise UserError("out of memory in the preview, and no smaller plan is left", fix="Use less")

    monkeypatch.setattr(trainer, "make_previews", refused)
    job = write_job(tmp_path, tiny, steps=4, save={"every": 4}, sample={"every": 2}, dataset={"num_frames": 1})
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    run = tmp_path / "runs/t"
    assert "no smaller plan is left" in of_kind(run, "failed")[-1]["cause"]
    assert [d["step"] for d in of_kind(run, "checkpoint")] == [2]


def test_damaged_checkpoints_do_not_push_out_good_ones(tiny, tmp_path):
    job = write_job(tmp_path, tiny, **SHORT, steps=8, save={"every": 2, "keep": 4})
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    run = tmp_path / "runs" / "t"
    for step in (6, 8):
        (run / f"checkpoints/step_{step:09d}/lora_high_noise.safetensors").write_bytes(b"torn")
    assert (
        run_job(edited(job, save__keep=2, save__every=1, training__steps=5), None, resume=True, workers=0, device="cpu")
        == 0
    )
    assert [f.name[-1] for f in checkpoint.listed(run)] == ["4", "5"]
    assert all(checkpoint.verify(f) == "" for f in checkpoint.listed(run))


def test_a_resume_with_fewer_steps_names_the_step_of_its_weights(tiny, tmp_path):
    job = write_job(tmp_path, tiny, **SHORT, steps=4)
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
    assert run_job(edited(job, training__steps=2), None, resume=True, workers=0, device="cpu") == 0
    assert of_kind(tmp_path / "runs/t", "done")[-1]["step"] == 4
    assert lora.read_metadata(tmp_path / "runs/t/t_low_noise.safetensors")["wanlora.step"] == "4"


def test_where_no_run_lies_there_is_nothing_to_resume(tiny, tmp_path, capsys):
    """One error, and no folder is made: not by default, not elsewhere, not for a step of it."""
    job = write_job(tmp_path, tiny, **SHORT, steps=2)
    before = sorted(tmp_path.rglob("*"))
    for out, step in ((None, None), (tmp_path / "elsewhere", None), (None, 4)):
        assert run_job(job, out, resume=True, from_step=step, workers=0, device="cpu") == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert "no run lies here that could be resumed" in said and "without --resume" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed(tiny, tmp_path, capsys):
    """Killed among its checks it has left its events alone; and a run begun by a resume is held as well."""
    job = write_job(tmp_path, tiny, **SHORT, steps=2)
    run = tmp_path / "runs/t"
    run.mkdir(parents=True)
    (run / "events.jsonl").touch()
    assert run_job(job, None, resume=True, workers=0, device="cpu") == 0
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    assert "already holds a run" in capsys.readouterr().err


def test_no_thread_or_worker_stays(tiny, tmp_path):
    import psutil

    before, threads = {p.pid for p in psutil.Process().children(recursive=True)}, set(threading.enumerate())
    assert run_job(write_job(tmp_path, tiny, **SHORT, steps=2), None, resume=False, workers=2, device="cpu") == 0
    until(
        lambda: (
            {p.pid for p in psutil.Process().children(recursive=True)} <= before
            and set(threading.enumerate()) <= threads
        ),
        "the end of every worker and thread",
    )
