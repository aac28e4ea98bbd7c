"""Rules about the training panel: text and DOP, steps, learning rate, optimizer; and about how much is held out to
measure a loss, and when.

The experts' own rates and shares are `expert_rules`; which clips are held out, `dataset_rules`.
"""

from collections.abc import Iterator

from presets.facts.facts import Facts, paired, used_gpus
from presets.facts.held_out import HeldOut, candidates, validates, wanted
from presets.facts.visits import steps_for, times, visits_of
from presets.job.expert_schedule import PANEL, Expert, expert_at, panel_of, trained_experts
from presets.job.schema import Job
from presets.recipes.recipe import load_recipe
from presets.rules.registry import Found, rule

OVERFIT_STEPS = 4000
LARGE_SET = 60  # clips: with that many, long runs do not overfit so soon
LEAST_VISITS, FEW_VISITS = 1, 5  # of a clip by an expert, in the mean
DOP_CLASS = {"motion": "person", "style": "scene", "character": "person"}
HALF = 0.5  # of the clips: a larger part is no longer held out, the rest is
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
    lr = max(learning_rates(job).values())
    for i, table in enumerate(job.target.layers):
        if job.training.optimizer != "prodigy" and lr < 1e-3 <= lr * (table.lr_factor or 1):
            path = f"target.layers[{i}].lr_factor"
            message = f"{table.match} would learn at {lr * (table.lr_factor or 1):g}, ten times the usual or more"
            yield Found(path, f"{message}: the LoRA is likely to break the picture", set={path: 1.0})


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


def _seldom(job: Job, facts: Facts, *, low: float, high: float) -> Iterator[Found]:
    """Datasets to learn from whose clips an expert sees at least `low` and less than `high` times."""
    if facts.tiny:  # a demo or a test
        return
    for seen in visits_of(job, facts.datasets):
        experts = {expert: n for expert, n in seen.by_expert.items() if n}
        if job.datasets[seen.dataset].regularization or not experts:
            continue
        expert = min(experts, key=lambda e: experts[e])
        if not low <= (rarest := experts[expert]) < high:
            continue
        apart = f"; by the {expert.replace('_', ' ')} expert {times(rarest)}" if len(seen.by_expert) > 1 else ""
        where = f"datasets[{seen.dataset}]: " if len(job.datasets) > 1 else ""
        keep = max(1, int(seen.clips * rarest / high))
        yield Found(
            "training.steps",
            f"{where}in {job.training.steps} steps, {seen.text}{apart}",
            fix=(
                f"For {times(high)} by each expert, set training.steps = {steps_for(job, rarest, high)}, or keep the"
                f" {keep} best clips"
            ),
        )


@rule("clips-hardly-seen", "warning")
def clips_hardly_seen(job: Job, facts: Facts) -> Iterator[Found]:
    """Each expert sees each clip at least once in the run."""
    yield from _seldom(job, facts, low=0, high=LEAST_VISITS)


@rule("clips-seldom-seen", "advice")
def clips_seldom_seen(job: Job, facts: Facts) -> Iterator[Found]:
    """Each expert comes back to each clip, at least 5 times in the run: seen less often, little stays of a single
    clip."""
    yield from _seldom(job, facts, low=LEAST_VISITS, high=FEW_VISITS)


@rule("save-every-beyond-steps", "advice")
def save_every_beyond_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """Checkpoints are written during the run, not only at its end."""
    if job.save.every > job.training.steps >= 4:
        message = (
            f"the first checkpoint would come at step {job.save.every}, after the end: a run that is killed starts"
            " over, and there is nothing to choose from"
        )
        yield Found("save.every", message, set={"save.every": max(1, job.training.steps // 4)})


def _clips(job: Job, facts: Facts) -> int:
    """How many a fraction is of."""
    held = facts.held_out.clips if facts.held_out is not None and not job.validation.path.strip() else []
    return len(candidates(job, facts.datasets)) + len(held)


def _fitting(clips: int) -> float:
    """A fraction that holds out at least one of so many clips; 0 where that would be half of them."""
    least = max(0.1, -(-100 // clips) / 100) if clips else 0.1
    return least if least < HALF else 0.0


@rule("validation-twice", "error")
def validation_twice(job: Job, facts: Facts) -> Iterator[Found]:
    """Clips are held out of the datasets, or lie in a folder of their own, not both."""
    if job.validation.fraction > 0 and job.validation.path.strip():
        message = "held-out clips lie in validation.path, so none has to be taken out of training"
        yield Found("validation.fraction", message, set={"validation.fraction": 0.0})


@rule("validation-half", "error")
def validation_half(job: Job, facts: Facts) -> Iterator[Found]:
    """Less than half of the clips are held out."""
    if job.validation.fraction >= HALF:
        message = f"{job.validation.fraction:.0%} of the clips would be held out, and the rest left to learn from"
        yield Found("validation.fraction", message, set={"validation.fraction": _fitting(_clips(job, facts))})


@rule("validation-nothing", "error")
def validation_nothing(job: Job, facts: Facts) -> Iterator[Found]:
    """The fraction that is held out is at least one clip."""
    clips, fraction = _clips(job, facts), job.validation.fraction
    if 0 < fraction < HALF and clips and not wanted(fraction, clips):
        message = f"{fraction:.3g} of {clips} clip{'s' if clips > 1 else ''} is less than one clip: none is held out"
        yield Found("validation.fraction", message, set={"validation.fraction": _fitting(clips)})
    elif 0 < fraction < HALF and clips and facts.held_out == HeldOut() and not job.validation.path:
        message = f"none of the {clips} clips can be held out: the copies of each are all that a dataset has"
        yield Found("validation.fraction", message, set={"validation.fraction": 0.0})


@rule("validation-few-left", "warning")
def validation_few_left(job: Job, facts: Facts) -> Iterator[Found]:
    """What is held out leaves enough clips for the kind of LoRA."""
    clips, low = _clips(job, facts), load_recipe(job.job.kind).clips.low
    held = wanted(job.validation.fraction, clips) if job.validation.fraction < HALF else 0
    if held and clips - held < low:
        message = (
            f"{held} of {clips} clips would not train, and the {clips - held} that are left are few: a"
            f" {job.job.kind} LoRA usually takes {low} or more"
        )
        yield Found(
            "validation.fraction",
            message,
            fix="Set validation.fraction = 0, or put other clips into a folder and name it in validation.path",
            set={"validation.fraction": 0.0},
        )


@rule("validation-beyond-steps", "error")
def validation_beyond_steps(job: Job, facts: Facts) -> Iterator[Found]:
    """The held-out loss is measured during the run, not only before and after it."""
    if validates(job) and job.validation.every > job.training.steps:
        message = (
            f"the held-out loss would first be measured after step {job.validation.every}, and the run has"
            f" {job.training.steps}: nothing would tell its checkpoints apart"
        )
        yield Found("validation.every", message, set={"validation.every": max(1, job.training.steps // 4)})


@rule("validation-without-checkpoint", "advice")
def validation_without_checkpoint(job: Job, facts: Facts) -> Iterator[Found]:
    """The held-out loss is measured where there is a checkpoint, so that the best one can be had."""
    every, save, steps = job.validation.every, job.save.every, job.training.steps
    if validates(job) and every % save and every < steps and save < steps:
        message = (
            f"the loss measured every {every} steps is mostly of steps without a checkpoint, which come every {save}"
        )
        yield Found("validation.every", message, set={"validation.every": max(1, every // save) * save})


@rule("stop-without-validation", "error")
def stop_without_validation(job: Job, facts: Facts) -> Iterator[Found]:
    """A run that ends when nothing gets better holds clips out to tell by."""
    if job.validation.stop_when != "never" and not validates(job):
        yield Found(
            "validation.stop_when",
            "no clips are held out, so nobody could tell whether anything gets better",
            fix='Hold some out with validation.fraction or validation.path, or set validation.stop_when = "never"',
            set={"validation.stop_when": "never"},
        )


@rule("stop-never-comes", "warning")
def stop_never_comes(job: Job, facts: Facts) -> Iterator[Found]:
    """A run that ends when nothing gets better is measured often enough to end before its last step."""
    panel, steps = job.validation, job.training.steps
    if panel.stop_when == "never" or not validates(job) or panel.patience * panel.every < steps:
        return
    most = (steps - 1) // panel.every
    message = (
        f"{panel.patience} measurements without a better one, every {panel.every} steps, take longer than the"
        f" {steps} steps of the run"
    )
    if most >= 1:
        yield Found("validation.patience", message, set={"validation.patience": most})
    else:
        yield Found("validation.patience", message, fix="Set a smaller validation.every")
