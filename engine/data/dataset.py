"""What an epoch consists of: every clip, once per resolution and repeat, with its bucket and its caption.

How clips are found is presets.clips.clip_facts's; which item is in which batch, engine.data.sampler's.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from presets.clips.batches import Group, clip_buckets
from presets.clips.captions import fill_trigger
from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job


class Item(Struct, frozen=True, kw_only=True):
    """One clip at one resolution; one visit of it per epoch. `id` and `repeat` together are unique in a run."""

    # "0/castle/orbit.mp4@512": dataset, path in the dataset, resolution; the same in every run over the same folder
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


def dataset_fingerprint(items: list[Item]) -> dict[str, Any]:
    """What is trained on, by content as far as the order and the texts go: the visits of an epoch, captions, sizes of
    the files."""
    visits = [{**msgspec.to_builtins(item), "path": Path(item.path).stat().st_size} for item in items]
    digest = hashlib.sha256(msgspec.json.encode(visits, order="deterministic")).hexdigest()
    return {"visits": len(visits), "sha256": digest}


def _of_dataset(job: Job, number: int, panel: DatasetPanel, root: Path, clips: list[ClipFacts]) -> list[Item]:
    return [
        Item(
            id=f"{number}/{Path(clip.path).relative_to(root).as_posix()}@{resolution}",
            repeat=repeat,
            dataset=number,
            path=clip.path,
            kind=clip.kind,
            bucket=bucket,
            sampling=panel.sampling,
            caption=caption_of(job, panel, clip),
            caption_dropout=panel.caption_dropout,
            weight=panel.weight,
            regularization=panel.regularization,
            flip_x=panel.flip_x,
            flip_y=panel.flip_y,
        )
        for clip in clips
        for resolution, bucket in clip_buckets(clip, panel).items()
        for repeat in range(panel.repeats)
    ]


def caption_of(job: Job, panel: DatasetPanel, clip: ClipFacts) -> str:
    """What a clip trains with: its own caption or the default one; the trigger alone when the text encoder is to be
    unloaded.

    A regularization clip shows what the trigger is not, so it then trains with the empty caption.
    """
    if job.training.unload_text_encoder:
        return "" if panel.regularization else job.job.trigger
    return fill_trigger(clip.caption_or(panel.default_caption), job.job.trigger)
