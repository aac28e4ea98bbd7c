"""Rules about the settings of a dataset, about its loss masks, and about the clips that are held out. The clips in it
are `clip_rules`, their captions `caption_rules`; how many are held out, `training_rules`."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from presets.clips.batches import clip_buckets, window_starts
from presets.clips.captions import fill_trigger, replace_word
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import square_pixels
from presets.clips.loss_masks import BLACK, WHITE
from presets.facts.facts import Facts, names, paired
from presets.facts.held_out import MOST, HeldClip, folder_panel, validates
from presets.file_names import expanded
from presets.job.schema import Job
from presets.rules.registry import RULES, Found, rule


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


@rule("exclude-unknown", "warning")
def exclude_unknown(job: Job, facts: Facts) -> Iterator[Found]:
    """What a dataset leaves out is in its folder."""
    for i, panel, found in paired(job, facts):
        if unknown := [name for name in panel.exclude if name not in found.left_out]:
            yield Found(
                f"datasets[{i}].exclude",
                f"no clip of the folder is called {', '.join(unknown)}",
                fix="Write each name as it stands in the folder, with its ending, or take it out of the list",
                set={f"datasets[{i}].exclude": [name for name in panel.exclude if name in found.left_out]},
            )


@rule("exclude-everything", "error")
def exclude_everything(job: Job, facts: Facts) -> Iterator[Found]:
    """A dataset does not leave all of its clips out."""
    for i, panel, found in paired(job, facts):
        if panel.exclude and found.left_out and not found.clips:
            yield Found(
                f"datasets[{i}].exclude",
                "every clip of the folder is left out, so nothing of it trains",
                fix="Shorten the list, or remove the dataset",
                set={f"datasets[{i}].exclude": []},
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
        visits[panel.regularization] += panel.repeats * sum(
            len(clip_buckets(clip, panel)) * len(window_starts(clip, panel)) for clip in found.clips
        )
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


@rule("last-frame-unused", "advice")
def last_frame_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """A last frame is asked for where clips have one: a single frame is its own first."""
    found = {i: d.clips for i, _, d in paired(job, facts)}
    for i, panel in enumerate(job.datasets):
        single = panel.num_frames == 1 or (found.get(i) and all(c.kind == "image" for c in found[i]))
        if panel.last_frame > 0 and single:
            path = f"datasets[{i}].last_frame"
            yield Found(path, "this dataset trains on single frames, which have no last frame to give", set={path: 0.0})


ASKEW = 0.02  # by how much the shape of a mask may differ from its clip's: as much as rounding to whole pixels makes


def _masked(
    job: Job, facts: Facts, wrong: Callable[[ClipFacts, ClipFacts], bool]
) -> Iterator[tuple[int, list[ClipFacts], list[ClipFacts]]]:
    """(dataset, clips, their masks) of those that `wrong` (clip, mask) is true of, where a dataset has any."""
    for i, panel, found in paired(job, facts):
        clips = [c for c in found.clips if panel.mask == "auto" and c.mask is not None and wrong(c, c.mask)]
        if clips:
            yield i, clips, [c.mask for c in clips if c.mask is not None]


def _shape(clip: ClipFacts) -> float:
    width, height = square_pixels(clip.width, clip.height, clip.pixel_aspect)
    return width / height


@rule("mask-shape", "error")
def mask_shape(job: Job, facts: Facts) -> Iterator[Found]:
    """A loss mask has the shape of its clip."""
    for i, clips, masks in _masked(job, facts, lambda clip, mask: abs(_shape(mask) / _shape(clip) - 1) > ASKEW):
        clip, mask = clips[0], masks[0]
        message = (
            f"{names(masks)} would lie askew: {Path(mask.path).name} is {mask.width}x{mask.height}, its clip"
            f" {clip.width}x{clip.height}"
        )
        fix = "Make each mask from its clip as it is now, at any size but of the same shape"
        yield Found(f"datasets[{i}].path", message, fix=fix)


@rule("mask-too-short", "error")
def mask_too_short(job: Job, facts: Facts) -> Iterator[Found]:
    """A video that masks the loss has a frame for each frame of its clip."""
    for i, clips, masks in _masked(job, facts, lambda clip, mask: mask.kind == "video" and mask.frames < clip.frames):
        message = (
            f"{names(masks)} end{'s' if len(masks) == 1 else ''} before the clip: {Path(masks[0].path).name} has"
            f" {masks[0].frames} frames, its clip {clips[0].frames}, and frame n of a mask is for frame n of the clip"
        )
        yield Found(f"datasets[{i}].path", message, fix="Export each mask with a frame for each frame of its clip")


@rule("mask-too-long", "warning")
def mask_too_long(job: Job, facts: Facts) -> Iterator[Found]:
    """A video that masks the loss has no more frames than its clip."""
    for i, clips, masks in _masked(job, facts, lambda clip, mask: mask.kind == "video" and mask.frames > clip.frames):
        message = (
            f"{names(masks)} go{'es' if len(masks) == 1 else ''} on after the clip: {Path(masks[0].path).name} has"
            f" {masks[0].frames} frames, its clip {clips[0].frames}; frame n of a mask is for frame n of the clip, and"
            " the rest is not used"
        )
        fix = "Export each mask with a frame for each frame of its clip, and no more"
        yield Found(f"datasets[{i}].path", message, fix=fix)


@rule("mask-all-black", "error")
def mask_all_black(job: Job, facts: Facts) -> Iterator[Found]:
    """A loss mask is white somewhere: what is black hardly trains."""
    for i, _, masks in _masked(job, facts, lambda _, mask: facts.shades.get(mask.path, (0, 255))[1] <= BLACK):
        message = f"{names(masks)} {'is' if len(masks) == 1 else 'are'} black all over, so that next to nothing trains"
        yield Found(f"datasets[{i}].path", message, fix="Paint white what is to train, or take them out of the folder")


@rule("mask-all-white", "advice")
def mask_all_white(job: Job, facts: Facts) -> Iterator[Found]:
    """A loss mask is not white all over: then it masks nothing."""
    for i, _, masks in _masked(job, facts, lambda _, mask: facts.shades.get(mask.path, (0, 255))[0] >= WHITE):
        message = (
            f"{names(masks)} {'is' if len(masks) == 1 else 'are'} white all over (transparency counts as white) and"
            f" mask{'s' if len(masks) == 1 else ''} nothing"
        )
        yield Found(f"datasets[{i}].path", message, fix="Paint black what is not to train, or take them away")


@rule("mask-by-another-name", "warning")
def mask_by_another_name(job: Job, facts: Facts) -> Iterator[Found]:
    """No clip is named as if it were the mask of another: it would train as a clip."""
    for i, _, found in paired(job, facts):
        stems = {Path(c.path).with_suffix("") for c in found.clips}
        taken = [
            c
            for c in found.clips
            for stem in [Path(c.path).with_suffix("")]
            if stem.name.lower().endswith(("_mask", "-mask")) and stem.with_name(stem.name[:-5]) in stems
        ]
        if taken:
            stem = Path(taken[0].path).stem[:-5]
            message = f"{names(taken)} train{'s' if len(taken) == 1 else ''} as a clip; a loss mask is named otherwise"
            fix = f"If it is a mask, call it {stem}.mask{Path(taken[0].path).suffix}; if not, give it another name"
            yield Found(f"datasets[{i}].path", message, fix=fix)


@rule("batch-multiple-buckets", "advice")
def batch_multiple_buckets(job: Job, facts: Facts) -> Iterator[Found]:
    """With a batch size above 1, every bucket holds at least one full batch."""
    size = job.training.batch_size
    for i, panel, found in paired(job, facts):
        buckets = Counter(
            b for c in found.clips for b in clip_buckets(c, panel).values() for _ in window_starts(c, panel)
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


FEW_HELD_OUT = 3  # clips: of fewer, a standard error says little
# errors about clips, which hold for those that do not train as well
OF_CLIPS = ("caption-or-default", "clip-too-small", "clip-too-short", "mask-shape", "mask-too-short", "mask-all-black")


@rule("validation-few-clips", "advice")
def validation_few_clips(job: Job, facts: Facts) -> Iterator[Found]:
    """At least 3 clips are held out: of fewer, the standard error says little."""
    if facts.held_out is None or not 0 < (held := len(facts.held_out.clips)) < FEW_HELD_OUT:
        return
    message = (
        "1 clip is held out, which has no standard error: nothing will be called overfitting"
        if held == 1
        else f"{held} clips are held out: of so few, only a large difference in their loss tells anything"
    )
    field = "validation.path" if job.validation.path.strip() else "validation.fraction"
    yield Found(field, message, fix=f"Hold out {FEW_HELD_OUT} or more, where there are clips to spare")


@rule("validation-many-clips", "advice")
def validation_many_clips(job: Job, facts: Facts) -> Iterator[Found]:
    """No more clips lie in the folder of held-out clips than are measured."""
    if facts.held_out is not None and facts.held_out.unused:
        message = f"{MOST} clips of the folder are measured, and {facts.held_out.unused} are not: more only take time"
        yield Found("validation.path", message, fix="Nothing to do; which ones are taken, their content says")


@rule("validation-trains", "error")
def validation_trains(job: Job, facts: Facts) -> Iterator[Found]:
    """The folder of held-out clips is no part of a dataset, and no dataset lies in it."""
    if not job.validation.path.strip():
        return
    held = (facts.base / expanded(job.validation.path)).resolve()
    for i, panel in enumerate(job.datasets):
        root = (facts.base / expanded(panel.path)).resolve()
        trains = {clip.path for found in facts.datasets[i : i + 1] for clip in found.clips}
        if held == root or (
            (held.is_relative_to(root) or root.is_relative_to(held))
            and (facts.held_out is None or any(one.clip.path in trains for one in facts.held_out.clips))
        ):
            yield Found(
                "validation.path",
                f"its clips train: {held} and the folder of datasets[{i}] lie in one another",
                fix="Move the held-out clips into a folder beside it; or hold some out with validation.fraction",
            )
            return


@rule("validation-seen", "warning")
def validation_seen(job: Job, facts: Facts) -> Iterator[Found]:
    """No held-out clip shows what a clip shows that trains."""
    held = {one.clip.path for one in facts.held_out.clips} if facts.held_out is not None else set()
    trains = {clip.path for _, _, found in paired(job, facts) for clip in found.clips} - held
    pairs = [
        f"{Path(mine).name} (like {Path(theirs).name})"
        for group in (*facts.copies, *facts.alike)
        for mine in group
        if mine in held and (theirs := next((path for path in group if path in trains), ""))
    ]
    if pairs:
        listed = ", ".join(dict.fromkeys(pairs[:5])) + (f" and {len(pairs) - 5} more" if len(pairs) > 5 else "")
        yield Found(
            "validation.path" if job.validation.path.strip() else "validation.fraction",
            f"what is held out trains all the same, in a clip that is like it: {listed}",
            fix="Leave out one of each two (datasets.exclude), or take it out of the folder",
        )


@rule("validation-unfit", "error")
def validation_unfit(job: Job, facts: Facts) -> Iterator[Found]:
    """Held-out clips are such as could train."""
    own = folder_panel(job) if validates(job) else None
    held: dict[int, list[HeldClip]] = {}
    for one in facts.held_out.clips if facts.held_out is not None else []:
        held.setdefault(one.dataset, []).append(one)
    for place, clips in held.items():
        there = DatasetFacts(path=clips[0].root, clips=[one.clip for one in clips], problems=[])
        alone = msgspec.structs.replace(job, datasets=[clips[0].panel])
        for code in OF_CLIPS:
            for found in RULES[code](alone, msgspec.structs.replace(facts, datasets=[there], held_out=None)):
                field = "validation.path" if own else found.field.replace("datasets[0]", f"datasets[{place}]")
                yield Found(
                    field,
                    f"held-out clips are measured as the others train, and {found.message}",
                    fix="Mend or replace these clips, or leave them out",
                )
