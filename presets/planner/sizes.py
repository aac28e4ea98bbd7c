"""Bytes: what an expert, its LoRA, a checkpoint and a whole run weigh. One place for this arithmetic.

Wan's block has ten linears: four of width x width in each of two attentions, and two of width x ffn (diffusers,
WanTransformerBlock). A LoRA of rank r on a linear adds r * (in + out) parameters.

What a plan takes while it trains is presets.planner.memory_costs's.
"""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, structs

from presets.errors import UserError
from presets.facts.held_out import validates
from presets.job.expert_schedule import Expert, rank_of, trained_experts
from presets.job.lora_layers import WAN_NAMES, TrainedLayer, block_layouts, lora_layers
from presets.job.preview_settings import preview_sets, preview_size_of
from presets.job.schema import Job

GIB = 2**30
FILE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Optimizer state in memory per trained parameter, at most; prodigy keeps two fp32 tensors more than Adam's moments. On
# disk: state_bytes.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 4, "prodigy": 16}
PREVIEW_BITS_PER_PIXEL = 0.5  # of H.264, generous
POSTER_BYTES_PER_PIXEL = 2.0  # of PNG, generous
SHEET_ROW = 5 * 256 * 256 * POSTER_BYTES_PER_PIXEL  # bytes that a preview adds to its step's contact sheet


# bitsandbytes: values that share a scale, and the smallest tensor that is kept in 8 bits
BLOCK_8BIT, LEAST_8BIT = 256, 4096


def state_bytes(optimizer: str, rows: int, columns: int, *, zero: bool) -> int:
    """What an optimizer keeps for one fp32 tensor of a LoRA, which at the start is `zero` (B is, A is not), once it has
    taken a step."""
    values = rows * columns
    match optimizer:
        case "adamw":  # two moments
            return 8 * values
        # the same in bytes, a scale for each block, and two tables of 256 values; small tensors as adamw
        case "adamw8bit":
            return 8 * values if values < LEAST_8BIT else 2 * values + 8 * -(-values // BLOCK_8BIT) + 2 * 4 * 256
        case "adafactor":  # the mean square of each row and of each column
            return 4 * (rows + columns)
        case "prodigy":  # two moments, a running sum, and where the tensor began: one number when that was all zero
            return 12 * values + (4 if zero else 4 * values)
        case other:
            raise AssertionError(other)


class ExpertShape(Struct, frozen=True):
    """The sizes that count; the defaults are Wan 2.2 A14B."""

    width: int = 5120
    ffn: int = 13824
    layers: int = 40

    def lora_parameters(self, rank: float) -> int:
        """Of a LoRA on every linear; the rank may be a mean, as of `mean_rank`."""
        return round(self.layers * rank * (8 * (self.width + self.width) + 2 * (self.width + self.ffn)))

    def linear(self, name: str) -> tuple[int, int]:
        """(inputs, outputs) of a linear of a block."""
        return {"ffn.net.0.proj": (self.width, self.ffn), "ffn.net.2": (self.ffn, self.width)}.get(
            name, (self.width, self.width)
        )

    def mean_rank(self, job: Job, expert: Expert) -> float:
        """The rank that a LoRA on every linear would have, were it as large as the expert's."""
        layers = self.lora_layers(job, expert)
        if len(layers) == self.layers * len(WAN_NAMES) and {layer.rank for layer in layers} == {rank_of(job, expert)}:
            return rank_of(job, expert)
        return sum(layer.rank * sum(self.linear(layer.linear)) for layer in layers) / self.lora_parameters(1)

    def lora_layers(self, job: Job, expert: Expert) -> list[TrainedLayer]:
        """What trains of the expert; all of it while patterns of the job name nothing, which a rule refuses."""
        try:
            return lora_layers(job, expert, self.layers)
        except UserError:
            target = structs.replace(job.target, include=[], exclude=[], layers=[])
            return lora_layers(structs.replace(job, target=target), expert, self.layers)

    def layouts(self, job: Job) -> int:
        """Kinds of blocks of the expert that has most of them (`block_layouts`)."""
        return max((block_layouts(self.lora_layers(job, e), self.layers) for e in trained_experts(job)), default=1)

    def checkpoint_bytes(self, layers: Iterable[TrainedLayer], optimizer: str, *, ema: bool) -> int:
        """What a checkpoint holds of one expert: the fp32 LoRA, the optimizer's state, and the running average, if
        any."""
        total = 0
        for (linear, rank), count in Counter((layer.linear, layer.rank) for layer in layers).items():
            inputs, outputs = self.linear(linear)
            of_one = state_bytes(optimizer, rank, inputs, zero=False) + state_bytes(optimizer, outputs, rank, zero=True)
            total += count * (of_one + rank * (inputs + outputs) * (8 if ema else 4))
        return total

    @property
    def parameters(self) -> int:
        """The linears of all blocks: 98% of the expert."""
        return self.layers * (8 * self.width * self.width + 2 * self.width * self.ffn)


class DiskNeed(Struct, frozen=True, kw_only=True):
    """Bytes a run will have on disk at its fullest."""

    checkpoint: int  # one of them, state only
    checkpoints: int  # all that are kept, with one more being written
    files: int  # LoRA files: one pair per kept checkpoint, the final pair, and that of the best by its held-out loss
    samples: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.files + self.samples


def disk_need(job: Job, shape: ExpertShape) -> DiskNeed:
    """What the job will write."""
    parameters = shape.lora_parameters(sum(shape.mean_rank(job, e) for e in trained_experts(job)))
    checkpoint = sum(
        shape.checkpoint_bytes(shape.lora_layers(job, e), job.training.optimizer, ema=job.training.ema)
        for e in trained_experts(job)
    )
    saves = -(-job.training.steps // job.save.every)
    kept = min(job.save.keep, saves)
    sizes = [preview_size_of(job.sample, i) for i in range(len(job.sample.prompts))]
    previews = sum(
        s.width * s.height * (s.frames * PREVIEW_BITS_PER_PIXEL / 8 + POSTER_BYTES_PER_PIXEL) + SHEET_ROW for s in sizes
    )
    return DiskNeed(
        checkpoint=checkpoint,
        checkpoints=checkpoint * (kept + 1),
        files=parameters * FILE_BYTES[job.save.dtype] * (kept + 1 + validates(job)),
        samples=round(preview_sets(job) * previews),
    )
