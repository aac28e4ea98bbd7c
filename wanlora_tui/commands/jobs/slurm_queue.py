"""Slurm's own commands, asked about one job: handed over, where it stands, taken back. What is handed over is
commands.jobs.slurm's, as is what becomes of the run.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from presets.errors import UserError

ON_A_LOGIN_NODE = "Run this where Slurm's commands are, on a login node"
# why a job waits for as long as its partition is what it is; sbatch takes it all the same, unless it is told otherwise
NEVER = ("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig")
TOO_MUCH = "its partition does not give so much time, or so many nodes"


@dataclass(frozen=True)
class Standing:
    """Where a job stands in Slurm's queue, in Slurm's words."""

    state: str
    reason: str  # why it waits
    start: str  # when Slurm expects that it starts, or has it started; "N/A": it does not say
    nodes: str  # those that it has

    def __str__(self) -> str:
        if self.state == "RUNNING":
            return f"runs on {self.nodes}"
        if self.state != "PENDING":
            return f"is {self.state.lower()}"
        if self.reason in NEVER:
            return f"waits in Slurm's queue and will not start: {TOO_MUCH} ({self.reason})"
        why = "" if self.reason == "None" else f", {self.reason}"
        return f"waits in Slurm's queue{why}{'' if self.start == 'N/A' else f', until about {self.start}'}"


UNKNOWN = Standing("", "", "", "")  # squeue does not answer, which says nothing


def handed_over(file: Path) -> str:
    """The number of the Slurm job. Raises UserError with what sbatch says."""
    said = _asked("sbatch", "--parsable", str(file))
    if said.returncode:
        raise UserError(
            f"sbatch refused it: {said.stderr.strip() or f'exit code {said.returncode}'}",
            where=str(file),
            fix="Look at the partition, the nodes and the time that you asked for",
        )
    return said.stdout.strip().partition(";")[0]


def standing(number: str) -> Standing | None:
    """None: Slurm has it no more, neither waiting nor running."""
    said = _asked("squeue", "--noheader", f"--jobs={number}", "--format=%T|%r|%S|%N")
    if line := said.stdout.strip():
        return Standing(*line.split("|", 3))
    return UNKNOWN if said.returncode and "Invalid job id" not in said.stderr else None


def require_that_it_can_start(number: str, file: Path) -> None:
    """Raises UserError where it would wait for ever, and takes it back."""
    place = standing(number)
    if place is not None and place.reason in NEVER:
        _asked("scancel", number)
        raise UserError(
            f"not submitted: {TOO_MUCH}, so it would never start ({place.reason})",
            where=str(file),
            fix="Ask for less by --time or --nodes, or name another --partition: sinfo lists what each gives",
        )


def _asked(*command: str) -> "subprocess.CompletedProcess[str]":
    """What a command of Slurm's says. Raises UserError where it does not run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as e:
        raise UserError(f"{command[0]} does not run: {e.strerror}", where="PATH", fix=ON_A_LOGIN_NODE) from e
