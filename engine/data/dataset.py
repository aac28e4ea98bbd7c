"""What an epoch consists of: every clip, once per resolution, window and repeat, with its bucket and its caption.

How clips are found is presets.clips.clip_facts's; which item is in which batch, engine.data.sampler's.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from engine.data.masks import Mask
from presets.clips.batches import Group, caption_of, clip_buckets, window_starts
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.facts.held_out import HeldClip
from presets.job.schema import DatasetPanel, Job


class Item(Struct, frozen=True, kw_only=True):
    """One clip, or one window of it, at one resolution; one visit of it per epoch. `id` and `repeat` together are
    unique in a run.

    A field that came later has a default, which is left out of the fingerprint: older runs go on with the data they
    had.
    """

    # "0/castle/orbit.mp4@512": dataset, path in the dataset, resolution; "@512w2" for the second of several windows.
    # The same in every run over the same folder
    id: str
    repeat: int  # 0 .. dataset repeats - 1
    dataset: int  # place in job.datasets
    path: str  # absolute
    kind: Literal["video", "image"]
    bucket: Bucket
    sampling: Literal["uniform", "realtime"]
    caption: str  # resolved: own or default caption, trigger word filled in
    caption_dropout: float
    weight: float  # strength of the LoRA while this item trains
    regularization: bool
    flip_x: bool  # mirrored half of the time
    flip_y: bool
    hdr: Literal["plain", "tonemap"] = "plain"
    last_frame: float = 0.0  # how often the last frame is given, too; of a single frame never
    mask: Mask | None = None  # of its loss
    # where its real-time window begins, 0..1 of what the clip has to spare; None: drawn anew for each visit
    window_start: float | None = None

    @property
    def group(self) -> Group:
        return Group(self.regularization, self.bucket, self.weight)


def build_dataset(job: Job, base: Path, datasets: list[DatasetFacts]) -> list[Item]:
    """The items of a job, in the order of its datasets; `base` is the job file's folder.

    Resolutions that give a clip the same bucket count once. Raises UserError when there is not a single clip.
    """
    items = [
        item
        for i, (panel, found) in enumerate(zip(job.datasets, datasets, strict=True))
        for item in _of_dataset(job, i, panel, base / found.path, found.clips)
    ]
    if not items:
        raise UserError("the datasets hold no clip", where="datasets", fix="Put clips into the folders")
    return items


def build_held_out(job: Job, clips: Iterable[HeldClip]) -> list[Item]:
    """The items of the clips that are measured and never train, each once."""
    return [item for one in clips for item in _of_dataset(job, one.dataset, one.panel, Path(one.root), [one.clip])]


def dataset_fingerprint(items: list[Item]) -> dict[str, Any]:
    """What is trained on, by content as far as the order and the texts go: the visits of an epoch, captions, sizes of
    the files."""
    later = {f.name: f.default for f in msgspec.structs.fields(Item) if f.default is not msgspec.NODEFAULT}
    visits = []
    for item in items:
        visit = {**msgspec.to_builtins(item), "path": Path(item.path).stat().st_size}
        if item.mask is not None:
            visit["mask"]["path"] = Path(item.mask.path).stat().st_size
        visits.append({k: v for k, v in visit.items() if k not in later or v != later[k]})
    digest = hashlib.sha256(msgspec.json.encode(visits, order="deterministic")).hexdigest()
    return {"visits": len(visits), "sha256": digest}


def _of_dataset(job: Job, number: int, panel: DatasetPanel, root: Path, clips: list[ClipFacts]) -> list[Item]:
    return [
        Item(
            id=f"{number}/{Path(clip.path).relative_to(root).as_posix()}@{resolution}{window}",
            repeat=repeat,
            dataset=number,
            path=clip.path,
            kind=clip.kind,
            bucket=bucket,
            sampling="uniform" if panel.sampling == "uniform" else "realtime",
            caption=caption_of(job, panel, clip),
            caption_dropout=panel.caption_dropout,
            weight=panel.weight,
            regularization=panel.regularization,
            flip_x=panel.flip_x,
            flip_y=panel.flip_y,
            hdr=panel.hdr,
            last_frame=panel.last_frame if bucket.frames > 1 else 0.0,
            mask=Mask(clip.mask.path, clip.mask.kind, panel.mask_min) if clip.mask and panel.mask == "auto" else None,
            window_start=start,
        )
        for clip in clips
        for resolution, bucket in clip_buckets(clip, panel).items()
        for window, start in _windows(clip, panel)
        for repeat in range(panel.repeats)
    ]


def _windows(clip: ClipFacts, panel: DatasetPanel) -> list[tuple[str, float | None]]:
    """What the id of each window's item ends in, and where the window begins."""
    starts = window_starts(clip, panel)
    return [(f"w{i}" if len(starts) > 1 else "", start) for i, start in enumerate(starts, 1)]
