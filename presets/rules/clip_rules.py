"""Rules about the clips themselves: size, cuts, number.

What a clip is was read before, by presets.clips.clip_facts; frame counts and speed are `frame_rules`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from presets.clips.batches import clip_buckets
from presets.clips.clip_statistics import SMALLEST_RESOLUTION, reach
from presets.clips.geometry import SIDE_MULTIPLE
from presets.facts.facts import Facts, names, paired, videos
from presets.job.schema import Job
from presets.recipes.recipe import load_recipe
from presets.rules.registry import Found, rule


@rule("clip-too-small", "error")
def clip_too_small(job: Job, facts: Facts) -> Iterator[Found]:
    """Both sides of every clip have at least 16 pixels, one patch of the model."""
    for i, panel, found in paired(job, facts):
        small = [c for c in found.clips if not clip_buckets(c, panel)]
        if small:
            yield Found(
                f"datasets[{i}].path",
                f"{names(small)} have a side under {SIDE_MULTIPLE} pixels, too small for one patch of the model",
                fix="Take them out of the folder",
            )


@rule("clip-below-resolution", "warning")
def clip_below_resolution(job: Job, facts: Facts) -> Iterator[Found]:
    """Every clip is as large as the smallest resolution; clips are never enlarged."""
    for i, panel, found in paired(job, facts):
        least = min(panel.resolutions)
        small = sorted(
            (c for c in found.clips if min(c.width, c.height) >= SIDE_MULTIPLE and reach(c) < least), key=reach
        )
        if not small:
            continue
        path, worst = f"datasets[{i}].resolutions", small[0]
        message = (
            f"{names(small)} reach no listed resolution (the smallest is {worst.width}x{worst.height}) and train at"
            " their own size; clips are never enlarged"
        )
        fits = reach(worst)
        if len(small) == len(found.clips) and fits >= SMALLEST_RESOLUTION:
            yield Found(path, message, fix=f"Set {path} = [{fits}], or use larger clips", set={path: [fits]})
        else:
            yield Found(path, message, fix="Replace them with larger copies, or take them out of the folder")


@rule("resolution-not-reached", "advice")
def resolution_not_reached(job: Job, facts: Facts) -> Iterator[Found]:
    """Each listed resolution makes a difference to some clip."""
    for i, panel, found in paired(job, facts):
        largest = max((reach(c) for c in found.clips), default=math.inf)
        # under each of these every clip trains at its own size
        whole = sorted(r for r in panel.resolutions if r >= largest)
        if len(whole) > 1:
            path, useless = f"datasets[{i}].resolutions", whole[1:]
            message = (
                f"no clip is larger than {whole[0]}, so {', '.join(map(str, useless))}"
                f" change{'s' if len(useless) == 1 else ''} nothing"
            )
            yield Found(
                path,
                message,
                set={path: [r for r in dict.fromkeys(panel.resolutions) if r not in useless or r == whole[0]]},
            )


@rule("scene-cuts", "warning")
def scene_cuts(job: Job, facts: Facts) -> Iterator[Found]:
    """Each clip is one shot: the model would learn to cut."""
    for i, _, found in paired(job, facts):
        cut = [(c, facts.cuts[c.path]) for c in videos(found) if facts.cuts.get(c.path)]
        if cut:
            listed = "; ".join(
                f"{Path(c.path).name} at frame {', '.join(map(str, frames[:6]))}{' ...' if len(frames) > 6 else ''}"
                for c, frames in cut[:5]
            )
            more = f"; and {len(cut) - 5} more clip{'s' if len(cut) > 6 else ''}" if len(cut) > 5 else ""
            yield Found(
                f"datasets[{i}].path",
                f"scene cuts inside clips teach the LoRA to cut: {listed}{more}",
                fix="Split these clips at their cuts, one shot each",
            )


@rule("images-among-clips", "warning")
def images_among_clips(job: Job, facts: Facts) -> Iterator[Found]:
    """A dataset of clips holds no images: each would be a visit of one frame, which is its own start image and shows no
    motion."""
    for i, panel, found in paired(job, facts):
        images, clips = [c for c in found.clips if c.kind == "image"], videos(found)
        if panel.num_frames == 1 or not images or not clips:
            continue
        of_clips = {Path(c.path).with_suffix(""): c for c in clips}
        beside = [c for c in images if Path(c.path).with_suffix("") in of_clips]
        shown = [*beside, *(c for c in images if c not in beside)]
        count = (
            f"{names(shown)} {'is a still image' if len(shown) == 1 else 'are still images'} among {len(clips)}"
            f" clip{'s' if len(clips) > 1 else ''}"
        )
        visits = (
            f"{len(images) / len(found.clips):.0%} of the visits then show one frame without motion, which is also its"
            " own start image"
        )
        pair = (
            f"; {names(beside)} also take{'s' if len(beside) == 1 else ''} the caption of the clip of the same name"
            if beside
            else ""
        )
        fix = (
            "Move start images of previews into a folder named _controls in it, and images to learn from into a dataset"
            " of their own with num_frames = 1"
        )
        yield Found(f"datasets[{i}].path", f"{count}: {visits}{pair}", fix=fix)


@rule("too-few-clips", "warning")
def too_few_clips(job: Job, facts: Facts) -> Iterator[Found]:
    """There are enough clips for the kind of LoRA: about 10 at the least."""
    known = [(i, f) for i, p, f in paired(job, facts) if not p.regularization]
    count = sum(len(f.clips) for _, f in known)
    recipe = load_recipe(job.job.kind)
    if known and 0 < count < recipe.clips.low:
        message = (
            f"{count} clip{'s' if count > 1 else ''} for a {job.job.kind} LoRA, which usually takes {recipe.clips.low}"
            f" to {recipe.clips.high}: it may only work in scenes like these"
        )
        yield Found(
            f"datasets[{known[0][0]}].path", message, fix=f"Add clips until there are {recipe.clips.low} or more"
        )


@rule("clip-hdr", "warning")
def clip_hdr(job: Job, facts: Facts) -> Iterator[Found]:
    """No clip is HDR: its colours look washed out when read as ordinary video."""
    for i, _, found in paired(job, facts):
        hdr = [c for c in found.clips if c.hdr]
        if hdr:
            yield Found(
                f"datasets[{i}].path",
                f"{names(hdr)} are HDR video and train with washed-out colours",
                fix="Export them as ordinary (SDR, BT.709) video",
            )


@rule("clip-untagged", "advice")
def clip_untagged(job: Job, facts: Facts) -> Iterator[Found]:
    """Every HD clip says that its colours are BT.709: where nothing is said, programs differ."""
    for i, _, found in paired(job, facts):
        untagged = [c for c in found.clips if c.untagged_hd]
        if untagged:
            yield Found(
                f"datasets[{i}].path",
                f"the colours of {names(untagged)} are untagged and are read as BT.709, as players do from 1280 wide or"
                " over 576 high",
                fix="Nothing to do where a player shows them right. Else export them again with their colours tagged",
            )
