"""How often a run comes back to each clip, and how many it never sees: the arithmetic of steps, batches and epochs.

An epoch visits every item once (a clip, or each window of it, at each of its resolutions, as often as its dataset
repeats it); what an epoch consists of is `presets.clips.batches`'. Steps are divided between the experts, and so are
the visits.
"""

from collections import Counter
from math import ceil
from statistics import fmean

from msgspec import Struct

from presets.clips.batches import Group, batches_of, clip_buckets, window_starts
from presets.clips.clip_facts import DatasetFacts
from presets.job.expert_schedule import Expert, steps_of
from presets.job.schema import Job


class Visits(Struct, frozen=True, kw_only=True):
    """Of the clips of one dataset, in the mean."""

    dataset: int  # place in job.datasets
    clips: int
    each: float  # visits of a clip in the whole run, by whichever expert
    by_expert: dict[Expert, float]
    unseen: float  # share of the clips that no step comes to

    @property
    def text(self) -> str:
        """`each of 12 clips is seen 83 times`, `each of 5000 clips is seen 0.5 times: about half are never seen`"""
        which = f"each of {self.clips} clips" if self.clips != 1 else "the one clip"
        never = unseen_text([self])
        return f"{which} is seen {times(self.each)}{f': {never}' if never else ''}"


def texts_of(found: list[Visits]) -> list[str]:
    """What is to be said of each dataset; of several, with which it is."""
    if len(found) < 2:
        return [visits.text for visits in found]
    return [f"datasets[{visits.dataset}]: {visits.text}" for visits in found]


def unseen_text(found: list[Visits]) -> str:
    """`about half are never seen`, `about 4000 are never seen`, of all these datasets together; "" where all are."""
    never, clips = sum(visits.unseen * visits.clips for visits in found), sum(visits.clips for visits in found)
    if round(never) < 1:
        return ""
    if 0.45 <= never / clips <= 0.55:
        return "about half are never seen"
    return f"about {_rounded(never)} {'is' if round(never) == 1 else 'are'} never seen"


def visits_of(job: Job, datasets: list[DatasetFacts], *, steps: int | None = None) -> list[Visits]:
    """Of each dataset that has clips, in a run of `steps` steps (the job's own, when left out)."""
    items: Counter[Group] = Counter()
    each: list[tuple[int, list[int]]] = []  # dataset, items of each of its clips
    for i, (panel, found) in enumerate(zip(job.datasets, datasets, strict=False)):
        counts = []
        for clip in found.clips:
            buckets, times_each = clip_buckets(clip, panel), panel.repeats * len(window_starts(clip, panel))
            for bucket in buckets.values():
                items[Group(panel.regularization, bucket, panel.weight)] += times_each
            if buckets:
                counts.append(len(buckets) * times_each)
        if counts:
            each.append((i, counts))
    batches = batches_of(items, job.training.batch_size).total()
    epochs = (
        {expert: count * job.training.gradient_accumulation / batches for expert, count in steps_of(job, steps).items()}
        if batches
        else {}
    )
    whole = sum(epochs.values())
    return [
        Visits(
            dataset=i,
            clips=len(counts),
            each=whole * fmean(counts),
            by_expert={expert: n * fmean(counts) for expert, n in epochs.items()},
            # each of a clip's items is somewhere in the first, unfinished epoch
            unseen=fmean(max(0.0, 1 - whole) ** n for n in counts),
        )
        for i, counts in each
    ]


def times(number: float) -> str:
    """`83 times`, `2.5 times`, `0.5 times`, `once`; never 0 for what happens."""
    if number >= 9.5:
        return f"{number:.0f} times"
    text = f"{number:.1f}".removesuffix(".0") if number >= 0.1 or number == 0 else f"{number:.1g}"
    return "once" if text == "1" else f"{text} times"


def _rounded(number: float) -> int:
    """Two digits of a count that is an estimate."""
    unit = 10 ** max(0, len(str(round(number))) - 2)
    return round(number / unit) * unit


def steps_for(job: Job, rarest: float, wanted: float) -> int:
    """How many steps bring what is seen `rarest` times in the job's own steps to `wanted` times; whole hundreds."""
    return ceil(job.training.steps * wanted / rarest / 100) * 100
