"""Submitting to Slurm: what it is asked for, and a stand-in for it that really runs the script, takes the node away and
gives it back."""

import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
import pytest

from presets.job.toml_file import load_job, save_job, with_value
from presets.machine.torchrun import stop_options
from presets.runs.events import Event, EventKind
from tests.helpers.jobs import events, write_job
from tests.helpers.training.attempts import ONE_THREAD
from tests.helpers.waiting import PATIENCE, until
from tests.wanlora_tui.commands.test_plan import write_job as write_real_job
from wanlora_tui.cli import main
from wanlora_tui.commands.jobs import slurm
from wanlora_tui.commands.jobs.slurm_script import Wanted, script

# sbatch runs the script in the background. The first time, the node is taken away as soon as a step is done; scontrol
# requeue runs it once more. squeue knows the job while one of both runs.
STAND_IN = """#!/bin/bash
case "${0##*/}" in
sbatch)
    cp "${@: -1}" "$SLURM_FOLDER/script"
    setsid "$SLURM_FOLDER/run" 0 > /dev/null 2>&1 &
    echo "4711;cluster" ;;
run)
    touch "$SLURM_FOLDER/running"
    echo $$ > "$SLURM_FOLDER/session"
    export SLURM_JOB_ID=4711 SLURM_RESTART_COUNT=$1
    bash "$SLURM_FOLDER/script" >> "$SLURM_FOLDER/log" 2>&1 &
    script=$!
    if [[ $1 = 0 ]]; then
        until grep -qs '"kind":"step"' "$SLURM_RUN/events.jsonl" || ! kill -0 $script; do sleep 0.05; done
        kill -TERM $script
    fi
    wait $script
    echo "$?" >> "$SLURM_FOLDER/codes"
    rm "$SLURM_FOLDER/running"
    if [[ -e "$SLURM_FOLDER/requeued" && $1 = 0 ]]; then exec "$0" 1; fi ;;
scontrol)
    case "$*" in
    "requeue 4711") touch "$SLURM_FOLDER/requeued" ;;
    "show job 4711 --oneliner") echo "JobId=4711 JobState=RUNNING Requeue=1 Restarts=0 PreemptTime=None" ;;
    esac ;;
squeue) if [[ -e "$SLURM_FOLDER/running" || ! -e "$SLURM_FOLDER/codes" ]]; then echo "RUNNING|None|N/A|n1"; fi ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "run", "scontrol", "squeue", "scancel"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FOLDER", str(folder))
    yield folder
    if (folder / "running").exists():  # the test has failed
        with suppress(ProcessLookupError):
            os.killpg(int((folder / "session").read_text()), signal.SIGKILL)


def never_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "handed_over", lambda file: "1")
    monkeypatch.setattr(slurm, "require_that_it_can_start", lambda number, file: None)


@pytest.mark.process
def test_a_job_whose_node_is_taken_away_goes_on_from_its_checkpoint(
    tiny: Path, tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    job = write_job(tmp_path, tiny, prompts=0, steps=30, dataset={"num_frames": 1}, save={"every": 30})
    run = tmp_path / "runs/t"
    for name, value in {**ONE_THREAD, "XDG_CACHE_HOME": str(tmp_path / "cache"), "SLURM_RUN": str(run)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.5)
    (tmp_path / "engine").mkdir()  # of the user's own, where the job is submitted: it is not the trainer
    (tmp_path / "engine/__main__.py").write_text("raise SystemExit('another engine')")
    monkeypatch.chdir(tmp_path)
    code = main(["submit", str(job), "--slurm", "--time", "1:00", "--follow"])
    out, err = capsys.readouterr()
    assert code == 0, (out, err, (stand_in / "log").read_text())
    assert out.startswith("4711\n") and "waits in Slurm's queue for 1h 00m" in err
    kinds = [e.kind for e in events(run)]
    assert kinds.count("stopped") == 1 and kinds.count("started") == 2 and kinds[-1] == "done"
    assert [e.data["step"] for e in events(run) if e.kind == "step"] == list(range(1, 31))
    assert (stand_in / "codes").read_text().split()[0] == "0"  # requeued: no failure
    assert main(["submit", str(job), "--slurm", "--time", "1:00"]) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_the_time_and_the_memory_come_from_the_plan(tmp_path: Path, stand_in: Path, capsys):
    (tmp_path / "clips").mkdir()
    job = load_job(write_real_job(tmp_path))
    minutes, ram, _ = slurm.planned(job, slurm.Facts(base=tmp_path), gpus=1, nodes=1, card="H100 SXM")
    assert 2 * 60 < minutes < 8 * 60 and 30 * 2**30 < ram < 60 * 2**30
    half, _, _ = slurm.planned(job, slurm.Facts(base=tmp_path), gpus=2, nodes=1, card="H100 SXM")
    assert half < 0.7 * minutes
    with pytest.raises(slurm.UserError, match=r"how long it takes is not known.*--gpu.*--time"):
        slurm.planned(job, slurm.Facts(base=tmp_path), gpus=1, nodes=1, card=None)


def test_memory_is_asked_for_as_well_where_the_time_is_given(
    tiny: Path, tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "planned", lambda *_, **__: (90, 50 * 2**30, None))
    never_handed_over(monkeypatch)
    assert main(["submit", str(write_job(tmp_path, tiny)), "--slurm", "--time", "1:00", "--gpu", "H100 SXM"]) == 0
    asked = (tmp_path / "runs/t.sbatch").read_text().splitlines()
    assert "#SBATCH --time=1:00:00" in asked and "#SBATCH --mem=50G" in asked


def test_each_of_several_nodes_holds_the_weights_once(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    job = with_value(load_job(write_real_job(tmp_path)), "training.gradient_accumulation", 2)
    found = [
        slurm.planned(job, slurm.Facts(base=tmp_path), gpus=2, nodes=nodes, card="H100 SXM")[1] for nodes in (1, 2)
    ]
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_more_nodes_than_were_measured_are_submitted_and_spoken_of(
    tmp_path: Path, stand_in: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "clips").mkdir()
    never_handed_over(monkeypatch)
    monkeypatch.setattr(slurm, "check_job", lambda job, facts: [])
    asked = ["--slurm", "--time", "1:00", "--nodes", "2"]
    assert main(["submit", str(write_real_job(tmp_path)), *asked]) == 0
    assert "That 2 cards of 2 hosts make the LoRAs of one was shown by processes on a CPU" in capsys.readouterr().err


def text(**more: object) -> str:
    given = {
        "name": "orbit",
        "gpus": 1,
        "nodes": 1,
        "minutes": 754,
        "partition": "",
        "ram": 0,
        "grace": 180,
        "restarts": 3,
    }
    wanted = Wanted(**given | more)
    return script(
        Path("/a b/j.toml"), Path("/out"), wanted, Path("/out/5%.log"), first=[], again=["--resume"], started=None
    )


def test_what_slurm_is_asked_for():
    asked = [line for line in text(gpus=4, partition="h100", ram=100 * 2**30 + 1).splitlines() if "#SBATCH" in line]
    for line in (
        *("--gpus-per-node=4", "--time=12:34:00", "--partition=h100", "--mem=101G", "--requeue"),
        *("--output=/out/5%%.log", "--signal=B:TERM@300", "--nodes=1"),
    ):
        assert f"#SBATCH {line}" in asked
    assert not [line for line in text().splitlines() if "partition" in line or "--mem" in line]


@pytest.mark.parametrize(
    ("gpus", "nodes", "words"),
    [
        (1, 1, [sys.executable, "-m", "engine"]),
        (2, 1, ["--standalone", "--nproc-per-node=2"]),
        (4, 2, ["srun", "--cpus-per-task=24", "bash", "-c"]),
    ],
)
def test_the_trainer_is_started_as_its_number_of_processes_needs(gpus: int, nodes: int, words: list[str]):
    said = text(gpus=gpus, nodes=nodes)
    (line,) = [line for line in said.splitlines() if line.endswith('"${options[@]}" &')]
    assert set(words) <= set(shlex.split(line)) and "/a b/j.toml" in shlex.split(line)
    assert subprocess.run(["bash", "-n"], input=said, text=True, check=False).returncode == 0


def test_a_trainer_has_the_plan_s_time_to_save_from_torchrun_and_from_slurm():
    (line,) = [line for line in text(gpus=2, grace=400).splitlines() if "torch.distributed.run" in line]
    assert set(stop_options(400)) <= set(shlex.split(line))
    assert "#SBATCH --signal=B:TERM@520" in text(gpus=2, grace=400)


def test_less_time_than_a_save_takes_is_refused(tiny: Path, tmp_path: Path, stand_in: Path, capsys):
    assert main(["submit", str(write_job(tmp_path, tiny)), "--slurm", "--time", "0:05"]) == 1
    assert "of its time are for saving. Give it more time" in capsys.readouterr().err


def test_a_path_that_slurm_cannot_write_to_is_refused(tiny: Path, tmp_path: Path, stand_in: Path, capsys):
    asked = ["--slurm", "--time", "1:00", "--out", str(tmp_path / "a\\b")]
    assert main(["submit", str(write_job(tmp_path, tiny)), *asked]) == 1
    assert "no backslash" in capsys.readouterr().err and not (stand_in / "script").exists()


COMMANDS = """#!/bin/bash
case "${0##*/}" in
train) echo "$*" >> "$SLURM_FOLDER/options"
    trap 'echo TERM >> "$SLURM_FOLDER/signals"' TERM
    touch "$SLURM_FOLDER/hears"
    until [[ -e "$SLURM_FOLDER/saved" ]]; do sleep 0.05; done
    exit 75 ;;
scontrol) echo "$*" >> "$SLURM_FOLDER/asked"
    if [[ $1 = show ]]; then cat "$SLURM_FOLDER/standing"; else echo "scontrol: disabled" >&2; exit 1; fi ;;
esac
"""
RUNNING = "JobId=4711 JobState=RUNNING Requeue=1 Restarts=0 PreemptTime=None\n"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """What a node has in place of a trainer, and of a Slurm that does not queue a job again."""
    folder = tmp_path / "node"
    folder.mkdir()
    for name in ("train", "scontrol"):
        (folder / name).write_text(COMMANDS)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def on_node(node: Path, said: str, *, restarts: int, **more: str) -> subprocess.Popen[str]:
    """The script where it runs, its trainer the one of the node. `more`: of its environment."""
    said = said.replace(f"{shlex.quote(sys.executable)} -m engine", f"{shlex.quote(str(node / 'train'))} -m engine")
    given = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts), "SLURM_FOLDER": str(node)}
    return subprocess.Popen(
        ["bash", "-c", said],
        env={**os.environ, "PATH": f"{node}:{os.environ['PATH']}", **given, **more},
        stderr=subprocess.PIPE,
        text=True,
    )


def a_script(out: Path, nodes: int = 1) -> str:
    """The script of a new job whose runs are in `out`."""
    wanted = Wanted("orbit", 1, nodes, 60, "", 0, 180, 3)
    return script(Path("/j.toml"), out, wanted, Path("/l"), first=[], again=[], started=None)


def a_run(folder: Path, *kinds: str) -> Path:
    """A run folder with events of these kinds."""
    run = folder / "orbit"
    run.mkdir(exist_ok=True)
    (run / "job.toml").touch()
    (run / "events.jsonl").write_text("".join(line(kind) for kind in kinds))
    return run


def line(kind: str, **data: object) -> str:
    """An event."""
    given = {"resumed_from": 0, "step": 3, "path": "", **data}
    event = Event(seq=1, time=0.0, run="r", attempt=1, kind=cast(EventKind, kind), data=given)
    return msgspec.json.encode(event).decode() + "\n"


@pytest.mark.parametrize(
    ("standing", "asked", "code"),
    [
        (RUNNING, ["show", "requeue"], 75),  # which Slurm refuses here
        # somebody has cancelled it
        (RUNNING.replace("RUNNING", "COMPLETING"), ["show"], 75),
        # Slurm takes its nodes, and would end it, or has put it into the queue itself
        (RUNNING.replace("RUNNING", "COMPLETING").replace("None", "2026-11-29T00:02:13"), ["show", "requeue"], 75),
        (RUNNING.replace("RUNNING", "COMPLETING").replace("Restarts=0", "Restarts=1"), ["show"], 0),
        ("slurm_load_jobs error: Unable to contact slurm controller", ["show"], 75),
    ],
)
def test_a_job_that_was_told_to_stop_asks_for_the_queue_unless_it_is_cancelled_or_there(
    node: Path, tmp_path: Path, standing: str, asked: list[str], code: int
):
    """A second warning reaches no trainer that saves."""
    run = a_run(tmp_path, "started", "step")
    (node / "standing").write_text(standing)
    process = on_node(node, a_script(tmp_path), restarts=0)
    try:
        until(lambda: (node / "hears").exists())
        process.send_signal(signal.SIGTERM)
        until(lambda: (node / "signals").exists())
        process.send_signal(signal.SIGTERM)
        with (run / "events.jsonl").open("a") as events_file:
            events_file.write(line("stopped", why="SIGTERM received"))
        (node / "saved").touch()
        err = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    assert process.returncode == code
    assert ("the run is saved, and not in the queue again" in err) == (code != 0)
    assert (node / "signals").read_text() == "TERM\n"
    assert [line.split()[0] for line in (node / "asked").read_text().splitlines()] == asked


def test_a_second_warning_that_comes_while_the_first_is_handed_on_reaches_no_trainer(node: Path, tmp_path: Path):
    a_run(tmp_path, "started", "step")
    (node / "standing").write_text(RUNNING)
    # bash's own, which takes its time
    wait = 'touch "$SLURM_FOLDER/on"; until [[ -e "$SLURM_FOLDER/warned" ]]; do sleep 0.05; done'
    slow = {"BASH_FUNC_kill%%": f'() {{ builtin kill "$@" && {{ [[ $1 = -0 ]] || {{ {wait}; }} }}; }}'}
    process = on_node(node, a_script(tmp_path), restarts=0, **slow)
    try:
        until(lambda: (node / "hears").exists())
        process.send_signal(signal.SIGTERM)
        until(lambda: (node / "signals").exists() and (node / "on").exists())
        process.send_signal(signal.SIGTERM)
        (node / "warned").touch()
        (node / "saved").touch()
        assert process.wait(PATIENCE) == 75
    finally:
        process.kill()
    assert (node / "signals").read_text() == "TERM\n"


@pytest.mark.parametrize(
    ("state", "preempted", "asked"),
    [("COMPLETING", "2026-11-29T00:02:13", ["show", "requeue"]), ("COMPLETING", "None", ["show"])],
)
def test_a_job_that_is_warned_before_its_trainer_has_said_a_word_keeps_its_place(
    node: Path, tmp_path: Path, state: str, preempted: str, asked: list[str]
):
    """Unless somebody has cancelled it."""
    a_run(tmp_path, "started", "stopped")
    (node / "standing").write_text(RUNNING.replace("RUNNING", state).replace("None", preempted))
    process = on_node(node, a_script(tmp_path), restarts=0)
    try:
        until(lambda: (node / "hears").exists())
        process.send_signal(signal.SIGTERM)
        until(lambda: (node / "signals").exists())
        (node / "saved").touch()
        err = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    assert process.returncode == 75 and "the run is saved" not in err
    assert [line.split()[0] for line in (node / "asked").read_text().splitlines()] == asked


def test_a_run_that_stopped_before_and_failed_now_does_not_ask_for_the_queue(node: Path, tmp_path: Path):
    a_run(tmp_path, "started", "stopped")
    (node / "saved").touch()
    assert on_node(node, a_script(tmp_path), restarts=1).wait(PATIENCE) == 75
    assert not (node / "asked").exists()


@pytest.mark.parametrize(
    ("data", "standing", "asked"),
    [
        ({"cause": "rank 1 of 2 was killed or has crashed", "user": False}, RUNNING, ["show", "requeue"]),
        ({"cause": "no clips", "user": True}, RUNNING, ["show"]),
        ({"cause": "rank 1 of 2 was killed", "user": False}, RUNNING.replace("RUNNING", "COMPLETING"), ["show"]),
    ],
)
def test_what_failed_for_a_reason_that_may_pass_asks_for_the_queue_while_the_job_has_its_nodes(
    node: Path, tmp_path: Path, data: dict[str, object], standing: str, asked: list[str]
):
    run = a_run(tmp_path)
    (node / "standing").write_text(standing)
    process = on_node(node, a_script(tmp_path), restarts=0)
    try:
        until(lambda: (node / "hears").exists())
        (run / "events.jsonl").write_text(line("started") + line("step") + line("failed", **data))
        (node / "saved").touch()
        assert process.wait(PATIENCE) == 75
    finally:
        process.kill()
    assert [words.split()[0] for words in (node / "asked").read_text().splitlines()] == asked


def test_the_processes_of_several_nodes_are_warned_by_scancel():
    """An srun that hears SIGTERM kills them."""
    assert """trap '[[ -n $warned ]] || { warned=1; scancel --signal=TERM "$SLURM_JOB_ID"; }' TERM""" in text(nodes=2)
    assert "|| { warned=1; kill -TERM $!; }' TERM" in text(nodes=1)


@pytest.mark.parametrize(
    ("since", "options"),
    [
        ([], "--resume --from 4"),  # taken away before it had gone back
        (["started"], "--resume"),
        (["phase", "failed"], "--resume --from 4"),
    ],
)
def test_the_step_to_go_back_to_is_asked_for_until_the_run_has_gone_back(
    node: Path, tmp_path: Path, since: list[str], options: str
):
    before = ["started", "step", "stopped"]
    events_file = a_run(tmp_path, *before) / "events.jsonl"
    said = script(
        Path("/j.toml"),
        tmp_path,
        Wanted("orbit", 1, 1, 60, "", 0, 180, 3),
        Path("/l"),
        first=["--resume", "--from", "4"],
        again=["--resume"],
        started=slurm.attempts(events_file),
    )
    a_run(tmp_path, *before, *since)
    (node / "saved").touch()
    assert on_node(node, said, restarts=1).wait(PATIENCE) == 75
    assert (node / "options").read_text().strip().endswith(f"--out {tmp_path} {options}")


def test_a_resume_from_a_step_says_so_in_the_script(tiny: Path, tmp_path: Path, monkeypatch, stand_in: Path):
    never_handed_over(monkeypatch)
    job = write_job(tmp_path, tiny)
    (tmp_path / "runs/t").mkdir(parents=True)
    (tmp_path / "runs/t/events.jsonl").write_text('{"kind":"started"}\n{"kind":"step"}\n{"kind":"started"}\n')
    assert main(["submit", str(job), "--slurm", "--time", "1:00", "--from", "4"]) == 0
    said = (tmp_path / "runs/t.sbatch").read_text()
    assert "options=(--resume --from 4)" in said and "-gt 2 ]]" in said


def test_a_first_node_that_scontrol_does_not_name_is_one_error(node: Path, tmp_path: Path):
    process = on_node(node, a_script(tmp_path, nodes=2), restarts=0)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1 and "wanlora: scontrol does not say which node is the first" in err
    assert not (node / "options").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--slurm", "--hold", "--priority", "0", "--on-done", ""],
            "--priority and --on-done and --hold are of the daemon's",
        ),
        (["--slurm", "--after", "a"], "--after is of the daemon's queue alone"),
        (["--nodes", "2", "--follow"], "--nodes and --follow are of Slurm's queue alone"),
    ],
)
def test_an_option_that_the_queue_would_pass_over_is_refused(
    tiny: Path, tmp_path: Path, capsys, options: list[str], words: str
):
    assert main(["submit", str(write_job(tmp_path, tiny)), *options]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["sbatch", "scontrol", "squeue", "scancel"])
def test_a_command_of_slurm_s_that_is_missing_is_one_error_before_anything_is_submitted(
    tiny: Path, tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys, gone: str
):
    (stand_in / gone).unlink()
    monkeypatch.setenv("PATH", str(stand_in))
    assert main(["submit", str(write_job(tmp_path, tiny)), "--slurm", "--time", "1:00"]) == 1
    assert f"{gone} is not here" in capsys.readouterr().err and not (stand_in / "script").exists()


@pytest.mark.process
def test_one_that_goes_away_later_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (lambda: slurm.standing("1"), lambda: slurm.handed_over(tmp_path / "script")):
        with pytest.raises(slurm.UserError, match=r"(squeue|sbatch) does not run.*on a login node"):
            ask()


def test_gpus_are_counted_as_slurm_gives_them(tiny: Path, tmp_path: Path, stand_in: Path, capsys):
    job = write_job(tmp_path, tiny)
    save_job(with_value(load_job(job), "job.gpus", [3]), job, fresh=True)
    assert main(["submit", str(job), "--slurm", "--time", "1:00"]) == 1
    assert "Set job.gpus = [0]" in capsys.readouterr().err


def test_without_slurm_it_says_where_to_go(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", str(write_job(tmp_path, tiny)), "--slurm"]) == 1
    assert "on a login node" in capsys.readouterr().err
