"""torchrun's command line, for who starts the processes of a run. torch is not imported, which takes seconds."""

import importlib.util
import sys
from pathlib import Path

from presets.errors import UserError

FIRST_NODE = "FIRST_NODE"  # stands for it in a line that is printed
OWN_SIGNALS = "SIGTERM,SIGINT,SIGQUIT"  # SIGHUP, of a login that ends, is left to the trainer


def torchrun_line(job_file: str, gpus: int, nodes: int, *, grace: int) -> list[str]:
    """The words of the command that trains a job by a process for each of its GPUs; on the first of several nodes, and
    with another number on each of the others. Raises UserError."""
    where = ["--standalone"] if nodes == 1 else meeting(nodes, "0", FIRST_NODE, "29400")
    return ["torchrun", *where, f"--nproc-per-node={gpus}", *stop_options(grace), "-m", "engine", job_file]


def meeting(nodes: int, node: str, first: str, port: str) -> list[str]:
    """How the launchers of several nodes find each other: at the first one, by a name or address that all of them
    reach. Its own name need not lead there, which it has to for the rendezvous that numbers the nodes by itself."""
    return [f"--nnodes={nodes}", f"--node-rank={node}", f"--master-addr={first}", f"--master-port={port}"]


def stop_options(grace: int) -> list[str]:
    """How torchrun stops its workers: it would end them on SIGHUP, and 30 seconds after SIGTERM, unless it is told
    otherwise. `grace`: the seconds that they have to save. The second option came after torch 2.10, so torch's source
    is searched for both. Raises UserError where there is no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise UserError(
            "torch is not installed", where=sys.executable, fix="Install wanlora-tui into this Python again"
        )
    known = (Path(found.origin).parent / "distributed" / "run.py").read_text("utf-8")
    options = {"--signals-to-handle": OWN_SIGNALS, "--shutdown-timeout": str(grace)}
    return [f"{option}={value}" for option, value in options.items() if option in known]
