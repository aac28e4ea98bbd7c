"""Live control of a real run through the commands: set, save, sample, stop, back to a checkpoint, on to the end."""

import json
from pathlib import Path

from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.events import Event, read_events
from presets.text import rate_text
from tests.helpers.interface.harness import wanlora
from tests.helpers.jobs import write_job
from tests.helpers.waiting import until


def events(run: Path, kind: str) -> list[Event]:
    file = run / "events.jsonl"
    return [e for e, _ in read_events(file) if e.kind == kind] if file.exists() else []


def test_a_run_is_changed_saved_sampled_stopped_and_taken_back(home: Path, tiny: Path, tmp_path: Path):
    path = write_job(tmp_path, tiny, prompts=1, clips=2, save={"every": 50_000}, steps=100_000)
    job = with_value(load_job(path), "sample.every", 0)
    save_job(with_value(with_value(job, "sample.first", False), "job.name", "live"), path)
    run = tmp_path / "runs/live"
    assert wanlora("submit", path, cwd=tmp_path).returncode == 0
    until(lambda: events(run, "step"), "the first step")

    assert wanlora("set", "live", "training.lr=5e-6", "save.keep=9", cwd=tmp_path).returncode == 0
    until(lambda: len(events(run, "changed")) == 2, "both changes")
    changed = [e.data for e in events(run, "changed")]
    assert [(c["field"], c["new"]) for c in changed] == [("training.lr", 5e-6), ("save.keep", 9)]
    assert wanlora("save", "live", cwd=tmp_path).returncode == 0
    saved = until(lambda: events(run, "checkpoint"), "the checkpoint")[0].data["step"]
    assert wanlora("sample", "live", cwd=tmp_path).returncode == 0
    sample = until(lambda: events(run, "sample"), "the preview")[0].data
    assert (run / sample["path"]).exists() and sample["step"] >= saved
    until(lambda: events(run, "step")[-1].data["step"] > saved + 2, "a step beyond those that are taken again")
    assert wanlora("stop", "live", cwd=tmp_path).returncode == 0
    assert wanlora("watch", "live", cwd=tmp_path).returncode == 75
    stopped = events(run, "stopped")[0].data["step"]
    assert {e.data["lr"] for e in events(run, "step") if e.data["step"] > changed[0]["step"]} == {5e-6}

    there = json.loads(wanlora("checkpoints", "live", "--json", cwd=tmp_path).stdout)
    assert [c["step"] for c in there] == [saved, stopped] and there[0]["size"] > 0
    save_job(with_value(load_job(path), "training.steps", saved + 2), path)
    said = wanlora("resume", "live", "--from", saved, cwd=tmp_path)
    assert said.returncode == 0 and f"It goes back to step {saved}; what came after is set aside in" in said.stderr, (
        said.stderr
    )
    watched = wanlora("watch", "live", "--plain", cwd=tmp_path)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    again = [e.data for e in events(run, "step") if e.attempt == 2]
    # the rate holds: it was set before the checkpoint
    assert [(s["step"], s["lr"]) for s in again] == [(saved + 1, 5e-6), (saved + 2, 5e-6)]
    assert (
        list((run / "abandoned").glob(f"*/checkpoints/step_{stopped:09d}"))
        and not (run / f"checkpoints/step_{stopped:09d}").exists()
    )
    before = rate_text(job.training.lr)
    assert (
        f"changed training.lr from {before} to 5e-6 after step {changed[0]['step']}" in watched.stdout
        and wanlora("daemon", "stop", cwd=tmp_path).returncode == 0
    )
