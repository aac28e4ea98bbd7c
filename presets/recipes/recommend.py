"""From a kind, a machine and clips to a complete job, with a reason for every value that is not the plain default."""

import hashlib
import math
from collections import Counter
from statistics import median
from typing import Any

from msgspec import Struct

from presets.clips.batches import FEWEST, too_short
from presets.clips.captions import TRIGGER_MARK
from presets.clips.clip_facts import ClipFacts
from presets.clips.clip_statistics import SMALLEST_RESOLUTION, SPEED_LIMIT, reach, true_speed_frames, usual_caption
from presets.clips.geometry import SIDE_MULTIPLE, WAN_FPS, Bucket, bucket_for, nearest_frame_counts, uniform_speed
from presets.job.schema import DatasetPanel, Job, JobPanel, Kind
from presets.job.toml_file import job_from_dict, job_to_dict
from presets.machine.gpus import Gpu
from presets.machine.machine import Machine
from presets.planner.sizes import GIB
from presets.recipes.recipe import Recipe, Tier, load_recipe, tier_for

BASE_TIER_GIB = 24.0  # where the guide starts, and what is assumed without a GPU to ask
LARGEST_PREVIEW = 768
HELD_OUT = 4  # clips: fewer say little by their standard error; more take time, 1% to 5% of a run as it is


class Recommendation(Struct, frozen=True, kw_only=True):
    """A complete job; `reasons` says why for every field that is not the plain default, and for some that stay so on
    purpose."""

    job: Job
    reasons: dict[str, str]  # field path -> reason
    tier: str  # the VRAM tier it was made for, "24 to 40 GB"


class _Draft:
    """The job being put together, as plain tables, with its reasons."""

    def __init__(self, job: Job) -> None:
        self.tables = job_to_dict(job)
        self.reasons: dict[str, str] = {}

    def set(self, path: str, value: Any, reason: str) -> None:
        panel, _, name = path.rpartition(".")
        table = self.tables["datasets"][0] if panel == "datasets[0]" else self.tables[panel]
        table[name] = value
        self.reasons[path] = reason


def plain_job(kind: Kind, name: str, clips_path: str) -> Job:
    """The job with nothing but its required fields: what `reasons` compares with."""
    return Job(job=JobPanel(name=name, kind=kind), datasets=[DatasetPanel(path=clips_path)])


def recommend(kind: Kind, machine: Machine, clips: list[ClipFacts], *, name: str, clips_path: str) -> Recommendation:
    """The best job the guide, the machine and the clips allow. Without clips, the starting points of the guide.

    `name` must be a valid training name (JobError otherwise); `clips_path` is written as it is, relative to the job
    file.
    """
    recipe = load_recipe(kind)
    gpu = _choose_gpu(machine)
    tier = tier_for(gpu.vram_total / GIB if gpu else BASE_TIER_GIB)
    draft = _Draft(plain_job(kind, name, clips_path))
    if gpu and gpu.index != 0:
        draft.set("job.gpus", [gpu.index], f"GPU {gpu.index} has the most free memory")
    for path, advised in {**recipe.values, **tier.values}.items():
        draft.set(path, advised.value, advised.reason)
    _steps(draft, recipe, clips)
    _text(draft, recipe, clips, name)
    _frames(draft, recipe, tier, clips)
    _resolutions(draft, tier, clips)
    _previews(draft, clips)
    _validation(draft, recipe, clips)
    return Recommendation(job=job_from_dict(draft.tables), reasons=draft.reasons, tier=tier.name)


def _choose_gpu(machine: Machine) -> Gpu | None:
    """The GPU with the most free memory; the first of equals."""
    return max((g for g in machine.gpus if not g.error), key=lambda g: (g.vram_free, -g.index), default=None)


def _steps(draft: _Draft, recipe: Recipe, clips: list[ClipFacts]) -> None:
    """Between the recipe's ends by the number of clips, in whole multiples of save.every."""
    low, high = recipe.clips.low, recipe.clips.high
    share = min(1.0, max(0.0, (len(clips) - low) / (high - low))) if clips else 0.5
    every = draft.tables["save"]["every"]
    steps = round((recipe.steps.low + share * (recipe.steps.high - recipe.steps.low)) / every) * every
    given = f"for {len(clips)} clip{'s' if len(clips) != 1 else ''}" if clips else "to begin with"
    draft.set("training.steps", steps, f"{recipe.steps.low} to {recipe.steps.high} suit this kind; {steps} {given}")


def _text(draft: _Draft, recipe: Recipe, clips: list[ClipFacts], name: str) -> None:
    marked = any(TRIGGER_MARK in c.caption for c in clips)
    if TRIGGER_MARK in recipe.default_caption or marked:
        found = _shared_first_word(clips)
        why = (
            "The word that your captions begin with"
            if found
            else "A made-up word that means nothing to the base model yet; put it, or [trigger], into every caption"
        )
        draft.set("job.trigger", found or made_up_word(name), why)
    default = recipe.default_caption or usual_caption(clips)
    if default and (not clips or any(not c.has_caption for c in clips)):
        why = (
            "For clips without a caption of their own; make it say more"
            if recipe.default_caption
            else "What your captions say most often, for the clips without one"
        )
        draft.set("datasets[0].default_caption", default, why)


def _shared_first_word(clips: list[ClipFacts]) -> str:
    """The single word before the first comma in nearly all captions (`frung, young woman, ...`): a trigger word already
    in use."""
    captioned = [c.caption for c in clips if c.caption]
    firsts = Counter(c.partition(",")[0].strip() for c in captioned if "," in c)
    if not firsts:
        return ""
    word, count = firsts.most_common(1)[0]
    return (
        word
        if len(captioned) > 1 and count >= 0.8 * len(captioned) and word.isidentifier() and word != "trigger"
        else ""
    )


def made_up_word(name: str) -> str:
    """A pronounceable word that is always the same for a name and, with luck, none of any language."""
    digest = hashlib.blake2b(name.encode(), digest_size=6).digest()
    onsets, vowels, codas = (
        ["v", "z", "kr", "dr", "fr", "gl", "sk", "tw", "pl", "sn", "br", "j"],
        "aeiou",
        ["x", "k", "ng", "zz", "lm", "rv", "pt", "sk"],
    )
    return (
        onsets[digest[0] % 12]
        + vowels[digest[1] % 5]
        + codas[digest[2] % 8]
        + vowels[digest[3] % 5]
        + codas[digest[4] % 8]
    )


def _frames(draft: _Draft, recipe: Recipe, tier: Tier, clips: list[ClipFacts]) -> None:
    """Frames and sampling. Uniform sampling takes the count nearest true speed that the shortest clip has; see also
    recipe.sampling."""
    moving = [c for c in clips if c.kind == "video"]
    if clips and not moving:
        draft.set("datasets[0].num_frames", 1, "All of these are still images")
        return
    if not moving:
        draft.set(
            "datasets[0].num_frames",
            tier.start_frames,
            f"Where to begin with {tier.name}; more frames cost time and memory",
        )
        return
    # what shows no motion at any number of frames has to go, see clip-too-short, and says nothing about the others
    all_moving = [c for c in moving if c.frames >= FEWEST] or moving
    moving = _without_outliers(all_moving)
    fewest, shortest, middle = (
        min(c.frames for c in moving),
        min(c.duration for c in moving),
        median(c.duration for c in moving),
    )
    frames = min(
        true_speed_frames(moving, low=min(tier.frames.low, nearest_frame_counts(fewest)[0]), high=tier.frames.high),
        nearest_frame_counts(fewest)[0],
    )
    speed = uniform_speed(middle, frames)
    window = min(tier.start_frames, nearest_frame_counts(max(1, int(shortest * WAN_FPS)))[0])
    if (
        recipe.sampling == "realtime-if-long-enough"
        and not 1 / SPEED_LIMIT <= speed <= SPEED_LIMIT
        and window >= min(tier.frames.low, 17)
    ):
        draft.set(
            "datasets[0].sampling",
            "realtime",
            f"{frames} frames spread over {middle:.1f} s would play {speed:.1f}x too fast; a window in real time keeps"
            " the speed",
        )
        frames, why = window, f"A window of {window / WAN_FPS:.1f} s out of each clip"
    elif frames < tier.start_frames and frames == nearest_frame_counts(fewest)[0]:
        why = f"The shortest clip has {fewest} frames"
    else:
        why = f"Of what suits {tier.name}, nearest to true speed: your clips of {middle:.1f} s play at {speed:.2f}x" + (
            "; 41 would take half the time of 81" if frames == 81 else ""
        )
    draft.set("datasets[0].num_frames", frames, why)
    panel = job_from_dict(draft.tables).datasets[0]
    if short := sum(too_short(c, panel) for c in all_moving):
        draft.set(
            "datasets[0].short_clips",
            "shorten",
            f"{short} of your {len(all_moving)} clips {'is' if short == 1 else 'are'} much shorter than the others,"
            " which would all have to do with as few frames",
        )


def _without_outliers(clips: list[ClipFacts]) -> list[ClipFacts]:
    """Without the shortest tenth, where the others have at least twice the frames of the shortest."""
    rest = sorted(clips, key=lambda c: c.frames)[len(clips) // 10 :]
    shortest = min(c.frames for c in clips)
    return rest if rest[0].frames >= 2 * shortest else clips


def _resolutions(draft: _Draft, tier: Tier, clips: list[ClipFacts]) -> None:
    """Those of the tier that half of the clips fill; for smaller clips, what the smallest has."""
    reached = [r for r in tier.resolutions if not clips or median(reach(c) for c in clips) >= r]
    if reached == tier.resolutions:
        draft.set("datasets[0].resolutions", reached, tier.reason)
    elif reached:
        draft.set("datasets[0].resolutions", reached, "Your clips have no more than that, and clips are never enlarged")
    else:
        smallest = min(reach(c) for c in clips)
        draft.set(
            "datasets[0].resolutions",
            [max(SMALLEST_RESOLUTION, smallest)],
            "Your clips are smaller than 512, and clips are never enlarged",
        )


def _previews(draft: _Draft, clips: list[ClipFacts]) -> None:
    """As many frames as training; the shape that most clips train at, at the largest training resolution up to 768."""
    dataset = draft.tables["datasets"][0]
    if dataset["num_frames"] > 1:
        draft.set(
            "sample.num_frames", dataset["num_frames"], "The same as in training, so that the speed can be judged"
        )
    draft.set("sample.every", draft.tables["save"]["every"], "A set of previews for each checkpoint")
    usable = [c for c in clips if min(c.width, c.height) >= SIDE_MULTIPLE]
    if usable:
        resolution = min(LARGEST_PREVIEW, max(dataset["resolutions"]))
        shapes = Counter(bucket_for(1, c.height, c.width, resolution) for c in usable)
        usual: Bucket = max(shapes, key=lambda b: (shapes[b], b))
        for side in ("width", "height"):
            draft.set(
                f"sample.{side}",
                getattr(usual, side),
                f"The size that most of your clips train at: {usual.width}x{usual.height}",
            )


def _validation(draft: _Draft, recipe: Recipe, clips: list[ClipFacts]) -> None:
    """Held out are clips beyond those that the kind takes: where every clip counts, all of them train."""
    enough = recipe.clips.high + HELD_OUT
    if len(clips) < enough:
        every = f"All of your {len(clips)} clips train" if len(clips) > 1 else "Every clip trains"
        why = (
            f"{every}: from {enough} on, {HELD_OUT} are held out, to tell by their loss which checkpoint is best."
            " validation.path does that with a folder of other clips"
        )
        draft.set("validation.fraction", 0.0, why)
        return
    # rounded up, to three digits
    unit = 10.0 ** (math.floor(math.log10(HELD_OUT / len(clips))) - 2)
    fraction = round(math.ceil(HELD_OUT / len(clips) / unit - 1e-9) * unit, 12)
    why = (
        f"{HELD_OUT} of your {len(clips)} clips do not train: by their loss you see which checkpoint is best, and the"
        " others are as many as this kind takes"
    )
    draft.set("validation.fraction", fraction, why)
