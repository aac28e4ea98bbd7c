"""The real `wanlora` in processes of its own: what it prints where, and its exit codes."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.wire.client import Client
from presets.job.preview_settings import sampling_of
from presets.job.toml_file import load_job
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, own_daemon, short_dir, until, wanlora, write_job
from tests.helpers.loras import pair, write_lora_file
from tests.helpers.terminal import Terminal
from tests.helpers.tiers import thorough
from tests.helpers.videos import write_clip
from tests.helpers.waiting import PATIENCE
from wanlora_tui.cli import main

HEAVY = ("torch", "diffusers", "transformers", "peft", "textual", "zmq", "av", "msgspec", "numpy", "PIL")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def loaded_by(code: str) -> set[str]:
    """Which heavy packages are there after some code ran in a fresh process."""
    code += f"\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    return set(run.stdout.strip().rpartition("\n")[2].split())


def clips(folder: Path, *names: str) -> None:
    (folder / "clips").mkdir()
    for name in names:
        write_clip(folder / f"clips/{name}.mp4", frames=48)
        (folder / f"clips/{name}.txt").write_text("orbit 360 around the castle")


def test_help_imports_nothing_heavy():
    assert loaded_by("from wanlora_tui.cli import parser\nparser().format_help()") == set()


def test_the_interface_imports_no_trainer():
    assert not {"torch", "diffusers", "transformers", "peft"} & loaded_by(
        "import wanlora_tui.app, wanlora_tui.screens.wizard, wanlora_tui.commands.doctor"
        ", wanlora_tui.commands.jobs.demo"
    )


def test_the_first_frame_waits_for_nothing_that_it_does_not_show():
    """Films bring numpy and Pillow, which take as long as all else that is imported."""
    code = "import json, sys, wanlora_tui.app, wanlora_tui.commands.tui\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert not {"numpy", "PIL", "av", "wanlora_tui.screens.dashboard", "wanlora_tui.screens.wizard"} & loaded


def test_help_names_every_command():
    said = wanlora("--help")
    assert said.returncode == 0
    for word in (
        "demo",
        "new",
        "check",
        "train",
        "submit",
        "jobs",
        "watch",
        "stop",
        "resume",
        "cancel",
        "set",
        "save",
        "sample",
        "checkpoints",
        "attach",
        "plan",
        "timesteps",
        "ara",
        "cache",
        "daemon",
        "doctor",
    ):
        assert re.search(rf"^ +{word} ", said.stdout, re.MULTILINE), word
    assert "Exit codes" in said.stdout


@pytest.mark.parametrize(
    "line",
    [
        "fly",
        "check",
        "watch --json --plain",
        "demo --steps 0",
        "demo --steps x",
        "watch --since -1",
        "new --kind dance --clips .",
        "daemon",
        "stop",
    ],
)
def test_usage_is_told_with_code_2(line: str):
    said = wanlora(*line.split())
    assert said.returncode == 2 and "usage:" in said.stderr and said.stdout == ""


@pytest.mark.parametrize(
    "line", ["new", "check", "plan", "timesteps", "train", "ara", "cache list", "cache clear", "cache path"]
)
def test_commands_without_a_daemon_offer_no_folder_of_one(line: str):
    assert "--dir" not in wanlora(*line.split(), "--help").stdout
    assert "--dir" in wanlora("submit", "--help").stdout


def test_a_missing_job_file_is_one_line_and_no_traceback(tmp_path: Path):
    for command in ("check", "train", "submit"):
        said = wanlora(command, tmp_path / "no.toml")
        assert said.returncode == 1 and said.stdout == ""
        assert (
            said.stderr.startswith("wanlora: ")
            and "no such job file" in said.stderr
            and "Traceback" not in said.stderr
            and said.stderr.count("\n") == 1
        )


def test_a_mistake_in_a_job_file_is_told_with_its_key(tmp_path: Path):
    job = write_job(tmp_path)
    job.write_text(job.read_text().replace("steps = 60", "stepz = 60", 1))
    said = wanlora("check", job, "--json")
    (found,) = json.loads(said.stdout)
    assert said.returncode == 1 and found["field"] == "training.stepz" and "training.steps" in found["message"]
    assert set(found) == {"code", "severity", "field", "message", "fix"}
    assert "training.stepz" in wanlora("train", job).stderr


def test_check_lists_findings_for_people_and_for_programs(tmp_path: Path):
    clips(tmp_path, "a")
    job = write_job(tmp_path)
    job.write_text(job.read_text().replace("num_frames = 41", "num_frames = 40", 1))
    said, asked = wanlora("check", job), wanlora("check", job, "--json")
    assert said.returncode == asked.returncode == 1
    assert "frames-4n-plus-1" in said.stdout and "cannot be trained as it is" in said.stderr
    codes = [f["code"] for f in json.loads(asked.stdout)]
    assert "frames-4n-plus-1" in codes and asked.stderr == ""


def test_new_writes_a_job_that_loads_and_takes_settings(tmp_path: Path):
    clips(tmp_path, "one", "two")
    said = wanlora(
        "new",
        "--kind",
        "motion",
        "--clips",
        "clips",
        "--name",
        "orbit_v1",
        "--set",
        "training.lr=5e-5",
        "--set",
        "datasets.num_frames=33",
        "--out",
        "job.toml",
        cwd=tmp_path,
    )
    assert (said.returncode, said.stdout) == (0, "job.toml\n"), said.stderr
    assert (
        "target.rank = 16: " in said.stderr
        and "training.lr" not in said.stderr
        and "2 prompts for previews, each of a clip's first frame and caption: one.mp4, two.mp4. What" in said.stderr
    )
    job = load_job(tmp_path / "job.toml")
    assert [(p.prompt, p.ctrl_img) for p in job.sample.prompts] == [
        ("orbit 360 around the castle", f"clips/{name}.mp4") for name in ("one", "two")
    ]
    assert (job.sample.preset, job.datasets[0].exclude) == ("custom", [])
    assert (job.job.name, job.job.kind, job.training.lr, job.datasets[0].num_frames, job.datasets[0].path) == (
        "orbit_v1",
        "motion",
        5e-5,
        33,
        "clips",
    )
    nameless = wanlora("new", "--kind", "motion", "--clips", "clips", "--out", "other.toml", cwd=tmp_path)
    # as the wizard has it
    assert nameless.returncode == 0 and load_job(tmp_path / "other.toml").job.name == "wan_i2v_motion_clips"
    again = wanlora("new", "--kind", "motion", "--clips", "clips", "--out", "job.toml", cwd=tmp_path)
    assert (
        again.returncode == 1
        and "exists already" in again.stderr
        and load_job(tmp_path / "job.toml").job.name == "orbit_v1"
    )


def test_new_makes_previews_as_it_is_told(tmp_path: Path):
    clips(tmp_path, "a", "b", "c")
    new = ("new", "--kind", "motion", "--clips", "clips")
    none = wanlora(*new, "--previews", "0", "--out", "none.toml", cwd=tmp_path)
    assert "no prompts, so it makes no previews" in none.stderr
    assert load_job(tmp_path / "none.toml").sample.prompts == []
    held = wanlora(*new, "--previews", "1", "--hold-out", "--preview", "official", "--out", "held.toml", cwd=tmp_path)
    job = load_job(tmp_path / "held.toml")
    assert "1 prompt for previews, " in held.stderr and "What they start from does not train" in held.stderr
    assert ([p.ctrl_img for p in job.sample.prompts], job.datasets[0].exclude) == (["clips/b.mp4"], ["b.mp4"])
    assert (job.sample.preset, sampling_of(job.sample).steps) == ("official", 40)
    for options, words in (
        (("--previews", "3", "--hold-out"), "holding out 3 clips would leave none to train on"),
        (("--previews", "0", "--hold-out"), "Leave --previews 0 or --hold-out out"),
        (("--preview", "quick"), "--set sample.accelerator=FILE"),
    ):
        said = wanlora(*new, *options, "--out", "no.toml", cwd=tmp_path)
        assert said.returncode == 1 and words in said.stderr and not (tmp_path / "no.toml").exists()
    (tmp_path / "silent").mkdir()
    write_clip(tmp_path / "silent" / "a.mp4", frames=9)
    silent = wanlora(*new[:3], "--clips", "silent", "--hold-out", "--out", "no.toml", cwd=tmp_path)
    assert silent.returncode == 1 and "Give the clips captions" in silent.stderr and not (tmp_path / "no.toml").exists()
    quick = wanlora(*new, "--preview", "quick", "--set", "sample.accelerator=a", "--out", "q.toml", cwd=tmp_path)
    assert quick.returncode == 0 and load_job(tmp_path / "q.toml").sample.preset == "quick"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.lr", "has no value"),
        ("training.lrr=1", "Did you mean training.lr?"),
        ("training.steps=many", "expected integer"),
        ("target.rank=0", "rank"),
    ],
)
def test_new_refuses_a_wrong_setting(tmp_path: Path, setting: str, words: str):
    clips(tmp_path, "one")
    said = wanlora(
        "new", "--kind", "style", "--clips", tmp_path / "clips", "--set", setting, "--out", tmp_path / "job.toml"
    )
    assert said.returncode == 1 and words in said.stderr and not (tmp_path / "job.toml").exists()


def test_new_goes_on_from_loras_at_their_rank_and_merges_others(tmp_path: Path):
    clips(tmp_path, "a")
    for name in ("mine_high_noise", "mine_low_noise", "style_low"):
        write_lora_file(tmp_path / f"{name}.safetensors", pair(rank=4))
    plain = ["new", "--kind", "motion", "--clips", "clips", "--out"]
    high = ["--start", "mine_high_noise.safetensors"]
    merges = ["--merge", "style_low.safetensors:0.5", "--merge", "mine_high_noise.safetensors"]
    said = wanlora(*plain, "job.toml", *high, "--start-low", "mine_low_noise.safetensors", *merges, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    job = load_job(tmp_path / "job.toml")
    assert job.target.start_high == "mine_high_noise.safetensors"
    assert job.target.start_low == "mine_low_noise.safetensors" and job.target.rank == 4
    assert "target.rank = 4: The rank of the LoRA that it starts from" in said.stderr
    assert [(m.path, m.strength, m.expert) for m in job.model.merge] == [
        ("style_low.safetensors", 0.5, "low_noise"),
        ("mine_high_noise.safetensors", 1.0, "high_noise"),
    ]
    said = wanlora(*plain, "one.toml", *high, "--set", "target.rank=8", cwd=tmp_path)
    one = load_job(tmp_path / "one.toml")
    assert (one.target.start_high, one.target.start_low, one.target.rank) == ("mine_high_noise.safetensors", "", 8)
    assert "target.rank = 4" not in said.stderr
    for wrong in (["--start", "gone.safetensors"], ["--merge", "gone.safetensors"], ["--merge", "clips/a.txt:1"]):
        refused = wanlora(*plain, "no.toml", *wrong, cwd=tmp_path)
        assert refused.returncode == 1 and not (tmp_path / "no.toml").exists(), refused.stderr


def test_new_refuses_a_folder_without_clips(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    said = wanlora("new", "--kind", "style", "--clips", tmp_path / "clips", "--out", tmp_path / "job.toml")
    assert said.returncode == 1 and said.stderr.count("wanlora:") == 1 and not (tmp_path / "job.toml").exists()
    missing = wanlora("new", "--kind", "style", "--clips", tmp_path / "none", "--out", tmp_path / "job.toml")
    assert (
        missing.stderr
        == f"wanlora: the folder {tmp_path / 'none'} does not exist. Choose the folder that holds the clips\n"
    )


def test_without_a_terminal_the_screens_say_what_to_use(folder: Path):
    for line in ((), ("attach",)):
        said = wanlora(*line, "--dir", folder)
        assert said.returncode == 1 and "needs a terminal" in said.stderr, said
        assert f"wanlora --dir {folder} watch" in said.stderr


def test_without_a_terminal_attach_says_that_there_is_no_such_job(folder: Path):
    said = wanlora("attach", "nosuch", "--dir", folder)
    assert said.returncode == 1 and said.stderr.startswith("wanlora: nosuch: no such job."), said
    assert "needs a terminal" in wanlora("attach", "nosuch", "--dir", folder / "none").stderr
    assert not (folder / "none").exists(), "no daemon is started for it"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_signs_that_an_encoding_lacks_stop_no_command(folder: Path, tmp_path: Path, encoding: str):
    async def submit() -> None:
        async with Client(folder) as client:
            await client.submit(write_job(tmp_path, f"job_{encoding}", steps=1))

    asyncio.run(submit())
    said = wanlora("jobs", "--dir", folder, env=environment(PYTHONIOENCODING=encoding))
    assert said.returncode == 0 and f"job_{encoding}" in said.stdout and "Traceback" not in said.stderr


def test_a_file_s_name_that_is_no_text_is_written_so_that_it_can_be_read():
    name = os.fsdecode(b"caf\xe9.toml")
    said = subprocess.run(
        [sys.executable, "-m", "wanlora_tui.cli", "check", name],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert rb"caf\xe9.toml is not UTF-8" in said.stderr and b"mv -n" in said.stderr and b"Traceback" not in said.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_stops_no_command(folder: Path, closed: str):
    said = subprocess.run(
        f"{sys.executable} -m wanlora_tui.cli jobs --json --dir {folder} {closed}",
        shell=True,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert said.returncode == 0 and "Traceback" not in said.stderr
    assert said.stdout.startswith("" if closed == ">&-" else "[")


@pytest.mark.parametrize("command", ["--version", "daemon status --json", "completion bash"])
def test_output_that_a_disk_does_not_take_is_told_in_one_sentence(command: str, tmp_path: Path):
    said = subprocess.run(
        f"{sys.executable} -m wanlora_tui.cli {command} >/dev/full",
        shell=True,
        cwd=ROOT,
        env=environment(XDG_STATE_HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert said.returncode == 1
    assert said.stderr == "wanlora: its output cannot be written: No space left on device\n"


def test_without_a_daemon(tmp_path: Path):
    empty = short_dir()
    for line in (("jobs",), ("watch",), ("stop", "x"), ("resume", "x"), ("cancel", "x")):
        said = wanlora(*line, "--dir", empty)
        assert said.returncode == 1 and "no daemon is running" in said.stderr and said.stdout == "", line
    status = wanlora("daemon", "status", "--json", "--dir", empty)
    assert status.returncode == 1 and json.loads(status.stdout)["running"] is False
    assert wanlora("daemon", "stop", "--dir", empty).returncode == 0
    empty.rmdir()


def test_the_daemon_starts_once_answers_and_ends():
    folder = short_dir()
    try:
        assert "Started" in wanlora("daemon", "start", "--dir", folder).stderr
        assert "runs already" in wanlora("daemon", "start", "--dir", folder).stderr
        # the option works on both sides of the command
        assert wanlora("--dir", folder, "daemon", "status").returncode == 0
    finally:
        assert "has ended" in wanlora("daemon", "stop", "--dir", folder).stderr
    assert wanlora("daemon", "status", "--dir", folder).returncode == 1
    shutil.rmtree(folder)


def submit(folder: Path, job: Path) -> None:
    """Past the checks: the test trainer needs neither clips nor a GPU."""
    code = (
        "import asyncio, pathlib\nfrom daemon.wire.client import Client\nasync def go():\n    async with"
        f" Client(pathlib.Path({str(folder)!r})) as c: await c.submit({str(job)!r})\nasyncio.run(go())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment())


def test_watch_prints_a_line_for_each_event_and_ends_with_the_run(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "watched_v1", steps=40, pace_ms=5))
    live = wanlora("watch", "watched_v1", "--plain", "--dir", folder)
    assert live.returncode == 0
    events = [
        json.loads(line) for line in wanlora("watch", "watched_v1", "--json", "--dir", folder).stdout.splitlines()
    ]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1)) and events[-1]["kind"] == "done"
    assert [line.split()[1] for line in live.stdout.splitlines()] == [e["kind"] for e in events]
    since = wanlora("watch", "watched_v1", "--json", "--since", events[-3]["seq"], "--dir", folder).stdout.splitlines()
    assert [json.loads(line)["seq"] for line in since] == [e["seq"] for e in events[-2:]]
    assert wanlora("watch", "watched_v1", "--json", "--since", "9999", "--dir", folder).stdout == ""


def test_the_exit_code_of_watch_is_the_outcome(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "broken_v2"))
    said = wanlora("watch", "broken_v2", "--dir", folder)
    assert said.returncode == 1 and " failed out of memory" in said.stdout and "broken_v2: failed" in said.stderr
    submit(folder, write_job(tmp_path, "stopped_v1", steps=100_000, pace_ms=50))
    watching = subprocess.Popen(
        [sys.executable, "-m", "wanlora_tui.cli", "watch", "stopped_v1", "--plain", "--dir", str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    until(lambda: " step " in watching.stdout.readline(), "a step")
    assert (
        f"stopped_v1 saves a checkpoint and stops. Resume it later with: wanlora --dir {folder} resume stopped_v1"
        in wanlora("stop", "stopped_v1", "--dir", folder).stderr
    )
    rest = watching.communicate(timeout=PATIENCE)[0]
    assert watching.returncode == 75 and " stopped step" in rest
    assert wanlora("resume", "stopped_v1", "--dir", folder).returncode == 0
    until(lambda: "► running" in wanlora("jobs", "--dir", folder).stdout, "the resumed job")
    assert wanlora("cancel", "stopped_v1", "--dir", folder).returncode == 0
    assert wanlora("watch", "stopped_v1", "--dir", folder).returncode == 1


def test_ctrl_c_leaves_the_watch_and_the_job_goes_on(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "left_v1", steps=100_000, pace_ms=50))
    watching = subprocess.Popen(
        [sys.executable, "-m", "wanlora_tui.cli", "watch", "--dir", str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    until(lambda: " step " in watching.stdout.readline(), "a step")
    watching.send_signal(signal.SIGINT)
    talk = watching.communicate(timeout=PATIENCE)[1]
    assert watching.returncode == 130 and "keeps running" in talk and "Traceback" not in talk
    record = next(j for j in json.loads(wanlora("jobs", "--json", "--dir", folder).stdout) if j["name"] == "left_v1")
    assert record["state"] == "running"
    wanlora("cancel", "left_v1", "--dir", folder)


def test_a_reader_that_leaves_makes_no_noise(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "piped_v1", steps=100_000, pace_ms=1))
    command = f"{sys.executable} -m wanlora_tui.cli watch piped_v1 --plain --dir {folder} | head -2"
    said = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert len(said.stdout.splitlines()) == 2 and said.stderr == ""
    wanlora("cancel", "piped_v1", "--dir", folder)


def test_submit_checks_first_and_keeps_what_is_wrong_from_the_queue(folder: Path, tmp_path: Path):
    (tmp_path / "clips").mkdir()
    said = wanlora("submit", write_job(tmp_path, "hollow_v1"), "--dir", folder)
    assert said.returncode == 1 and "ERROR" in said.stderr and "not submitted" in said.stderr and said.stdout == ""
    assert "hollow_v1" not in wanlora("jobs", "--dir", folder).stdout


def test_unknown_jobs_are_named(folder: Path):
    for command in ("stop", "resume", "cancel", "watch"):
        said = wanlora(command, "nobody", "--dir", folder)
        assert said.returncode == 1 and "nobody" in said.stderr and "Traceback" not in said.stderr


def test_doctor_gives_a_line_per_check(folder: Path):
    said = wanlora("doctor", "--dir", folder)
    levels = [line.split()[0] for line in said.stdout.splitlines() if not line.startswith(" ")]
    subjects = {line[6:18].strip() for line in said.stdout.splitlines() if not line.startswith(" ")}
    assert set(levels) <= {"ok", "warn", "fail"} and said.returncode == ("fail" in levels)
    assert subjects >= {
        "Python",
        "GPU",
        "RAM",
        "Disk",
        "Runtime dir",
        "Daemon",
        "Terminal",
        "Colour",
        "Pictures",
        "Video",
        "Model files",
        "torch",
    }
    assert "answers" in said.stdout


def printed(command: tuple[str, ...], width: int, cwd: Path) -> list[str]:
    """The lines of a command on a terminal of so many columns."""
    terminal = Terminal(
        [sys.executable, "-m", "wanlora_tui.cli", *command], size=(width, 100), cwd=cwd, env=environment()
    )
    try:
        terminal.wait_end()
        # without the line at which this terminal prints a question about pictures, and what that pushes beyond its end
        return re.sub(r"^Gi=.*\n.*\n", "", terminal.text, flags=re.MULTILINE).splitlines()
    finally:
        terminal.close()


@pytest.mark.parametrize("command", [*thorough(("doctor",)), ("check", "orbit_v1.toml")], ids=["doctor", "check"])
def test_what_is_wider_than_the_terminal_is_broken_at_words(command: tuple[str, ...], tmp_path: Path):
    clips(tmp_path, "a")
    write_job(tmp_path)
    narrow, other = printed(command, 60, tmp_path), printed(command, 77, tmp_path)
    assert any(line.startswith("  ") for line in narrow)
    # figures may change between the two, and a path may be longer than a line
    words = {word for word in " ".join(narrow).split() if word.isalpha()}
    assert len(words) > 20 and not words - set(" ".join(other).split())


def test_steps_watched_on_a_narrow_terminal_are_written_over(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "narrow_v1", steps=30))
    terminal = Terminal(
        [sys.executable, "-m", "wanlora_tui.cli", "watch", "narrow_v1", "--dir", str(folder)],
        size=(70, 40),
        cwd=ROOT,
        env=environment(),
    )
    try:
        assert terminal.wait_end() == 0
        lines = terminal.text.splitlines()
    finally:
        terminal.close()
    stepped = [line for line in lines if line.startswith("step ")]
    assert (
        len(stepped) <= 4
        and all("grad norm" in line for line in stepped)
        and not any("step 2/30" in line for line in lines)
    ), lines


def test_cancelling_says_what_becomes_of_it(folder: Path, tmp_path: Path):
    submit(folder, write_job(tmp_path, "first_v1", steps=100_000, pace_ms=50))
    submit(folder, write_job(tmp_path, "waiting_v1"))
    assert wanlora("cancel", "waiting_v1", "--dir", folder).stderr == "waiting_v1 is cancelled. It had not begun.\n"
    assert wanlora("watch", "waiting_v1", "--dir", folder).stderr == "waiting_v1: cancelled before it began.\n"
    until(lambda: "► running" in wanlora("jobs", "--dir", folder).stdout, "the first job")
    assert (
        wanlora("cancel", "first_v1", "--dir", folder).stderr == "first_v1 is being cancelled. Its checkpoints stay.\n"
    )


def test_train_becomes_the_trainer(tmp_path: Path):
    """Its exit code is the trainer's own: the engine refuses a job without clips, in its own words."""
    (tmp_path / "clips").mkdir()
    said = wanlora("train", write_job(tmp_path), "--out", tmp_path / "runs")
    assert said.returncode == 1 and "Traceback" not in said.stderr and said.stderr


def test_a_user_without_a_home_folder_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """As in a container that runs as a uid which it does not know."""
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("PYTHON_COLORS", "0")  # as the command sets it: for this test alone
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    assert main(["jobs"]) == 1
    assert "HOME is not set, and this system knows no home folder of the user with uid 2147483641" in (
        told := capsys.readouterr().err
    )
    assert "export HOME=" in told
    assert main(["--version"]) == main(["completion", "bash"]) == 0
    assert "complete" in capsys.readouterr().out
