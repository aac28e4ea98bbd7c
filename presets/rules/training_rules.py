"""Rules about the training panel: text and DOP, steps, learning rate, optimizer.

The experts' own rates and shares are `expert_rules`.
"""

from collections.abc import Iterator

from presets.facts.facts import Facts, paired, used_gpus
from presets.job.expert_schedule import PANEL, Expert, expert_at, panel_of, trained_experts
from presets.job.schema import Job
from presets.recipes.recipe import load_recipe
from presets.rules.registry import Found, rule

OVERFIT_STEPS = 4000
LARGE_SET = 60  # clips: with that many, long runs do not overfit so soon
DOP_CLASS = {"motion": "person", "style": "scene", "character": "person"}
PACKAGE = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
OLDEST_8BIT = (6, 0)  # compute capability: Pascal, what bitsandbytes' 8-bit optimizers ask for


@rule("dop-excludes-cached-text", "error")
def dop_excludes_cached_text(job: Job, facts: Facts) -> Iterator[Found]:
    """Differential output preservation and cached text embeddings exclude each other."""
    if job.training.dop and job.training.cache_text_embeddings:
        message = (
            "DOP swaps the trigger word for the class in every prompt, and cached text embeddings cannot be rewritten"
        )
        yield Found("training.cache_text_embeddings", message, set={"training.cache_text_embeddings": False})


@rule("dop-needs-trigger", "error")
def dop_needs_trigger(job: Job, facts: Facts) -> Iterator[Found]:
    """Differential output preservation has a trigger word to swap and a class to put in its place."""
    if not job.training.dop:
        return
    if not job.job.trigger.strip():
        message = "DOP compares prompts with and without the trigger word, and there is none"
        yield Found(
            "job.trigger",
            message,
            fix="Set job.trigger to a made-up word and put [trigger] into the captions, or set training.dop = false",
            set={"training.dop": False},
        )
    elif not job.training.dop_class.strip():
        message = "DOP puts the class in the place of the trigger word, and no class is given"
        yield Found("training.dop_class", message, set={"training.dop_class": DOP_CLASS[job.job.kind]})


@rule("bpp-excludes-dop", "error")
def bpp_excludes_dop(job: Job, facts: Facts) -> Iterator[Found]:
    """Blank prompt preservation and differential output preservation exclude each other."""
    if job.training.dop and job.training.blank_prompt_preservation:
        message = (
            "both keep the base model's answers, one to the class word and one to the empty prompt, and a step has room"
            " for one"
        )
        yield Found("training.blank_prompt_preservation", message, set={"training.blank_prompt_preservation": False})


@rule("blank-prompt-with-dropout", "advice")
def blank_prompt_with_dropout(job: Job, facts: Facts) -> Iterator[Found]:
    """Blank prompt preservation goes with caption dropout 0."""
    paths = [f"datasets[{i}].caption_dropout" for i, panel in enumerate(job.datasets) if panel.caption_dropout > 0]
    if job.training.blank_prompt_preservation and not job.training.dop and paths:
        message = (
            "a dropped caption teaches the empty prompt, whose answer blank prompt preservation keeps: the two work"
            " against each other"
        )
        yield Found(paths[0], message, set=dict.fromkeys(paths, 0.0))


@rule("dop-with-motion", "advice")
def dop_with_motion(job: Job, facts: Facts) -> Iterator[Found]:
    """Motion LoRAs do without differential output preservation."""
    if job.training.dop and job.job.kind == "motion":
        yield Found(
            "training.dop",
            "a motion LoRA rarely needs DOP, which about doubles the time of a step",
            set={"training.dop": False},
        )


@rule("too-many-steps", "warning")
def too_many_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """No more than 4000 steps, unless there are many clips: beyond that LoRAs overfit."""
    clips = sum(len(f.clips) for _, p, f in paired(job, facts) if not p.regularization)
    if job.training.steps > OVERFIT_STEPS and clips < LARGE_SET:
        message = f"{job.training.steps} steps usually overfit: the LoRA then only works in scenes like its clips"
        yield Found("training.steps", message, set={"training.steps": load_recipe(job.job.kind).steps.high})


@rule("warmup-beyond-steps", "warning")
def warmup_beyond_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """The warm-up ends before the run does."""
    if job.training.warmup_steps >= job.training.steps > 1:
        message = (
            f"the warm-up takes {job.training.warmup_steps} of {job.training.steps} steps, so the learning rate is"
            " never reached for long"
        )
        yield Found("training.warmup_steps", message, set={"training.warmup_steps": job.training.steps // 20})


@rule("warmup-misses-expert", "advice")
def warmup_misses_expert(job: Job, facts: Facts) -> Iterator[Found]:
    """The warm-up lasts into the first turn of both experts: it counts the steps of the whole run."""
    steps, every, warm = job.training.steps, job.multistage.switch_every, job.training.warmup_steps
    if not 0 < warm < steps or len(trained_experts(job)) < 2:
        return
    first: dict[Expert, int] = {}
    for step in range(0, steps, every):
        first.setdefault(expert_at(job, step), step)
    late = max(first, key=lambda e: first[e])
    if len(first) == 2 and warm <= first[late]:
        message = (
            f"the {late.replace('_noise', '-noise')} expert has its first turn after {first[late]} steps, when the"
            f" warm-up of {warm} is over: it begins at its full learning rate"
        )
        if first[late] + every < steps:
            yield Found("training.warmup_steps", message, set={"training.warmup_steps": first[late] + every})
        else:
            yield Found("training.warmup_steps", message, fix="Set a smaller multistage.switch_every")


def learning_rates(job: Job) -> dict[str, float]:
    """Every learning rate of the job that some expert trains with, by its field."""
    own = {f"multistage.{PANEL[e]}.lr": panel_of(job, e).lr for e in trained_experts(job)}
    common = {"training.lr": job.training.lr} if None in own.values() or not own else {}
    return common | {path: lr for path, lr in own.items() if lr is not None}


@rule("learning-rate-high", "warning")
def learning_rate_high(job: Job, facts: Facts) -> Iterator[Found]:
    """The learning rate is below 1e-3 (prodigy finds its own, and starts from 1)."""
    for path, lr in learning_rates(job).items():
        if job.training.optimizer != "prodigy" and lr >= 1e-3:
            yield Found(
                path,
                f"a learning rate of {lr:g} is ten times the usual or more: the LoRA is likely to break the picture",
                set={path: 1e-4},
            )


@rule("learning-rate-prodigy", "warning")
def learning_rate_prodigy(job: Job, facts: Facts) -> Iterator[Found]:
    """With prodigy the learning rate is 1: it multiplies the rate that prodigy finds."""
    for path, lr in learning_rates(job).items():
        if job.training.optimizer == "prodigy" and lr < 0.1:
            yield Found(
                path,
                f"prodigy finds the rate itself and multiplies it by {lr:g}, so next to nothing would be learned",
                set={path: 1.0},
            )


@rule("optimizer-unavailable", "error")
def optimizer_unavailable(job: Job, facts: Facts) -> Iterator[Found]:
    """The optimizer's package is installed, and adamw8bit has an NVIDIA GPU of Pascal's generation or newer."""
    optimizer, adamw = job.training.optimizer, {"training.optimizer": "adamw"}
    package, old = PACKAGE.get(optimizer), [g for g in used_gpus(job, facts) if g.capability < OLDEST_8BIT]
    if package and package not in facts.packages:
        message = f"{optimizer} needs the package {package}, which is not installed"
        yield Found(
            "training.optimizer",
            message,
            fix=f'Set training.optimizer = "adamw", or install it: pip install {package}',
            set=adamw,
        )
    elif optimizer == "adamw8bit" and facts.machine is not None and not facts.machine.gpus:
        yield Found("training.optimizer", "adamw8bit runs on NVIDIA GPUs only, and there is none", set=adamw)
    elif optimizer == "adamw8bit" and old:
        yield Found(
            "training.optimizer",
            f"adamw8bit needs compute capability {OLDEST_8BIT[0]}.{OLDEST_8BIT[1]}, and {old[0].name} has"
            f" {old[0].capability[0]}.{old[0].capability[1]}",
            set=adamw,
        )


@rule("timestep-bias-kind", "advice")
def timestep_bias_kind(job: Job, facts: Facts) -> Iterator[Found]:
    """The timestep bias suits the kind: high noise for style, balanced for a character, not low noise for motion."""
    bias, kind = job.training.timestep_bias, job.job.kind
    if kind == "style" and bias != "high_noise":
        yield Found(
            "training.timestep_bias",
            "style lives in tone and colour, which are settled in the noisy steps",
            set={"training.timestep_bias": "high_noise"},
        )
    elif kind == "motion" and bias == "low_noise":
        yield Found(
            "training.timestep_bias",
            "motion is settled in the noisy steps: leaning towards the clean ones, the camera may hardly move",
            set={"training.timestep_bias": "balanced"},
        )
    elif kind == "character" and bias == "high_noise":
        yield Found(
            "training.timestep_bias",
            "identity and detail are settled in the clean steps, which this bias takes updates from",
            set={"training.timestep_bias": "balanced"},
        )


@rule("save-every-beyond-steps", "advice")
def save_every_beyond_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """Checkpoints are written during the run, not only at its end."""
    if job.save.every > job.training.steps >= 4:
        message = (
            f"the first checkpoint would come at step {job.save.every}, after the end: a run that is killed starts"
            " over, and there is nothing to choose from"
        )
        yield Found("save.every", message, set={"save.every": max(1, job.training.steps // 4)})
