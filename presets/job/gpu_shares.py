"""How many GPUs can share the steps of a job. Which part each of them has is engine.parallel.parts's."""

from collections.abc import Sequence

import msgspec

from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert, trained_experts
from presets.job.schema import Job

# The most GPUs of one host with which a run on real cards is recorded (in benchmarks/results). With more, and with
# several hosts, only the CPU's gloo has shown that the LoRAs come out bit-equal. Whoever records such a run
# (benchmarks.gpus_apart) raises this with it.
RECORDED = 2


def apart(job: Job, gpus: int) -> bool:
    """Whether the experts train at the same time, each on half of the GPUs."""
    return len(trained_experts(job)) == 2 and gpus > 1 and gpus % 2 == 0


def for_one_step(job: Job, gpus: int) -> int:
    """How many of them share each step, a micro-batch each at a time."""
    return gpus // 2 if apart(job, gpus) else gpus


def fits(job: Job, gpus: int) -> bool:
    """Whether that number divides the micro-batches of a step."""
    return job.training.gradient_accumulation % for_one_step(job, gpus) == 0


def require_fits(job: Job, gpus: int) -> None:
    """Raises UserError, with those that do, for a number that does not."""
    if not fits(job, gpus):
        raise UserError(
            f"{gpus} GPUs cannot share its steps: each of the {for_one_step(job, gpus)} that train one expert takes one"
            f" micro-batch, and a step has {job.training.gradient_accumulation} of them",
            where="job.gpus",
            fix=f"Use {listed(numbers(job))} of them, or set training.gradient_accumulation to a multiple of"
            f" {for_one_step(job, gpus)}",
        )


def numbers(job: Job) -> list[int]:
    """All numbers of GPUs that can share the work."""
    return [n for n in range(1, 2 * job.training.gradient_accumulation + 1) if fits(job, n)]


def listed(numbers: list[int]) -> str:
    """Numbers to choose from, in words."""
    words = [str(n) for n in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def recorded(job: Job, *, on_cards: bool) -> bool:
    """Whether as many GPUs as the job names have been seen to train together. Processes on the CPU have."""
    return not on_cards or len(set(job.job.gpus)) <= RECORDED


def of_experts(job: Job, experts: Sequence[Expert]) -> Job:
    """What of a job a rank behind the first loads: these experts, and no previews."""
    return msgspec.structs.replace(
        job,
        sample=msgspec.structs.replace(job.sample, prompts=[]),
        multistage=msgspec.structs.replace(job.multistage, **{expert: expert in experts for expert in EXPERTS}),
    )
