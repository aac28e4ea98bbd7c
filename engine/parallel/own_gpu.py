"""Which GPU is a rank's own, and whether as many ranks were started as the job names GPUs. Imports no torch."""

import msgspec

from engine.parallel.parts import Rank
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.job import gpu_shares
from presets.job.schema import Job
from presets.text import to_type


def require_as_many(job: Job, processes: int) -> None:
    """A job that names several GPUs is trained by as many processes of each host. Raises UserError."""
    gpus = len(set(job.job.gpus))
    if gpus > 1 and processes != gpus:
        raise UserError(
            f"the job names {gpus} GPUs, and {processes} process{'es were' if processes > 1 else ' was'} started",
            where="job.gpus",
            fix=f"Submit it, or start it with what this prints: {to_type('plan', 'JOB.toml', '--torchrun')}",
        )


def require_recorded(rank: Rank, job: Job) -> None:
    """So many cards of one host have been seen to train one run together, and to share clips. Raises UserError."""
    several_hosts = 0 < rank.here < rank.world
    if rank.world > gpu_shares.RECORDED or several_hosts:
        raise UserError(
            f"{rank.world} cards{' of several hosts' if several_hosts else ''} were never seen to train one run"
            " together yet",
            where="WORLD_SIZE",
            fix=f"Train with {gpu_shares.RECORDED} of one host: name as many in job.gpus",
        )
    if why := gpu_shares.never_shared(job):
        raise UserError(why, where="job.gpus_per_clip", fix="Set job.gpus_per_clip = 1")


def own_gpu(rank: Rank, job: Job, facts: Facts) -> Facts:
    """The facts as a rank has them: of all GPUs its own alone, and its part of the memory that is free, for each keeps
    the blocks for itself. Raises UserError where the job names too few."""
    machine = facts.machine
    if rank.world == 1 or machine is None or not machine.gpus:
        return facts
    started, named = max(rank.here, rank.local + 1), len(job.job.gpus)
    if started > named:
        raise UserError(
            f"{started} processes were started on this host, and the job names {named} GPU{'s' if named > 1 else ''}",
            where="job.gpus",
            fix="Start one process for each GPU that the job names",
        )
    mine = [gpu for gpu in machine.gpus if gpu.index == job.job.gpus[rank.local]]
    ram = machine.ram_free // len(job.job.gpus)
    return msgspec.structs.replace(facts, machine=msgspec.structs.replace(machine, gpus=mine, ram_free=ram))
