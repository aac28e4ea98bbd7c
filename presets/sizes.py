"""Bytes: what an expert, its LoRA, a checkpoint and a whole run weigh. One place for this arithmetic.

Wan's block has ten linears: four of width x width in each of two attentions, and two of width x ffn (diffusers,
WanTransformerBlock). A LoRA of rank r on a linear adds r * (in + out) parameters.
"""

from msgspec import Struct

from presets.job import Job
from presets.previews import preview_size_of
from presets.stages import rank_of, trained_experts

GIB = 2**30
FILE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Optimizer state per trained parameter; prodigy keeps two fp32 tensors more than Adam's moments.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 4, "prodigy": 16}
PREVIEW_BITS_PER_PIXEL = 0.5  # of H.264, generous
POSTER_BYTES_PER_PIXEL = 2.0  # of PNG, generous
SHEET_ROW = 5 * 256 * 256 * POSTER_BYTES_PER_PIXEL  # bytes that a preview adds to its step's contact sheet


class ExpertShape(Struct, frozen=True):
    """The sizes that count; the defaults are Wan 2.2 A14B."""

    width: int = 5120
    ffn: int = 13824
    layers: int = 40

    def lora_parameters(self, rank: int) -> int:
        return self.layers * rank * (8 * (self.width + self.width) + 2 * (self.width + self.ffn))

    @property
    def parameters(self) -> int:
        """The linears of all blocks: 98% of the expert."""
        return self.layers * (8 * self.width * self.width + 2 * self.width * self.ffn)


class DiskNeed(Struct, frozen=True, kw_only=True):
    """Bytes a run will have on disk at its fullest."""

    checkpoint: int  # one of them, state only
    checkpoints: int  # all that are kept, with one more being written
    files: int  # LoRA files: one pair per kept checkpoint and the final pair
    samples: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.files + self.samples


def disk_need(job: Job, shape: ExpertShape) -> DiskNeed:
    """What the job will write. A checkpoint holds, for each trained expert, the fp32 LoRA, the optimizer's state and the average, if any."""
    parameters = shape.lora_parameters(sum(rank_of(job, e) for e in trained_experts(job)))
    checkpoint = parameters * (4 + OPTIMIZER_BYTES[job.training.optimizer] + (4 if job.training.ema else 0))
    saves = -(-job.training.steps // job.save.every)
    kept = min(job.save.keep, saves)
    rounds = (job.training.steps // job.sample.every if job.sample.every else 0) + job.sample.first + 1
    sizes = [preview_size_of(job.sample, i) for i in range(len(job.sample.prompts))]
    previews = sum(s.width * s.height * (s.frames * PREVIEW_BITS_PER_PIXEL / 8 + POSTER_BYTES_PER_PIXEL) + SHEET_ROW for s in sizes)
    return DiskNeed(
        checkpoint=checkpoint, checkpoints=checkpoint * (kept + 1), files=parameters * FILE_BYTES[job.save.dtype] * (kept + 1),
        samples=round(rounds * previews),
    )  # fmt: skip


def human(size: float) -> str:
    """Bytes for a person: `1.8 GiB`, `310 MiB`, `12 KiB`."""
    for unit, power in (("GiB", 3), ("MiB", 2)):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}" if size < 100 * 1024**power else f"{size / 1024**power:.0f} {unit}"
    return f"{size / 1024:.0f} KiB"
