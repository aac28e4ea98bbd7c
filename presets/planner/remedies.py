"""What a user can change when nothing fits: each change of the job that lowers the smallest need, the most worthwhile
first."""

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from presets.facts.facts import Facts
from presets.job.expert_schedule import high_ranks
from presets.job.schema import Job
from presets.job.toml_file import get_value, with_value
from presets.planner.choose import DoesNotFit, choose_for
from presets.planner.workload import Hardware

SMALL_PREVIEW, SMALL_BUCKET, FEW_FRAMES, USUAL_RANK = 512, 512, 21, 16
WORTH = 64 * 2**20  # bytes: a change that saves less is not worth making


class Remedy(Struct, frozen=True, kw_only=True):
    """A change of the job, as new field values, and what the job needs after it (bytes): of a plan that fits, or of the
    smallest."""

    set: dict[str, Any]
    need_vram: int
    need_ram: int
    fits: bool


def remedies(job: Job, facts: Facts, hardware: Hardware, *, short: Literal["vram", "ram"]) -> list[Remedy]:
    """Changes that each by itself lower what is short: first those that suffice, the gentlest in front; then by what
    they save."""
    now = _after(job, facts, hardware, {})
    found = [_after(job, facts, hardware, change) for change in _changes(job, facts)]

    def need(remedy: Remedy) -> int:
        return remedy.need_vram if short == "vram" else remedy.need_ram

    useful = [r for r in found if r.fits or need(r) <= need(now) - WORTH]
    return [r for r in useful if r.fits] + sorted((r for r in useful if not r.fits), key=need)


def _after(job: Job, facts: Facts, hardware: Hardware, change: dict[str, Any]) -> Remedy:
    for path, value in change.items():
        job = with_value(job, path, value)
    try:
        choice = choose_for(job, facts, hardware)
        return Remedy(set=change, need_vram=choice.prediction.need_vram, need_ram=choice.prediction.ram, fits=True)
    except DoesNotFit as e:
        return Remedy(set=change, need_vram=e.smallest.need_vram, need_ram=e.smallest.ram, fits=False)


def _changes(job: Job, facts: Facts) -> Iterator[dict[str, Any]]:
    """Every change that is not made yet, from what costs nothing to what costs most."""
    if switched_off := {
        f"model.{name}": "auto" for name in ("low_vram", "layer_offloading") if getattr(job.model, name) is False
    }:
        yield switched_off
    if job.quantization.text_encoder == "none":
        yield {"quantization.text_encoder": "float8"}
    if job.quantization.transformer not in ("auto", "qint4", "qint4+ara"):
        yield {"quantization.transformer": "auto"}
    if job.training.deterministic:
        yield {"training.deterministic": False}
    if job.training.optimizer in ("adamw", "prodigy") and "bitsandbytes" in facts.packages:
        yield {"training.optimizer": "adamw8bit"}
    if job.training.ema:
        yield {"training.ema": False}
    # a prompt's own values are None where it has none
    panels = ["sample", *(f"sample.prompts[{i}]" for i in range(len(job.sample.prompts)))]
    small = {
        f"{panel}.{side}": SMALL_PREVIEW
        for panel in panels
        for side in ("width", "height")
        if (get_value(job, f"{panel}.{side}") or 0) > SMALL_PREVIEW
    }
    if job.sample.prompts and small:
        yield small
    if job.training.batch_size > 1:
        yield {"training.batch_size": 1}
    large = {
        f"datasets[{i}].resolutions": [r for r in d.resolutions if r <= SMALL_BUCKET] or [SMALL_BUCKET]
        for i, d in enumerate(job.datasets)
        if max(d.resolutions) > SMALL_BUCKET
    }
    if large:
        yield large
    long = {f"datasets[{i}].num_frames": FEW_FRAMES for i, d in enumerate(job.datasets) if d.num_frames > FEW_FRAMES}
    if job.sample.prompts:
        long |= {
            f"{panel}.num_frames": FEW_FRAMES
            for panel in panels
            if (get_value(job, f"{panel}.num_frames") or 0) > FEW_FRAMES
        }
    if long:
        yield long
    if high := high_ranks(job, USUAL_RANK):
        yield dict.fromkeys(high, USUAL_RANK)
