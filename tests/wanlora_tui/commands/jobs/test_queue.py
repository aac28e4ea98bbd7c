"""set, save, sample, resume, checkpoints and train --resume as commands, with a real daemon and a small trainer; a yes
or no on a real terminal."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from presets.job.diff import LIVE_FIELDS
from presets.job.schema import PromptPanel
from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.events import read_events
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, own_daemon, until, wanlora, write_job
from tests.helpers.terminal import Terminal
from tests.wanlora_tui.test_cli import submit


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def lines(run: Path, kind: str) -> list[dict]:
    file = run / "events.jsonl"
    return [e.data for e, _ in read_events(file) if e.kind == kind] if file.exists() else []


def begun(folder: Path, tmp_path: Path, name: str, **options: int) -> tuple[Path, Path]:
    """A job that has made steps: its file and its run folder."""
    path = write_job(tmp_path, name, **({"steps": 100_000, "pace_ms": 20} | options))
    job = load_job(path)
    job.sample.prompts = [PromptPanel(prompt="orbit 360 around the castle")]
    save_job(job, path)
    submit(folder, path)
    run = tmp_path / "runs" / name
    until(lambda: len(lines(run, "step")) > 22, "steps")
    return path, run


def stopped(folder: Path, tmp_path: Path, name: str) -> tuple[Path, Path]:
    path, run = begun(folder, tmp_path, name)
    assert wanlora("stop", name, "--dir", folder).returncode == 0
    assert wanlora("watch", name, "--dir", folder, "--since", "999999").returncode == 75
    return path, run


def edit(path: Path, **values: object) -> None:
    job = load_job(path)
    for field, value in values.items():
        job = with_value(job, field.replace("__", "."), value)
    save_job(job, path)


def test_a_running_job_is_changed_saved_and_sampled(folder: Path, tmp_path: Path):
    path, run = begun(folder, tmp_path, "live_v1")
    said = wanlora("set", "live_v1", "training.lr=5e-5", "save.every = 10", "--dir", folder)
    assert (
        said.returncode == 0
        and said.stdout == ""
        and "live_v1: training.lr = 5e-5 from its next step on." in said.stderr
        and "save.every = 10" in said.stderr
    )
    until(
        lambda: (
            [(c["field"], c["old"], c["new"]) for c in lines(run, "changed")]
            == [("training.lr", 1e-4, 5e-5), ("save.every", 250, 10)]
        ),
        "both changes",
    )
    for verb, kind, words in (
        ("save", "checkpoint", "saves a checkpoint after the step it is at"),
        ("sample", "sample", "makes its previews after the step it is at"),
    ):
        before = len(lines(run, kind))
        said = wanlora(verb, "live_v1", "--dir", folder)
        assert said.returncode == 0 and words in said.stderr, said.stderr
        until(
            lambda kind=kind, before=before: any(d["step"] % 20 for d in lines(run, kind)[before:]),
            f"one more {kind}, at a step of its own",
        )
    for setting, words in (
        ("training.lr=quick", "training.lr: expected number"),
        ("target.rank=8", "target.rank: cannot be changed while the job runs"),
        ("training.lr", "has no value"),
    ):
        said = wanlora("set", "live_v1", "save.every=11", setting, "--dir", folder)
        assert said.returncode == 1 and words in said.stderr and said.stderr.count("\n") == 1
    assert len(lines(run, "changed")) == 2  # all are looked at before the first is sent
    edit(path, training__loss="mae")
    said = wanlora("resume", "live_v1", "--dir", folder)
    assert (
        said.returncode == 1
        and "live_v1: is running, there is nothing to resume" in said.stderr
        and "training.loss" not in said.stderr
    ), said.stderr
    said = wanlora("set", "live_v1", "training.steps=2", "--dir", folder)
    assert said.returncode == 0 and "steps already, so it saves and is done." in said.stderr
    wanlora("cancel", "live_v1", "--dir", folder)
    said = wanlora("set", "live_v1", "training.lr=1e-5", "--dir", folder)
    assert said.returncode == 1 and "so its trainer takes no commands" in said.stderr


def test_help_names_what_can_be_changed():
    said = " ".join(wanlora("set", "--help").stdout.split())
    assert all(field in said for field in LIVE_FIELDS)
    assert (
        "--from STEP" in wanlora("resume", "--help").stdout and "--accept-changes" in wanlora("train", "--help").stdout
    )


def test_checkpoints_are_listed_by_name_and_by_job_file(folder: Path, tmp_path: Path):
    path, run = stopped(folder, tmp_path, "listed_v1")
    said, here = wanlora("checkpoints", "listed_v1", "--dir", folder), wanlora("checkpoints", path)
    assert said.returncode == here.returncode == 0 and said.stdout == here.stdout
    head, first, *_ = said.stdout.splitlines()
    assert head.split() == ["STEP", "WRITTEN", "HIGH", "LOSS", "LOW", "LOSS", "SIZE", "PREVIEWS"]
    assert first.split()[0] == "20" and "143 MiB" in first and first.endswith("/samples/step_000000020")
    assert (
        f"wanlora --dir {folder} resume listed_v1 --from STEP" in said.stderr
        and f"wanlora train {path} --resume --from STEP" in here.stderr
    )
    told = json.loads(wanlora("checkpoints", "listed_v1", "--json", "--dir", folder).stdout)
    losses = [e["loss"] for e in lines(run, "step")[:20] if e["expert"] == "low_noise"]
    assert told[0]["losses"]["low_noise"] == pytest.approx(sum(losses) / len(losses)) and told[0]["previews"] == [
        "samples/step_000000020/00.mp4"
    ]
    nothing = wanlora("checkpoints", write_job(tmp_path, "none_v1"))
    assert nothing.returncode == 1 and "no run lies here" in nothing.stderr


def test_a_folder_with_what_was_fetched_does_not_stand_for_the_job(folder: Path, tmp_path: Path):
    _, run = stopped(folder, tmp_path, "fetched_v1")
    here = tmp_path / "here"
    (here / "fetched_v1" / "samples").mkdir(parents=True)
    said = wanlora("report", "fetched_v1", "--dir", folder, cwd=here)
    assert said.returncode == 0 and said.stdout == f"{run / 'report.html'}\n", said.stderr
    said = wanlora("report", "samples", "--dir", folder, cwd=here / "fetched_v1")
    assert said.returncode == 1 and "no run lies here" in said.stderr


def test_a_resume_goes_back_and_a_changed_job_needs_a_yes(folder: Path, tmp_path: Path):
    path, run = stopped(folder, tmp_path, "back_v1")
    said = wanlora("resume", "back_v1", "--from", "7", "--dir", folder)
    assert said.returncode == 1 and "has no checkpoint of step 7. These are there: 20, " in said.stderr
    edit(path, training__loss="mae", training__lr=2e-5)
    said = wanlora("resume", "back_v1", "--dir", folder)
    assert (
        said.returncode == 1
        and '  training.loss: "mse" -> "mae"   breaks exactness\n  training.lr: 0.0001 -> 2e-05\n' in said.stderr
    )
    assert (
        f"back_v1 ({run}): not resumed: its job file has changed so that from here on it would not be the run that was"
        " begun. Set it back in the job file, or accept with --accept-changes" in said.stderr
    )

    for answer, code, words in (("", 1, "not resumed, and nothing was changed"), ("y", 0, "queued again")):
        terminal = Terminal(
            [sys.executable, "-m", "wanlora_tui.cli", "resume", "back_v1", "--from", "20", "--dir", str(folder)],
            size=(200, 30),  # a path is in the sentence, and may be long
            cwd=ROOT,
            env=environment(),
        )
        try:
            terminal.wait("Go on with the changes? [y/N]")
            terminal.press(answer, "enter")
            assert terminal.wait_end() == code
            terminal.wait(words)
        finally:
            terminal.close()
    until(lambda: len(lines(run, "started")) == 2, "the second attempt")
    assert (
        lines(run, "started")[1]["resumed_from"] == 20 and lines(run, "started")[1]["job"]["training"]["loss"] == "mae"
    )
    wanlora("stop", "back_v1", "--dir", folder)
    wanlora("watch", "back_v1", "--dir", folder, "--since", "999999")
    edit(path, training__lr=3e-5)
    # the change above was accepted once and for all; a rate may always change
    said = wanlora("resume", "back_v1", "--dir", folder)
    assert said.returncode == 0 and "training.lr: 2e-05 -> 3e-05" in said.stderr and "loss" not in said.stderr
    wanlora("cancel", "back_v1", "--dir", folder)


def test_train_and_submit_go_on_and_ask_the_same(folder: Path, tmp_path: Path):
    path, run = stopped(folder, tmp_path, "again_v1")
    edit(path, training__loss="mae")
    for command in (
        ("train", path, "--resume"),
        ("train", path, "--from", "20"),
        ("submit", path, "--resume", "--dir", folder),
    ):
        said = wanlora(*command)
        assert (
            said.returncode == 1
            and '"mse" -> "mae"   breaks exactness' in said.stderr
            and "accept with --accept-changes" in said.stderr
        ), said.stderr
    edit(path, training__loss="mse", target__rank=8)
    said = wanlora("resume", "again_v1", "--accept-changes", "--dir", folder)
    assert (
        said.returncode == 1
        and "target.rank: 16 -> 8   does not fit the checkpoints" in said.stderr
        and "its checkpoints do not fit it" in said.stderr
    )
    assert len(lines(run, "started")) == 1


def test_a_run_on_the_cpu_is_called_so_while_it_trains_and_after(folder: Path, tmp_path: Path):
    def gpu(name: str) -> str:
        header, *rows = wanlora("jobs", "--dir", folder).stdout.splitlines()
        return next(row[header.index("GPU") :].split()[0] for row in rows if f" {name} " in row)

    begun(folder, tmp_path, "cpu_v1")
    assert gpu("cpu_v1") == "CPU"
    assert wanlora("stop", "cpu_v1", "--dir", folder).returncode == 0
    assert wanlora("watch", "cpu_v1", "--dir", folder, "--since", "999999").returncode == 75
    assert gpu("cpu_v1") == "CPU"
