"""The batch script that trains a job under Slurm, as text. What submits and follows it is commands.jobs.slurm's.

Slurm warns before it takes the nodes away, for a job of higher priority or at the end of its time: SIGTERM reaches the
script, which hands it to the trainer; that saves, and the script has itself queued again. So it does where an attempt
has failed and another may go well (commands.jobs.slurm_again). What is there already is resumed, so the script is the
same each time.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from presets.machine.torchrun import meeting, stop_options
from wanlora_tui.commands.jobs import slurm_again

WARNED, LATE = 300, 120  # seconds before the end of its time, at the least; Slurm's clock is a minute's
CPUS_PER_GPU = 6  # one feeds the GPU, up to four decode clips


@dataclass(frozen=True)
class Wanted:
    """What Slurm is asked for."""

    name: str
    gpus: int  # of each node
    nodes: int
    minutes: int
    partition: str  # "" for the default one
    ram: int  # bytes of each node; 0: what Slurm gives
    grace: int  # seconds that a trainer has from the warning until it has saved
    restarts: int  # how often it goes on after failures without a new checkpoint

    @property
    def warned(self) -> int:
        """Seconds before the end of its time at which it is warned."""
        return max(WARNED, self.grace + LATE)


def script(
    job_file: Path,
    out: Path,
    wanted: Wanted,
    log: Path,
    *,
    first: list[str],
    again: list[str],
    started: int | None,
    began: int = 0,
) -> str:
    """The script. `first` are the trainer's options until it has begun, `again` those of later starts. It has begun
    when there is a run; where `first` goes back to an older checkpoint of one, when more of its attempts than `started`
    have begun to train: the node may be taken away before. `began`: bytes of the events before all of them."""
    hours, minutes = divmod(wanted.minutes, 60)
    asked = [
        f"--job-name={wanted.name}",
        f"--nodes={wanted.nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={wanted.gpus}",
        f"--cpus-per-task={CPUS_PER_GPU * wanted.gpus}",
        *([f"--mem={-(-wanted.ram // 2**30)}G"] if wanted.ram else []),
        f"--time={hours}:{minutes:02}:00",
        *([f"--partition={wanted.partition}"] if wanted.partition else []),
        f"--output={str(log).replace('%', '%%')}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{wanted.warned}",
    ]
    run = out / wanted.name
    train = f"{_launch(wanted)} -m engine {shlex.join([str(job_file), '--out', str(out)])}"
    return TEMPLATE.format(
        asked="\n".join(f"#SBATCH {shlex.quote(line)}" for line in asked),
        run=shlex.quote(str(run)),
        first=shlex.join(first),
        again=shlex.join(again),
        begun=RUN_THERE if started is None else f"{ATTEMPTS} -gt {started}",
        node=FIRST_NODE if wanted.nodes > 1 else "",
        train=train,
        warn=WARN_NODES if wanted.nodes > 1 else WARN,
        may_go_on=f"{shlex.quote(sys.executable)} -m {slurm_again.__name__}",
        began=began,
        restarts=wanted.restarts,
    )


RUN_THERE = "-e $run/job.toml"
ATTEMPTS = """$(grep -c '"kind":"started"' "$run/events.jsonl" 2> /dev/null)"""
# Its address: the name that Slurm has for a node need not be one that other nodes know. The port is the job's own.
FIRST_NODE = """first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
node=$(scontrol show node "$first" --oneliner | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
if [[ -z $node ]]; then
    echo "wanlora: scontrol does not say which node is the first, where all are to meet: is it installed there?" >&2
    exit 1
fi
export node port=$((20000 + SLURM_JOB_ID % 10000))
"""
WARN = "kill -TERM $!"
WARN_NODES = 'scancel --signal=TERM "$SLURM_JOB_ID"'  # its steps; an srun that hears SIGTERM kills them with SIGKILL
TEMPLATE = """#!/bin/bash
{asked}

run={run}
options=({first})
if [[ ${{SLURM_RESTART_COUNT:-0}} -gt 0 && {begun} ]]; then
    options=({again})
fi
before=$(tail -n 1 "$run/events.jsonl" 2> /dev/null)
cd / # so that no folder of yours is taken for a package of the trainer's
{node}warned=
# Once: Slurm may warn again, also while this is handed on, and a launcher that hears a third signal leaves the trainer,
# which is saving. $! is the trainer as soon as there is one.
trap '[[ -n $warned ]] || {{ warned=1; {warn}; }}' TERM
{train} "${{options[@]}}" &
wait $!
while kill -0 $! 2> /dev/null; do # a warning has ended the wait
    wait $!
done
wait $!
code=$?
# A warning has stopped it, to this script or to the trainer alone, and it has saved: into the queue again. So where it
# has failed and another attempt may go well, or was warned before it could hear that. Not where somebody cancels the
# job, nor where Slurm has put it there itself. (A job that ends is COMPLETING in either case.)
last=$(tail -n 1 "$run/events.jsonl" 2> /dev/null)
said= saved=
[[ $last != "$before" ]] && said=1
[[ -n $said && $last == *'"kind":"stopped"'*SIGTERM* ]] && saved=1
if [[ $code -ne 0 && -n $said$warned ]]; then
    job="$(scontrol show job "$SLURM_JOB_ID" --oneliner) "
    if [[ ( -z $said || -n $saved ) && $job == *" PreemptTime=2"* ]] || {{
        [[ -n $said && $job == *" JobState=RUNNING "* ]] && {may_go_on} "$run/events.jsonl" {began} {restarts}
    }}; then
        scontrol requeue "$SLURM_JOB_ID" && exit 0
    elif [[ $job == *" Restarts="* && $job != *" Restarts=${{SLURM_RESTART_COUNT:-0}} "* ]]; then
        exit 0
    fi
    [[ -n $saved ]] && echo "wanlora: the run is saved, and not in the queue again: submit it with --resume" >&2
fi
exit "$code"
"""


def _launch(wanted: Wanted) -> str:
    """What stands before the trainer's module."""
    python = shlex.quote(sys.executable)
    stops = shlex.join(stop_options(wanted.grace))
    torchrun = f"{python} -m torch.distributed.run --nproc-per-node={wanted.gpus} {stops}"
    if wanted.nodes == 1:
        return f"{torchrun} --standalone" if wanted.gpus > 1 else python
    meet = " ".join(meeting(wanted.nodes, '"$SLURM_NODEID"', '"$node"', '"$port"'))
    on_node = f'exec {torchrun} {meet} "$@"'
    asked = f"--ntasks-per-node=1 --cpus-per-task={CPUS_PER_GPU * wanted.gpus} --kill-on-bad-exit=1"
    return f"srun {asked} bash -c {shlex.quote(on_node)} wanlora"
