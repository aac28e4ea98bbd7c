"""Which GPU is a rank's own, and whether as many ranks were started as the job names GPUs. Imports no torch."""

from collections.abc import Sequence

import msgspec

from engine.parallel.parts import Rank
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.findings import Finding
from presets.job.gpu_shares import never_measured, to_be_sure
from presets.job.schema import Job
from presets.text import to_type


def left(job: Job, gpus: Sequence[int] | None) -> Job:
    """The job as an attempt has it that is given `gpus` alone, because the others are gone; as it is without. Raises
    UserError where it does not name them."""
    if gpus is None:
        return job
    if unknown := [gpu for gpu in gpus if gpu not in job.job.gpus]:
        raise UserError(f"the job names no GPU {unknown[0]}", where="--gpus", fix=f"Give some of {job.job.gpus}")
    return msgspec.structs.replace(job, job=msgspec.structs.replace(job.job, gpus=list(gpus)))


def require_as_many(job: Job, processes: int) -> None:
    """A job that names several GPUs is trained by as many processes of each host. Raises UserError."""
    gpus = len(set(job.job.gpus))
    if gpus > 1 and processes != gpus:
        raise UserError(
            f"the job names {gpus} GPUs, and {processes} process{'es were' if processes > 1 else ' was'} started",
            where="job.gpus",
            fix=f"Submit it, or start it with what this prints: {to_type('plan', 'JOB.toml', '--torchrun')}",
        )


def notices(rank: Rank, job: Job, here: Job, facts: Facts) -> list[Finding]:
    """What is to be said of the GPUs of an attempt besides what the job tells: which of the job's it does without, and
    that nobody has measured cards of several hosts yet. `here`: what `left` gave."""
    found = []
    if missing := [str(gpu) for gpu in dict.fromkeys(job.job.gpus) if gpu not in here.job.gpus]:
        message = f"the run goes on without GPU {' and '.join(missing)}, which was gone when this attempt was started"
        found.append(
            Finding(
                code="gpus-gone",
                severity="warning",
                field="job.gpus",
                message=f"{message}: to the same LoRAs with GPU {' and '.join(map(str, here.job.gpus))}, and slower",
                fix="Once all are there again, stop it and resume it: then all are used",
            )
        )
    if rank.several_hosts and facts.machine is not None and facts.machine.gpus:
        hosts = -(-rank.world // rank.on_host)
        found.append(
            Finding(
                code="more-gpus",
                severity="advice",
                field="job.gpus",
                message=never_measured(job, rank.world, hosts=hosts),
                fix=to_be_sure(job, rank.world, hosts=hosts),
            )
        )
    return found


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


def as_here(rank: Rank, job: Job, own: Facts, facts: Facts) -> Facts:
    """The first rank's facts as one behind it has them: with its own GPU, and where there are several hosts with its
    own machine, which `own` holds."""
    if rank.several_hosts:
        return msgspec.structs.replace(facts, machine=own.machine)
    return own_gpu(rank, job, facts)
