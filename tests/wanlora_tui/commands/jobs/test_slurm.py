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

import pytest

from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.jobs import events, write_job
from tests.helpers.training.attempts import ONE_THREAD
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
scontrol) [[ "$*" = "requeue 4711" ]] && touch "$SLURM_FOLDER/requeued" ;;
squeue) if [[ -e "$SLURM_FOLDER/running" || ! -e "$SLURM_FOLDER/codes" ]]; then echo RUNNING; fi ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "run", "scontrol", "squeue"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FOLDER", str(folder))
    yield folder
    if (folder / "running").exists():  # the test has failed
        with suppress(ProcessLookupError):
            os.killpg(int((folder / "session").read_text()), signal.SIGKILL)


@pytest.mark.process
def test_a_job_whose_node_is_taken_away_goes_on_from_its_checkpoint(
    tiny: Path, tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    job = write_job(tmp_path, tiny, prompts=0, steps=30, dataset={"num_frames": 1}, save={"every": 30})
    run = tmp_path / "runs/t"
    for name, value in {**ONE_THREAD, "XDG_CACHE_HOME": str(tmp_path / "cache"), "SLURM_RUN": str(run)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.1)
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
    minutes, ram = slurm.planned(job, slurm.Facts(base=tmp_path), gpus=1, nodes=1, card="H100 SXM")
    assert 2 * 60 < minutes < 8 * 60 and 30 * 2**30 < ram < 60 * 2**30
    half, _ = slurm.planned(job, slurm.Facts(base=tmp_path), gpus=2, nodes=1, card="H100 SXM")
    assert half < 0.7 * minutes
    with pytest.raises(slurm.UserError, match=r"how long it takes is not known.*--gpu.*--time"):
        slurm.planned(job, slurm.Facts(base=tmp_path), gpus=1, nodes=1, card=None)


def test_memory_is_asked_for_as_well_where_the_time_is_given(
    tiny: Path, tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "planned", lambda *_, **__: (90, 50 * 2**30))
    monkeypatch.setattr(slurm, "handed_over", lambda file: "1")
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


def test_more_cards_than_were_seen_together_are_refused_before_they_wait_in_a_queue(
    tmp_path: Path, stand_in: Path, capsys
):
    (tmp_path / "clips").mkdir()
    assert main(["submit", str(write_real_job(tmp_path)), "--slurm", "--time", "1:00", "--nodes", "2"]) == 1
    assert "--nodes: 2 cards of several hosts were never seen to train one run together" in capsys.readouterr().err


def text(**more: object) -> str:
    wanted = Wanted(**{"name": "orbit", "gpus": 1, "nodes": 1, "minutes": 754, "partition": "", "ram": 0} | more)
    return script(Path("/a b/j.toml"), Path("/out"), wanted, Path("/out/5%.log"), first=[], again=["--resume"])


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
        (4, 2, ["srun", "--nnodes=2", "--rdzv-endpoint=$node:29400"]),
    ],
)
def test_the_trainer_is_started_as_its_number_of_processes_needs(gpus: int, nodes: int, words: list[str]):
    said = text(gpus=gpus, nodes=nodes)
    (line,) = [line for line in said.splitlines() if line.endswith('"${options[@]}" &')]
    assert set(words) <= set(shlex.split(line)) and "/a b/j.toml" in shlex.split(line)
    assert subprocess.run(["bash", "-n"], input=said, text=True, check=False).returncode == 0


def test_gpus_are_counted_as_slurm_gives_them(tiny: Path, tmp_path: Path, stand_in: Path, capsys):
    job = write_job(tmp_path, tiny)
    save_job(with_value(load_job(job), "job.gpus", [3]), job, fresh=True)
    assert main(["submit", str(job), "--slurm", "--time", "1:00"]) == 1
    assert "Set job.gpus = [0]" in capsys.readouterr().err


def test_without_slurm_it_says_where_to_go(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", str(write_job(tmp_path, tiny)), "--slurm"]) == 1
    assert "on a login node" in capsys.readouterr().err
