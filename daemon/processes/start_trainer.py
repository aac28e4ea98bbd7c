"""Starts a trainer: an ordinary process in a session of its own, through torchrun, that outlives the daemon.

Whether it lives and how it ends is daemon.processes.trainer_process's; when it is started, daemon.jobs.runner's.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from daemon.processes.open_files import give_back
from daemon.processes.proc import MARKER, UTF8_OUTPUT
from presets.files import open_own
from presets.machine.torchrun import stop_options

ONE = "--nproc-per-node=1"


def torchrun(grace: int = 180) -> list[str]:
    """The command that trains with the engine; a job file, `--out DIR` and perhaps `--resume ...` follow it. `grace`:
    seconds from SIGTERM to SIGKILL. Raises UserError."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", ONE]
    return [*launcher, *stop_options(grace), "-m", "engine"]


def for_gpus(command: list[str], gpus: int) -> list[str]:
    """The same command with a process for each of so many GPUs, where it is torchrun's."""
    return [f"--nproc-per-node={gpus}" if part == ONE else part for part in command]


def start_trainer(
    command: list[str],
    *,
    job_file: Path,
    out: str,
    options: list[str],
    environment: dict[str, str],
    marker: str,
    log: Path,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a trainer in a session of its own, its output in `log`. `environment`: all of its own, but for the marker
    and the log's encoding. `keep`: descriptors that it inherits. Raises OSError.

    It inherits that SIGHUP is ignored, which the daemon does for itself: the end of a login ends neither.
    """
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    with open_own(log, append=True) as output:  # to append: it may be cut while the trainer writes
        process = subprocess.Popen(
            [*command, str(job_file), "--out", out, *options],
            cwd="/",
            env=environment | {MARKER: marker} | UTF8_OUTPUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep,
        )
    give_back(process.pid)
    return process
