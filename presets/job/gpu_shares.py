"""How many GPUs can share the steps of a job. Which part each of them has is engine.parallel.parts's."""

from collections.abc import Sequence

import msgspec

from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert, trained_experts
from presets.job.schema import Job

# The most GPUs of one host with which a run on real cards is recorded (in benchmarks/results). With more, and with
# several hosts, only the CPU's gloo has shown that the LoRAs come out bit-equal: that is said, and nothing is refused.
# Whoever records such a run (benchmarks.gpus_apart) raises this with it.
RECORDED = 4
# The same of GPUs that share each clip.
RECORDED_PER_CLIP = 4
HEADS = 40  # of Wan 2.2 A14B's attention


def apart(job: Job, gpus: int) -> bool:
    """Whether the experts train at the same time, each on half of the GPUs."""
    clips = gpus // job.job.gpus_per_clip
    return len(trained_experts(job)) == 2 and clips > 1 and clips % 2 == 0


def for_one_step(job: Job, gpus: int) -> int:
    """How many of them share each step."""
    return gpus // 2 if apart(job, gpus) else gpus


def at_once(job: Job, gpus: int) -> int:
    """How many micro-batches of a step they take at a time: one each, or one by all that share a clip."""
    return for_one_step(job, gpus) // job.job.gpus_per_clip


def of_previews(job: Job, gpus: int) -> int:
    """How many of them share each pass of a preview: where the experts train apart, one computes it alone."""
    return 1 if apart(job, gpus) else job.job.gpus_per_clip


def fits(job: Job, gpus: int) -> bool:
    """Whether the micro-batches that they take at once divide those of a step."""
    return gpus % job.job.gpus_per_clip == 0 and job.training.gradient_accumulation % at_once(job, gpus) == 0


def require_fits(job: Job, gpus: int) -> None:
    """Raises UserError, with those that do, for a number that does not."""
    each = job.job.gpus_per_clip
    if gpus % each:
        raise UserError(
            f"{gpus} GPU{'s' if gpus > 1 else ''} cannot share clips by {each} each",
            where="job.gpus_per_clip",
            fix=f"Use {listed(numbers(job))} GPUs, or set job.gpus_per_clip = 1",
        )
    if not fits(job, gpus):
        takes = "each" if each == 1 else f"every {each}"
        raise UserError(
            f"{gpus} GPUs cannot share its steps: {takes} of the {for_one_step(job, gpus)} that train one expert"
            f" take{'s' if each == 1 else ''} one micro-batch, and a step has {job.training.gradient_accumulation} of"
            " them",
            where="job.gpus",
            fix=f"Use {listed(numbers(job))} of them, or set training.gradient_accumulation to a multiple of"
            f" {at_once(job, gpus)}",
        )


def numbers(job: Job) -> list[int]:
    """All numbers of GPUs that can share the work."""
    most = 2 * job.training.gradient_accumulation * job.job.gpus_per_clip
    return [n for n in range(1, most + 1) if fits(job, n)]


def cannot_share_clips(job: Job, *, heads: int, fewest: int) -> str:
    """Why the job's clips, of `fewest` tokens and more, cannot be shared by as many GPUs as it says; "" where they
    can."""
    each = job.job.gpus_per_clip
    if heads % each:
        return f"{each} GPUs cannot share the {heads} heads of the attention evenly"
    return f"{each} GPUs cannot share a clip of {fewest} tokens" if fewest < each else ""


def listed(numbers: list[int]) -> str:
    """Numbers to choose from, in words."""
    words = [str(n) for n in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def never_measured(job: Job, gpus: int, *, hosts: int = 1) -> str:
    """What of a run on so many cards in all nobody has measured on cards yet, for people; "" where somebody has."""
    each = job.job.gpus_per_clip
    if gpus <= RECORDED and hosts == 1 and each <= RECORDED_PER_CLIP:
        return ""
    cards = f"{gpus} cards" if hosts == 1 else f"{gpus} cards of {hosts} hosts"
    claim = f"{cards} make the LoRAs of one" if each == 1 else f"{cards}, {each} to a clip, agree with one"
    return f"that {claim} was shown by processes on a CPU, and not measured on cards yet"


def to_be_sure(job: Job, gpus: int, *, hosts: int = 1) -> str:
    """What shows it on the user's own cards, before a long run."""
    if hosts > 1:
        return (
            "To be sure, train its first steps under another name on one GPU as well, and compare the losses in both"
            " events.jsonl: they are the same to the last digit"
        )
    each = f" --per-clip {job.job.gpus_per_clip}" if job.job.gpus_per_clip > 1 else ""
    named = ",".join(map(str, dict.fromkeys(job.job.gpus) if len(set(job.job.gpus)) == gpus else range(gpus)))
    return (
        f"To be sure, compare 20 steps with those of one GPU first, in a checkout of wanlora: python -m"
        f" benchmarks.gpus_apart JOB.toml --gpus {named}{each} --steps 20"
    )


def left_of(job: Job, there: Sequence[int]) -> list[int]:
    """Those of the job's GPUs still `there` that go on with its run to the same bits: the first, as many as can share
    its work, where clips are shared in groups of the same size. [] where none can."""
    return list(there[: max((n for n in numbers(job) if n <= len(there)), default=0)])


def of_experts(job: Job, experts: Sequence[Expert]) -> Job:
    """What of a job a rank behind the first loads: these experts, and no previews."""
    return msgspec.structs.replace(
        job,
        sample=msgspec.structs.replace(job.sample, prompts=[]),
        multistage=msgspec.structs.replace(job.multistage, **{expert: expert in experts for expert in EXPERTS}),
    )
