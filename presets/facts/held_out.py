"""Which clips are held out of training, to measure the loss on what the LoRA has not seen: a part of the datasets'
clips, chosen by what their files hold, or the clips of a folder of their own.

How they are measured is engine.training.validation's.
"""

import hashlib
import math
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct, field

from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.findings import Finding
from presets.job.schema import DatasetPanel, Job

MOST = 32  # clips: more only take time
SAMPLED = 2**16  # bytes read at the beginning, in the middle and at the end of a file


class HeldClip(Struct, frozen=True, kw_only=True):
    """One of them, and how it is taken: by the settings of its dataset, or of the first for the folder of their own."""

    dataset: int  # place in job.datasets; behind the last for the folder of their own
    panel: DatasetPanel
    root: str  # the folder that it lies in, absolute
    clip: ClipFacts


class HeldOut(Struct, kw_only=True):
    clips: list[HeldClip] = field(default_factory=list)
    unused: int = 0  # clips of the folder beyond MOST
    problems: list[Finding] = field(default_factory=list)  # of the folder


def validates(job: Job) -> bool:
    """Whether the job measures a held-out loss."""
    return job.validation.fraction > 0 or bool(job.validation.path.strip())


def folder_panel(job: Job) -> DatasetPanel | None:
    """The folder of held-out clips as a dataset; None where there is none."""
    if not job.validation.path.strip():
        return None
    first = next((panel for panel in job.datasets if not panel.regularization), job.datasets[0])
    return msgspec.structs.replace(
        first, path=job.validation.path, exclude=[], repeats=1, regularization=False, cache_latents=False
    )


def wanted(fraction: float, clips: int) -> int:
    """How many of so many clips a fraction holds out: whole ones, MOST at most."""
    return min(MOST, math.floor(fraction * clips + 1e-9))


def candidates(job: Job, datasets: list[DatasetFacts]) -> list[tuple[int, ClipFacts]]:
    """The clips that a fraction is of, each with the place of its dataset."""
    return [
        (i, clip)
        for i, (panel, found) in enumerate(zip(job.datasets, datasets, strict=False))
        if not panel.regularization
        for clip in found.clips
    ]


def hold_out(
    job: Job, datasets: list[DatasetFacts], folder: DatasetFacts | None = None
) -> tuple[list[DatasetFacts], HeldOut | None]:
    """The datasets without what is held out, and that; `folder`: the clips of the folder of their own.

    Of a fraction those come first whose content has the lowest digest: the same ones on each machine, in each run and
    whatever else changes. Files of the same content go together, MOST at most, and no dataset loses its last clip.
    """
    if not validates(job):
        return datasets, None
    panel = folder_panel(job)
    if panel is not None:
        if folder is None:
            return datasets, None
        clips = sorted(folder.clips, key=lambda clip: content(clip.path))[:MOST]
        return datasets, HeldOut(
            clips=[HeldClip(dataset=len(job.datasets), panel=panel, root=folder.path, clip=c) for c in clips],
            unused=len(folder.clips) - len(clips),
            problems=[_of_validation(problem, len(job.datasets)) for problem in folder.problems],
        )
    there = candidates(job, datasets)
    groups: dict[bytes, list[tuple[int, ClipFacts]]] = defaultdict(list)
    for i, clip in there:
        groups[content(clip.path)].append((i, clip))
    left, taken = {i: len(found.clips) for i, found in enumerate(datasets)}, list[tuple[int, ClipFacts]]()
    for _, group in sorted(groups.items()):
        if len(taken) >= wanted(job.validation.fraction, len(there)):
            break
        after = {i: left[i] - sum(i == other for other, _ in group) for i in left}
        if all(after[i] for i, _ in group) and len(taken) + len(group) <= MOST:
            left, taken = after, taken + group
    gone = {(i, clip.path) for i, clip in taken}
    train = [
        msgspec.structs.replace(found, clips=[c for c in found.clips if (i, c.path) not in gone])
        for i, found in enumerate(datasets)
    ]
    return train, HeldOut(
        clips=[
            HeldClip(
                dataset=i,
                panel=msgspec.structs.replace(job.datasets[i], repeats=1),
                root=datasets[i].path,
                clip=clip,
            )
            for i, clip in taken
        ]
    )


def with_held_out(
    job: Job, datasets: list[DatasetFacts], held_out: HeldOut | None
) -> tuple[Job, list[DatasetFacts], set[tuple[int, str]]]:
    """Job and datasets as if nothing were held out, with the folder of held-out clips as a dataset behind the others;
    and what is: (place of its dataset, path)."""
    if held_out is None or not held_out.clips:
        return job, datasets, set()
    first = held_out.clips[0]
    if first.dataset == len(job.datasets):
        job = msgspec.structs.replace(job, datasets=[*job.datasets, first.panel])
        datasets = [*datasets, DatasetFacts(path=first.root, clips=[], problems=[])]
    return (
        job,
        [
            msgspec.structs.replace(
                found,
                clips=sorted(
                    [*found.clips, *(one.clip for one in held_out.clips if one.dataset == i)], key=lambda c: c.path
                ),
            )
            for i, found in enumerate(datasets)
        ],
        {(one.dataset, one.clip.path) for one in held_out.clips},
    )


def content(path: str) -> bytes:
    """A digest of a file's size and of samples of its bytes; of one that cannot be read, of its name."""
    try:
        status = Path(path).stat()
        return _content(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:  # who looks at the clip says so
        return hashlib.blake2b(Path(path).name.encode(), digest_size=16).digest()


@lru_cache(maxsize=50_000)
def _content(path: str, inode: int, size: int, changed: int) -> bytes:
    made = hashlib.blake2b(str(size).encode(), digest_size=16)
    with Path(path).open("rb") as f:
        for at in sorted({0, max(0, (size - SAMPLED) // 2), max(0, size - SAMPLED)}):
            f.seek(at)
            made.update(f.read(SAMPLED))
    return made.digest()


def _of_validation(problem: Finding, place: int) -> Finding:
    """A finding about the folder, which was looked at as if it were one more dataset."""
    named = problem.field.startswith(f"datasets[{place}].")
    return msgspec.structs.replace(problem, field="validation.path") if named else problem
