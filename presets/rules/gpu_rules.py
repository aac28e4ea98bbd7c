"""Rules about the machine's GPUs and its torch. Whether a job fits into their memory is `plan_rules`."""

from collections.abc import Iterator

from presets.facts.facts import Facts, model_missing, used_gpus
from presets.job.expert_schedule import high_ranks
from presets.job.gpu_shares import HEADS, cannot_share_clips, fits, listed, never_measured, numbers, to_be_sure
from presets.job.schema import Job
from presets.job.toml_file import get_value
from presets.machine.precisions import LEAST, text
from presets.planner.sizes import GIB
from presets.planner.workload import workload_of
from presets.rules.registry import Found, rule
from presets.text import human

LITTLE_VRAM = 0.8  # of the card: less free than this is somebody else's doing


@rule("gpu-missing", "error")
def gpu_missing(job: Job, facts: Facts) -> Iterator[Found]:
    """There is an NVIDIA GPU, unless the base model is a tiny one."""
    machine = facts.machine
    if machine is not None and not facts.tiny and not model_missing(facts) and not machine.gpus:
        why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
        yield Found(
            "job.gpus",
            f"no NVIDIA GPU was found{why}, and a 14B model cannot be trained without one",
            fix="Run this on a machine with an NVIDIA GPU, or see what is wrong with: wanlora doctor",
        )


@rule("torch-misfit", "error")
def torch_misfit(job: Job, facts: Facts) -> Iterator[Found]:
    """The installed torch was built for a CUDA that the NVIDIA driver serves, unless the base model is a tiny one."""
    wrong = (
        facts.machine.torch_misfit
        if facts.machine is not None and not facts.tiny and not model_missing(facts)
        else None
    )
    if wrong is not None:
        yield Found("job.gpus", f"torch would not see the GPU: {wrong.message}", fix=wrong.fix)


@rule("gpu-unknown", "error")
def gpu_unknown(job: Job, facts: Facts) -> Iterator[Found]:
    """Every GPU that the job names exists, can be read and is named once."""
    machine = facts.machine
    if machine is None or not machine.gpus:
        return
    good = [g.index for g in machine.gpus if not g.error]
    wanted = job.job.gpus
    missing = [i for i in wanted if i not in good]
    if missing:
        broken = [f"GPU {g.index}: {g.error}" for g in machine.gpus if g.error and g.index in missing]
        among = f" among those that CUDA_VISIBLE_DEVICES={machine.visible} shows" if machine.visible else ""
        message = (
            "; ".join(broken)
            if broken
            else f"there is no GPU {missing[0]}{among}, only {', '.join(map(str, good)) or 'none that answers'}"
        )
        kept = [i for i in dict.fromkeys(wanted) if i in good] or good[:1]
        yield (
            Found("job.gpus", message, set={"job.gpus": kept})
            if kept
            else Found("job.gpus", message, fix="See what is wrong with: wanlora doctor")
        )
    elif len(set(wanted)) < len(wanted):
        yield Found("job.gpus", "a GPU is named twice", set={"job.gpus": list(dict.fromkeys(wanted))})


@rule("gpu-old", "error")
def gpu_old(job: Job, facts: Facts) -> Iterator[Found]:
    """Each GPU has bf16 and exact attention (compute capability 8.0 and up)."""
    for gpu in used_gpus(job, facts) if not facts.tiny else []:
        if gpu.capability < LEAST:
            message = (
                f"GPU {gpu.index} ({gpu.name}) has compute capability {text(gpu.capability)}: bf16 and the attention of"
                f" a 14B model begin with {text(LEAST)}"
            )
            yield Found("job.gpus", message, fix="Use a card of the RTX 30 series or newer")


@rule("gpu-busy", "warning")
def gpu_busy(job: Job, facts: Facts) -> Iterator[Found]:
    """Nobody else holds the memory of the job's GPUs."""
    if facts.tiny:
        return
    for gpu in used_gpus(job, facts):
        if gpu.vram_free < LITTLE_VRAM * gpu.vram_total:
            holders = sorted(gpu.processes, key=lambda p: -p.memory)[:3]
            who = (
                ": " + ", ".join(f"{p.name or 'a process'} (pid {p.pid}) {human(p.memory)}" for p in holders)
                if holders
                else ""
            )
            message = f"only {human(gpu.vram_free)} of {human(gpu.vram_total)} are free on GPU {gpu.index}{who}"
            yield Found("job.gpus", message, fix="End those programs first, or give the job another GPU")


@rule("rank-headroom", "advice")
def rank_headroom(job: Job, facts: Facts) -> Iterator[Found]:
    """Ranks above 16 wait for 48 GB of VRAM and a run that was stable at 16."""
    vram = min((g.vram_total for g in used_gpus(job, facts)), default=None)
    high = high_ranks(job, 16)
    if vram is not None and not facts.tiny and high and vram < 47 * GIB:
        message = (
            f"rank {max(get_value(job, path) for path in high)} on {vram / GIB:.0f} GiB takes memory that frames and"
            " resolution could use, and overfits sooner"
        )
        yield Found(high[0], message, set=dict.fromkeys(high, 16))


def on_cards(facts: Facts) -> bool:
    """Whether a job trains on cards: a toy does, too, where there are any."""
    return not facts.tiny or (facts.machine is not None and bool(facts.machine.gpus))


@rule("more-gpus", "advice")
def more_gpus(job: Job, facts: Facts) -> Iterator[Found]:
    """No more GPUs are named, or share a clip, than have been measured on cards; with more nothing is refused."""
    gpus = len(set(job.job.gpus))
    if on_cards(facts) and (what := never_measured(job, gpus)):
        yield Found(
            "job.gpus",
            what,
            fix=to_be_sure(job, gpus),
        )


@rule("gpus-share", "error")
def gpus_share(job: Job, facts: Facts) -> Iterator[Found]:
    """Several GPUs share the micro-batches of each step evenly; where both experts train and the number is even, half
    of them do so for each expert."""
    gpus = list(dict.fromkeys(job.job.gpus))
    whole = len(gpus) % job.job.gpus_per_clip == 0  # else that is what is wrong
    if whole and not fits(job, len(gpus)):
        yield Found(
            "job.gpus",
            f"{len(gpus)} GPUs cannot share steps of {job.training.gradient_accumulation} micro-batches"
            f" (training.gradient_accumulation): {listed(numbers(job))} can",
            set={"job.gpus": gpus[: max(n for n in numbers(job) if n <= len(gpus))]},
        )


@rule("gpus-of-one-kind", "error")
def gpus_of_one_kind(job: Job, facts: Facts) -> Iterator[Found]:
    """The job's GPUs are of one kind: others add in another order, and the LoRAs would not be those of one GPU."""
    cards = {gpu.index: gpu.name for gpu in used_gpus(job, facts)} if on_cards(facts) else {}
    named = [i for i in dict.fromkeys(job.job.gpus) if i in cards]
    kinds = list(dict.fromkeys(cards[i] for i in named))
    if len(kinds) > 1:
        yield Found(
            "job.gpus",
            f"the GPUs are not of one kind ({' and '.join(kinds)}): what they compute differs in the last bits, so the"
            " LoRAs would be those of neither. Experts can also train at the same time in a job each",
            set={"job.gpus": [i for i in named if cards[i] == kinds[0]]},
        )


@rule("gpus-per-clip", "error")
def gpus_per_clip(job: Job, facts: Facts) -> Iterator[Found]:
    """GPUs that share a clip divide the job's GPUs and the heads of the attention, and are no more than its tokens."""
    each, gpus = job.job.gpus_per_clip, len(set(job.job.gpus))
    if each == 1:
        return
    heads = (facts.model.heads if facts.model else 0) or HEADS
    fewest = min(load.bucket.tokens for load in workload_of(job, facts).loads)
    why = (
        f"{gpus} GPU{'s are' if gpus > 1 else ' is'} named, and {each} are to share each clip"
        if gpus % each
        else cannot_share_clips(job, heads=heads, fewest=fewest)
    )
    if why:
        yield Found("job.gpus_per_clip", why, set={"job.gpus_per_clip": 1})
