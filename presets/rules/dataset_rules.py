"""Rules about the settings of a dataset. The clips in it are `clip_rules`, their captions `caption_rules`."""

from collections import Counter
from collections.abc import Iterator

from presets.clips.batches import clip_buckets
from presets.clips.captions import fill_trigger, replace_word
from presets.clips.geometry import SIDE_MULTIPLE, bucket_for
from presets.facts.facts import Facts, names, paired
from presets.job.schema import Job
from presets.rules.registry import Found, rule


@rule("latent-cache-multi-frame", "error")
def latent_cache_multi_frame(job: Job, facts: Facts) -> Iterator[Found]:
    """Latents are cached for image datasets (1 frame) only, never for clips."""
    for i, panel in enumerate(job.datasets):
        if panel.cache_latents and panel.num_frames > 1:
            path = f"datasets[{i}].cache_latents"
            yield Found(
                path,
                f"caching latents is not supported for multi-frame datasets, and this one takes {panel.num_frames}"
                " frames",
                set={path: False},
            )


@rule("nothing-to-learn", "error")
def nothing_to_learn(job: Job, facts: Facts) -> Iterator[Found]:
    """At least one dataset is not regularization."""
    if all(panel.regularization for panel in job.datasets):
        yield Found(
            "datasets[0].regularization",
            "every dataset is regularization, so there is nothing to learn",
            set={"datasets[0].regularization": False},
        )


@rule("dataset-weight-zero", "warning")
def dataset_weight_zero(job: Job, facts: Facts) -> Iterator[Found]:
    """A dataset trains the LoRA at more than zero strength."""
    for i, panel in enumerate(job.datasets):
        if panel.weight == 0:
            path = f"datasets[{i}].weight"
            yield Found(
                path,
                "at weight 0 the LoRA is off while this dataset trains, so it teaches nothing and only takes time",
                set={path: 1.0},
            )


@rule("reg-too-much", "warning")
def reg_too_much(job: Job, facts: Facts) -> Iterator[Found]:
    """Regularization clips are no more than 6 of 10 visits of an epoch, repeats counted."""
    visits = {True: 0, False: 0}
    for _, panel, found in paired(job, facts):
        visits[panel.regularization] += panel.repeats * sum(len(clip_buckets(clip, panel)) for clip in found.clips)
    if not visits[False] or visits[True] <= 0.6 * sum(visits.values()):
        return
    factor = -(-visits[True] // visits[False])
    more = {
        f"datasets[{i}].repeats": panel.repeats * factor
        for i, panel in enumerate(job.datasets)
        if not panel.regularization
    }
    message = (
        f"{visits[True]} of the {sum(visits.values())} visits of an epoch are regularization, so most steps teach"
        " nothing new"
    )
    yield Found(next(iter(more)), message, set=more)


@rule("reg-with-trigger", "warning")
def reg_with_trigger(job: Job, facts: Facts) -> Iterator[Found]:
    """The captions of regularization clips do not name the trigger word."""
    trigger = job.job.trigger.strip()
    if not trigger or job.training.unload_text_encoder:
        return
    for i, panel, found in paired(job, facts):
        named = [
            c
            for c in found.clips
            if panel.regularization
            and replace_word(fill_trigger(c.caption_or(panel.default_caption), trigger), trigger, "")[1]
        ]
        own = [c for c in named if c.has_caption]
        if own:
            message = (
                f"the captions of {names(own)} name the trigger word, which ties it to clips that show what it is not"
            )
            yield Found(
                f"datasets[{i}].path",
                message,
                fix="Write the ordinary word, such as person, in its place in these caption files",
            )
        if len(named) > len(own):
            path = f"datasets[{i}].default_caption"
            plain = replace_word(fill_trigger(panel.default_caption, trigger), trigger, job.training.dop_class)[0]
            yield Found(
                path,
                "the default caption names the trigger word, which ties it to clips that show what it is not",
                set={path: plain},
            )


@rule("flip-with-motion", "warning")
def flip_with_motion(job: Job, facts: Facts) -> Iterator[Found]:
    """Motion and character clips are not mirrored: a flip turns the motion round, and faces are not symmetric."""
    if job.job.kind == "style":
        return
    why = "turns left into right in the motion" if job.job.kind == "motion" else "swaps the sides of the character"
    for i, panel in enumerate(job.datasets):
        flipped = [axis for axis in ("flip_x", "flip_y") if getattr(panel, axis)]
        if flipped:
            paths = [f"datasets[{i}].{axis}" for axis in flipped]
            what = "turns the picture upside down" if flipped == ["flip_y"] else why
            yield Found(paths[0], f"mirroring {what}, so the LoRA learns both", set=dict.fromkeys(paths, False))


@rule("batch-multiple-buckets", "advice")
def batch_multiple_buckets(job: Job, facts: Facts) -> Iterator[Found]:
    """With a batch size above 1, every bucket holds at least one full batch."""
    size = job.training.batch_size
    for i, panel, found in paired(job, facts):
        usable = [c for c in found.clips if min(c.width, c.height) >= SIDE_MULTIPLE]
        buckets = Counter(
            bucket_for(panel.num_frames if c.kind == "video" else 1, c.height, c.width, r)
            for c in usable
            for r in panel.resolutions
        )
        thin = [b for b, n in buckets.items() if n * panel.repeats < size]
        if size > 1 and thin:
            shapes = ", ".join(f"{b.width}x{b.height}x{b.frames}" for b in sorted(thin)[:3])
            message = (
                f"only clips of one shape share a batch, and {len(thin)} of {len(buckets)} shapes have fewer than"
                f" {size} clips ({shapes})"
            )
            yield Found(
                "training.batch_size",
                message,
                fix=f"Set training.batch_size = 1, or crop the clips of datasets[{i}] to one shape",
                set={"training.batch_size": 1},
            )
            return
