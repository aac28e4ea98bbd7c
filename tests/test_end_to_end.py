"""The whole house at once: real commands, real terminals, the real daemon and the real trainer, on a tiny base."""

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from safetensors import safe_open

from daemon.wire.blocking import ping
from daemon.wire.client import Client
from presets.job.fields import FIELDS
from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.events import Event, read_events
from presets.runs.run_view import RunView, apply_event
from presets.text import rate_text
from tests.conftest import processes_under
from tests.helpers.holding import held, pid_of
from tests.helpers.interface.harness import wanlora
from tests.helpers.jobs import write_image_job
from tests.helpers.terminal import Terminal
from tests.helpers.videos import write_clip, write_image
from tests.helpers.waiting import until

FIRST_LABELS = {f.panel: f.label for f in reversed(FIELDS.values()) if f.panel and "." not in f.panel}
FIRST_LABELS = dict(reversed(FIRST_LABELS.items()))  # panel -> the label of its first field, in the order of the wizard


def events(run: Path) -> list[Event]:
    file = run / "events.jsonl"
    return [event for event, _ in read_events(file)] if file.exists() else []


def of_kind(run: Path, kind: str) -> list[dict[str, Any]]:
    return [e.data for e in events(run) if e.kind == kind]


def steps(run: Path) -> list[int]:
    return [data["step"] for data in of_kind(run, "step")]


def folded(told: list[Event]) -> RunView:
    view = RunView()
    for event in told:
        apply_event(view, event)
    return view


def watched(job: str, cwd: Path) -> list[Event]:
    """What the daemon tells of a job that has ended, from its first event to its last."""
    said = wanlora("watch", job, "--json", cwd=cwd)
    return [Event(**json.loads(line)) for line in said.stdout.splitlines()]


def snapshot(job: str) -> RunView:
    """The fold that the daemon gives to whoever attaches."""

    async def go() -> RunView:
        async with Client() as client:
            return (await client.snapshot(job))[1]

    return asyncio.run(go())


def jobs(cwd: Path) -> dict[str, dict]:
    said = wanlora("jobs", "--json", cwd=cwd)
    assert said.returncode == 0, said.stderr
    return {r["name"]: r for r in json.loads(said.stdout)}


def libraries(launcher: int) -> str:
    """What the kernel has mapped of files, of the trainer's processes."""
    return "".join(
        Path(f"/proc/{process.pid}/maps").read_text() for process in psutil.Process(launcher).children(recursive=True)
    )


def assert_whole(run: Path) -> None:
    """The run folder holds what job.md promises of a finished run: numbered events without gaps, every step once, two
    LoRA files."""
    told, job = events(run), load_job(run / "job.toml")
    assert [e.seq for e in told] == list(range(1, len(told) + 1))
    assert steps(run) == list(range(1, job.training.steps + 1))
    assert told[-1].kind == "done" and told[-1].data["files"] == [
        f"{job.job.name}_high_noise.safetensors",
        f"{job.job.name}_low_noise.safetensors",
    ]
    for name in told[-1].data["files"]:
        with safe_open(run / name, "np") as opened:
            keys = list(opened.keys())
        assert keys and all(key.startswith("diffusion_model.blocks.") for key in keys)


# --- from the first key to the LoRA files -----------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path, tiny: Path) -> Path:
    """The folder a newcomer starts `wanlora` in: twelve clips with captions, a picture, a base model."""
    folder = tmp_path / "work"
    (folder / "orbit").mkdir(parents=True)
    for i in range(12):
        write_clip(folder / f"orbit/clip_{i:02}.mp4", frames=9, fps=16.0, width=64, height=48)
        (folder / f"orbit/clip_{i:02}.txt").write_text(f"orbit {30 * (i + 1)} around the square")
    write_image(folder / "vase.png")
    shutil.copytree(tiny, folder / "base")
    return folder


def line_of(text: str, label: str) -> str:
    """The form row of the field that has the focus, if that is the one; else ""."""
    return next((line for line in text.splitlines() if f"▸{label} " in f"{line} "), "")


def panel_of(text: str) -> str:
    """The panel whose form stands in the settings; "" while one is being drawn."""
    first_row = text.splitlines()[1][19:]
    return next((panel for panel, label in FIRST_LABELS.items() if first_row.startswith(f"  {label} ")), "")


def fill(screen: Terminal, label: str, text: str) -> None:
    """Replace what stands in the field that has the focus. Each key waits for the one before: a fast burst is not how
    people type."""
    screen.wait(lambda t: line_of(t, label), f"the focus on {label}")
    screen.press("ctrl+u")
    screen.wait(lambda t: any(sign in line_of(t, label) for sign in ("✗", "left out")), f"{label} emptied")
    screen.press(text)
    screen.wait(lambda t: "● yours" in (line := line_of(t, label)) and f" {text}" in line, f"{label} = {text}")


def open_panel(screen: Terminal, panel: str) -> None:
    """From the list of panels down to one, and into its form."""
    screen.wait(lambda t: "▸" not in t, "the focus on the panels")
    names = ["", *FIRST_LABELS]  # the first entry shows the machine, which has no form
    for name in names[names.index(panel_of(screen.text)) + 1 : names.index(panel) + 1]:
        screen.press("j")
        screen.wait(lambda t, name=name: panel_of(t) == name, f"the panel {name}")
    screen.press("enter")
    screen.wait(lambda t: line_of(t, FIRST_LABELS[panel]), f"the focus in the form {panel}")


def walk_down(screen: Terminal, label: str) -> None:
    for _ in range(20):
        at = next(line for line in screen.text.splitlines() if "▸" in line)
        if f"▸{label} " in at:
            return
        screen.press("down")
        screen.wait(lambda t, at=at: "▸" in t and at not in t, "the field below")
    raise AssertionError(f"the arrow keys do not reach {label}:\n{screen.text}")


def fill_the_wizard(screen: Terminal, run_steps: int) -> None:
    """All six steps by keys, up to a review without errors. Everything stays as recommended but the name, the model,
    the number of steps and of the previews' steps."""
    screen.press("n")
    screen.wait("step 1 of 6")
    screen.press("enter")  # motion
    screen.wait("step 2 of 6")
    screen.press("orbit")
    screen.wait(lambda t: "Folder  orbit" in t, "the typed folder")
    screen.press("enter")
    screen.wait("12 clips, 7 s ✓")
    screen.press("f8")
    screen.wait("step 3 of 6")
    screen.wait("12 of 12 clips have their own caption")
    fill(screen, "Training name", "square_v1")
    screen.press("f8")
    screen.wait("step 4 of 6")
    screen.wait("RAM")
    open_panel(screen, "model")
    fill(screen, "Name or path", "base")
    screen.press("up")
    open_panel(screen, "training")
    fill(screen, "Steps", str(run_steps))
    screen.press("up")
    open_panel(screen, "sample")
    walk_down(screen, "Sample steps")
    fill(screen, "Sample steps", "2")
    screen.press("f8")
    screen.wait("step 5 of 6")
    screen.press("f5")
    screen.wait(lambda t: "orbit 30 around the square" in line_of(t, "Prompt"), "the first caption as the prompt")
    screen.press("down")
    screen.wait(lambda t: line_of(t, "Control image"), "the image's field")
    screen.press("vase.png")
    screen.wait("✓ the image opens")
    screen.press("f8")
    screen.wait("step 6 of 6")
    screen.wait(lambda t: "seen" in t and "… checking" not in t and "… cuts" not in t, "the findings")
    assert "✗" not in screen.text, screen.text
    assert "a new file; the run goes to runs/square_v1 beside it" in screen.words


def test_from_the_first_key_to_the_lora_files_through_the_death_of_the_interface(
    home: Path, work: Path, terminal: Callable[..., Terminal]
):
    total, run, notes = 20, work / "runs/square_v1", home / "state/wanlora/tui.json"
    screen = terminal(cwd=work)
    screen.wait("No jobs yet")
    fill_the_wizard(screen, total)
    screen.press("f8")
    screen.wait("● daemon alive")
    launcher = until(lambda: pid_of("square_v1"), "the trainer's start")
    with held(launcher, since=lambda: steps(run)):  # however fast this machine is
        screen.wait(lambda t: any(f"step {n}/{total} " in t for n in range(1, total)), "steps on the dashboard")
        mapped = libraries(launcher)
        assert "libtorch" in mapped and "libbitsandbytes" not in mapped, "imported for nothing"
        seen = screen.wait(
            lambda _: notes.exists() and json.loads(notes.read_text())["seen"].get(events(run)[0].run),
            "a note of what was on the screen",
        )
        daemon = ping().pid
        screen.kill9()

    job = load_job(work / "square_v1.toml")
    assert (job.model.path, job.training.steps, job.datasets[0].path, job.sample.prompts[0].ctrl_img) == (
        "base",
        total,
        "orbit",
        "vase.png",
    )
    killed_at = len(steps(run))
    until(lambda: len(steps(run)) >= min(killed_at + 5, total), "steps after the interface was killed")
    assert ping().pid == daemon

    missed = len([e for e in events(run) if e.kind == "step" and e.seq > seen])
    again = terminal("attach", cwd=work)
    away = again.wait(lambda _: re.search(rb"Since you left: (\d+)", again.raw), "what was missed")
    assert missed <= int(away[1]) <= total
    again.wait("✓ done")
    again.wait(f"step {total}/{total} ")
    file = folded(events(run))
    high, low = file.losses["high_noise"][-1].loss, file.losses["low_noise"][-1].loss
    again.wait(f"high loss {high:.4f} low loss {low:.4f}")
    again.press("f")
    again.wait("✓ LoRA square_v1_high_noise.safetensors")
    assert "✓ LoRA square_v1_low_noise.safetensors" in again.words
    again.press("q")
    assert again.wait_end() == 0
    assert "square_v1: done." in again.words

    assert_whole(run)
    assert [e.data["step"] for e in events(run) if e.kind == "sample"] == [0, total]
    assert watched("square_v1", work) == events(run) and snapshot("square_v1") == file


# --- the daemon dies, a job is changed, saved, sampled, stopped and goes on, another waits
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [True, pytest.param(False, marks=pytest.mark.thorough)])  # engine and daemon apart
def test_a_daemon_killed_jobs_queued_changed_stopped_and_resumed_with_the_real_trainer(
    home: Path, tiny: Path, tmp_path: Path, back: bool
):
    """`back`: to the checkpoint that was asked for; else to that of the stop."""
    long, short = (tmp_path / name / "runs" / name for name in ("long", "short"))
    quiet = {"every": 0, "first": False}
    job_file = write_image_job(tmp_path / "long", tiny, clips=2, save={"every": 50_000}, sample=quiet, steps=100_000)
    save_job(with_value(load_job(job_file), "job.name", "long"), job_file)
    chosen = [
        f"--set={setting}"
        for setting in (
            f"model.path={tiny}",
            "training.steps=4",
            "multistage.switch_every=1",
            "quantization.text_encoder=none",
        )
    ]
    (tmp_path / "short").mkdir()
    made = wanlora(
        "new",
        "--kind",
        "motion",
        "--clips",
        job_file.parent / "clips",
        "--name",
        "short",
        "--previews",
        "0",
        *chosen,
        "--out",
        "short/job.toml",
        cwd=tmp_path,
    )
    assert made.returncode == 0 and made.stdout == "short/job.toml\n", made.stderr
    assert wanlora("check", "short/job.toml", cwd=tmp_path).returncode == 0
    for name in ("long", "short"):
        said = wanlora("submit", f"{name}/job.toml", cwd=tmp_path)
        assert said.returncode == 0 and said.stdout == f"{name}\n", said.stderr
    launcher = until(lambda: pid_of("long"), "the trainer's start")
    with held(launcher, since=lambda: len(steps(long)) >= 3):
        before = jobs(tmp_path)
        assert [before[name]["state"] for name in ("long", "short")] == ["running", "queued"]
        assert (before["long"]["pid"], before["short"]["position"]) == (launcher, 1)
        for asked in (["set", "long", "training.lr=5e-6", "save.keep=9"], ["save", "long"], ["sample", "long"]):
            assert wanlora(*asked, cwd=tmp_path).returncode == 0
        os.kill(ping().pid, signal.SIGKILL)
        at = len(steps(long))
    with held(launcher, since=lambda: of_kind(long, "sample") and len(steps(long)) >= at + 3):  # without a daemon
        assert [(c["field"], c["new"]) for c in of_kind(long, "changed")] == [("training.lr", 5e-6), ("save.keep", 9)]
        [saved], [preview] = of_kind(long, "checkpoint"), of_kind(long, "sample")
        assert (long / preview["path"]).exists() and preview["step"] >= saved["step"]
        assert wanlora("jobs", cwd=tmp_path).returncode == 1
        assert wanlora("daemon", "start", cwd=tmp_path).returncode == 0
        after = jobs(tmp_path)
        assert (after["long"]["state"], after["long"]["pid"], after["long"]["attempt"]) == ("running", launcher, 1)
        assert (after["short"]["state"], after["short"]["position"]) == ("queued", 1)
        assert wanlora("stop", "long", cwd=tmp_path).returncode == 0
    assert wanlora("watch", "long", cwd=tmp_path).returncode == 75
    stopped = events(long)[-1]
    assert stopped.kind == "stopped" and jobs(tmp_path)["long"]["state"] == "stopped"
    assert steps(long) == list(range(1, stopped.data["step"] + 1))
    there = json.loads(wanlora("checkpoints", "long", "--json", cwd=tmp_path).stdout)
    assert [c["step"] for c in there] == [saved["step"], stopped.data["step"]] and there[0]["size"] > 0

    from_step = saved["step"] if back else stopped.data["step"]
    said = wanlora("resume", "long", *(["--from", str(from_step)] if back else []), cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert (f"It goes back to step {from_step}; what came after is set aside in" in said.stderr) == back
    assert wanlora("watch", "short", "--plain", cwd=tmp_path).returncode == 0
    until(lambda: [e for e in events(long) if e.kind == "step" and e.attempt == 2][2:], "three steps more")
    assert wanlora("stop", "long", cwd=tmp_path).returncode == 0
    watching = wanlora("watch", "long", "--plain", cwd=tmp_path)
    assert watching.returncode == 75, watching.stdout + watching.stderr

    told, other = events(long), events(short)
    second = [e for e in told if e.attempt == 2]
    assert [e.seq for e in told] == list(range(1, len(told) + 1)) and told[second[0].seq - 2] == stopped
    assert next(e for e in second if e.kind == "started").data["resumed_from"] == from_step
    again = [e.data["step"] for e in second if e.kind == "step"]
    assert again == list(range(from_step + 1, told[-1].data["step"] + 1)), "a step was lost or made twice"
    set_at = of_kind(long, "changed")[0]["step"]
    rates = {d["lr"] for d in of_kind(long, "step") if d["step"] > set_at}
    assert rates == {5e-6}, "it was set before the checkpoint, so it holds"
    assert f"changed training.lr from {rate_text(1e-3)} to 5e-6 after step {set_at}" in watching.stdout
    place = f"checkpoints/step_{stopped.data['step']:09d}"
    assert bool(list((long / "abandoned").glob(f"*/{place}"))) == back
    assert stopped.time <= other[0].time and other[-1].time <= second[0].time, "two jobs trained on one GPU at once"
    assert_whole(short)
    for name, run in (("long", long), ("short", short)):
        assert watched(name, tmp_path) == events(run) and snapshot(name) == folded(events(run))
    findings = [json.dumps(d, sort_keys=True) for d in of_kind(long, "finding") if "step" not in d]
    listed = [d for d in snapshot("long").findings if "step" not in d]
    assert len(findings) > len(listed) == len(set(findings)), "both attempts tell theirs; each is listed once"
    assert wanlora("daemon", "stop", cwd=tmp_path).returncode == 0
    until(lambda: not processes_under(home), "the end of the daemon and its trainers")


# --- the demo
# -----------------------------------------------------------------------------------------------------------


def test_the_demo_prepares_then_trains_to_files_that_exist(home: Path, prepared: Path, tmp_path: Path):
    folder = tmp_path / "demo"
    shutil.copytree(prepared, folder)
    assert len(list((folder / "clips").glob("*.mp4"))) == len(list((folder / "clips").glob("*.txt"))) == 12
    job = load_job(folder / "job.toml")  # a user's edits are kept; most of the work is the VAE's
    job.sample.prompts, job.datasets[0].num_frames = job.sample.prompts[:1], 5
    save_job(job, folder / "job.toml")
    assert wanlora("check", "job.toml", cwd=folder).returncode == 0
    drawn = {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.suffix in (".mp4", ".png", ".safetensors")
    }
    said = wanlora("demo", "--plain", "--steps", "2", "--out", folder, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert {p: p.stat().st_mtime_ns for p in drawn} == drawn, "what lay there ready was made anew"
    told = [line.split()[1] for line in said.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert told.count("step") == 2 and told[-1] == "done"
    high, low, preview = (Path(line) for line in said.stdout.splitlines()[-3:])
    assert "objects go round" in said.stderr and "not learned in so few steps" in said.stderr
    run = folder / "runs/demo_orbit"
    assert (high, low) == (run / "demo_orbit_high_noise.safetensors", run / "demo_orbit_low_noise.safetensors")
    assert_whole(run)
    with av.open(preview) as video:
        assert video.streams.video[0].codec.name == "h264" and preview.with_suffix(".png").exists()
