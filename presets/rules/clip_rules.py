"""Rules about the clips themselves: size, cuts, number.

What a clip is was read before, by presets.clips.clip_facts; frame counts and speed are `frame_rules`.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from presets.clips.batches import clip_buckets
from presets.clips.clip_facts import ClipFacts
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
            have = "has" if len(small) == 1 else "have"
            yield Found(
                f"datasets[{i}].path",
                f"{names(small)} {have} a side under {SIDE_MULTIPLE} pixels, too small for one patch of the model",
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


@rule("clip-copies", "warning")
def clip_copies(job: Job, facts: Facts) -> Iterator[Found]:
    """No clip is there twice, as a copy of the same bytes under another name."""
    place = _places(job, facts)
    again: dict[int, list[tuple[str, str]]] = {}  # dataset -> (name in its folder, name of the clip that stays)
    for group in facts.copies:
        first, *others = [path for path in dict.fromkeys(group) if path in place] or [""]
        for path in others:
            i, name = place[path]
            again.setdefault(i, []).append((name, place[first][1]))
    for i, pairs in sorted(again.items()):
        listed = ", ".join(f"{name} ({first})" for name, first in pairs[:5])
        more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
        have = "1 clip holds" if len(pairs) == 1 else f"{len(pairs)} clips hold"
        field = f"datasets[{i}].exclude"
        yield Found(
            f"datasets[{i}].path",  # where the wizard shows the clips
            f"{have} the same bytes as another, which trains so much more often: {listed}{more}",
            fix=f"Leave the copies out (x on one in the wizard), or by {field}",
            set={field: [*job.datasets[i].exclude, *(name for name, _ in pairs)]},
        )


@rule("clips-alike", "advice")
def clips_alike(job: Job, facts: Facts) -> Iterator[Found]:
    """No two clips show nearly the same, as a clip and another export of it do."""
    place = _places(job, facts)
    copied = {path for group in facts.copies for path in group[1:]}
    groups: dict[int, list[list[str]]] = {}
    for group in facts.alike:
        those = [place[path] for path in group if path in place and path not in copied]
        if len(those) > 1:
            groups.setdefault(those[0][0], []).append([name for _, name in those])
    for i, found in sorted(groups.items()):
        listed = "; ".join(", ".join(g[:3]) + (f" and {len(g) - 3} more" if len(g) > 3 else "") for g in found[:5])
        more = f"; and {len(found) - 5} more group{'s' if len(found) > 6 else ''}" if len(found) > 5 else ""
        yield Found(
            f"datasets[{i}].path",
            f"these clips look nearly the same: {listed}{more}",
            fix=f"Compare them, and leave out what is there twice (x in the wizard, or datasets[{i}].exclude)",
        )


def _places(job: Job, facts: Facts) -> dict[str, tuple[int, str]]:
    """Path of a clip that trains -> its dataset, the first that has it, and its name in that one's folder."""
    found: dict[str, tuple[int, str]] = {}
    for i, panel, dataset in paired(job, facts):
        left_out = set(panel.exclude)
        for clip in dataset.clips:
            name = Path(os.path.relpath(clip.path, dataset.path)).as_posix()
            if name not in left_out:
                found.setdefault(clip.path, (i, name))
    return found


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
        fix = (
            "Move start images of previews into a folder named _controls in it, and images to learn from into a dataset"
            " of their own with num_frames = 1"
        )
        yield Found(f"datasets[{i}].path", f"{count}: {visits}", fix=fix)


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
    """HDR clips are brought to what an ordinary screen shows: read as ordinary video, they look washed out."""
    for i, panel, found in paired(job, facts):
        hdr = [c for c in found.clips if c.hdr]
        if hdr and panel.hdr == "plain":
            yield Found(
                f"datasets[{i}].hdr",
                f"{names(hdr)} are HDR video and train with washed-out colours",
                set={f"datasets[{i}].hdr": "tonemap"},
            )


@rule("clip-interlaced", "advice")
def clip_interlaced(job: Job, facts: Facts) -> Iterator[Found]:
    """No clip is interlaced: the halves of its frames are of two moments, and what one of them shows is made up."""
    for i, _, found in paired(job, facts):
        woven = [c for c in found.clips if c.interlaced]
        if woven:
            yield Found(
                f"datasets[{i}].path",
                f"{names(woven)} are interlaced: each frame trains as the picture of its first field, whose missing"
                " lines are filled in",
                fix="Nothing to do, but a progressive source of the same is sharper",
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


@rule("image-data-unused", "advice")
def image_data_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """What images say about their colours and which way up they are can be read."""
    for i, _, found in paired(job, facts):
        by_what: dict[str, list[ClipFacts]] = {}
        for clip in found.clips:
            if clip.unused:
                by_what.setdefault(clip.unused, []).append(clip)
        for what, clips in sorted(by_what.items()):
            yield Found(
                f"datasets[{i}].path",
                f"{names(clips)} hold{'s' if len(clips) == 1 else ''} {what}; the pixels train as they are stored",
                fix="Nothing to do where an image viewer shows them right. Else save them again as png",
            )
