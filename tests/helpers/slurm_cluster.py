"""A real Slurm on this machine: munged, slurmctld, and slurmds that play nodes of two GPUs each, all in a folder of
their own and on free ports of loopback. Its GPUs are files that are no GPUs, so a job that trains there does so on the
CPU. Other partitions take nodes away: `urgent` from the one that is the default, at once, and from `graced`, which
gives a job a while to save.
"""

import getpass
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.ports import free_port
from tests.helpers.waiting import PATIENCE, until

SBIN = f"{os.environ['PATH']}:/usr/sbin"
needs_slurm = pytest.mark.skipif(
    not all(shutil.which(command, path=SBIN) for command in ("slurmctld", "slurmd", "munged", "sbatch", "squeue")),
    reason="no Slurm here: apt-get install slurm-wlm, or slurmctld, slurmd, munge and the client's commands",
)
GRACE = 45  # seconds that a job of the partition `graced` has
CONF = """ClusterName=wanlora
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=20
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=12 Gres=gpu:2
PartitionName=usual Nodes=ALL Default=YES MaxTime=24:00:00 State=UP PriorityTier=1
PartitionName=graced Nodes=ALL MaxTime=24:00:00 State=UP PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=1:00:00 State=UP PriorityTier=2 PreemptMode=OFF
"""
GRES = """NodeName=n[1-{nodes}] Name=gpu File=/dev/null
NodeName=n[1-{nodes}] Name=gpu File=/dev/zero
"""


class SlurmCluster:
    """A context manager; `environment` is what its commands need. What still runs at its end is killed."""

    def __init__(self, nodes: int) -> None:
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))  # a socket's path is short
        self.folder.chmod(0o755)  # munged asks for it
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SBIN}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}  # by name; a slurmd by its node's

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        count = len(self.nodes)
        port = free_port(neighbours=count)
        for name in ("state", *self.nodes):
            (self.folder / name).mkdir()
        given = {"port": port, "first": port + 1, "last": port + count, "nodes": count, "grace": GRACE}
        given |= {"user": getpass.getuser(), "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONF.format(**given))
        (self.folder / "gres.conf").write_text(GRES.format(nodes=count))
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(64))
        places = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        self._run("munged", "--foreground", *(f"--{what}={self.folder / name}" for what, name in places.items()))
        until((self.folder / "munge.socket").exists, f"munged: {self.said('munged')}")
        self._run("slurmctld", "-D", "-c")
        for node in self.nodes:
            self._run("slurmd", "-D", "-N", node)
        self._until_idle()

    def _until_idle(self) -> None:
        idle = f"{len(self.nodes)} idle"
        until(lambda: self.ask("sinfo", "--noheader", "--format=%D %t", "--partition=usual") == idle, idle)

    def _run(self, *command: str) -> None:
        name = command[-1] if command[0] == "slurmd" else command[0]
        with (self.folder / f"{name}.out").open("wb") as out:
            self._daemons[name] = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=out, stderr=out
            )

    def said(self, daemon: str) -> str:
        return (self.folder / f"{daemon}.out").read_text(errors="replace")[-3000:]

    def ask(self, *command: str) -> str:
        """What a command of Slurm's says."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).strip()

    def state(self, number: str) -> str:
        """Of a job, in Slurm's words; one that is over too."""
        said = self.ask("scontrol", "show", "job", number, "--oneliner").split(" JobState=")
        return said[-1].split()[0]

    def fill(self) -> str:
        """The number of a job that takes all nodes until it is cancelled, those of other jobs too."""
        nodes = f"--nodes={len(self.nodes)}"
        options = ["--partition=urgent", nodes, "--gpus-per-node=2", "--output=/dev/null"]
        return self.ask("sbatch", "--parsable", *options, "--wrap=exec sleep 3600")

    def hold_until_warned(self) -> None:
        """Have what trains do nothing until SIGTERM has come, however long Slurm takes, and however fast it trains."""
        trainers = [process for process in self._of_jobs() if "engine" in process.cmdline()]
        for trainer in trainers:
            trainer.suspend()
        until(lambda: all(trainer.status() == psutil.STATUS_STOPPED for trainer in trainers))
        until(lambda: any(_is_warned(trainer) for trainer in trainers), "a warning")
        for trainer in trainers:
            trainer.resume()

    def kill_tasks(self, node: str) -> None:
        """What jobs run on a node. Slurm is told how they ended."""
        self._kill_jobs(SLURMD_NODENAME=node)

    def kill_node(self, node: str) -> None:
        """As where its power fails, but that the kernel closes its connections: its slurmd and all its processes."""
        self._daemons[node].kill()
        self._kill_jobs(launchers=True, SLURMD_NODENAME=node)

    def mend(self, node: str) -> None:
        """It is there again, and all nodes are free."""
        self._daemons[node].wait(PATIENCE)
        self._run("slurmd", "-D", "-N", node)
        self._until_idle()

    def __exit__(self, *_: object) -> None:
        for daemon in self._daemons.values():
            daemon.kill()  # nothing of theirs is kept, and a slurmd whose controller has gone may not end on SIGTERM
            daemon.wait(PATIENCE)
        self._kill_jobs(launchers=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_jobs(self, *, launchers: bool = False, **of: str) -> None:
        """The processes of jobs that are not over and have this in their environment."""
        for process in self._of_jobs(**of):
            with suppress(psutil.Error):
                parent = process.parent()
                process.kill()
                # it hides its own environment
                if launchers and parent is not None and parent.name().startswith("slurmstepd"):
                    parent.kill()

    def _of_jobs(self, **of: str) -> Iterator[psutil.Process]:
        wanted = {"SLURM_CONF": self.environment["SLURM_CONF"], **of}.items()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if wanted <= process.environ().items():
                    yield process


def _is_warned(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for it, or what sent that has let it go on."""
    pending = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending[0], 16) & 1 << signal.SIGTERM - 1) or process.status() != psutil.STATUS_STOPPED
