"""What a plan is made for: the work of a job and the machine that does it, in numbers.

T tokens of a bucket, B batch size. Sizes in bytes, rates in 10^9 bytes or 10^12 operations a second.

What they cost is presets.planner.costs's; cards that are not here are presets.planner.cards's.
"""

from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import Literal

from msgspec import Struct

from presets.base.model_facts import I2V_BOUNDARY
from presets.base.safetensors_header import Damaged, read_header
from presets.clips.batches import Group, batches_of, clip_buckets, window_starts
from presets.clips.clip_facts import DatasetFacts
from presets.clips.geometry import SIDE_MULTIPLE, Bucket
from presets.facts.facts import Facts
from presets.facts.held_out import MOST, validates, wanted
from presets.file_names import expanded
from presets.job.expert_schedule import trained_experts
from presets.job.gpu_shares import of_previews
from presets.job.preview_settings import largest_preview, passes_of, preview_sets, sampling_of
from presets.job.schema import DatasetPanel, Job
from presets.machine.precisions import TRANSFORMER
from presets.planner.preview_accelerators import Accelerated, accelerated_by
from presets.planner.sizes import ExpertShape

TextPrecision = Literal["none", "float8", "qint8"]
TEXT_PARAMETERS = 5_681_000_000  # the encoder half of UMT5-XXL
INT8_GENERATIONS = (8, 12)  # major compute capabilities on which 8-bit integers may be the fastest
INT8_GAIN = 1.3  # times the rate of the best other products, below which they are not worth their rounding
ARA_RANK = 16  # of an accuracy recovery adapter that was not looked into


class Load(Struct, frozen=True, dict=True):
    """Micro-batches of one shape. Its numbers of tokens are kept: each candidate of a plan asks for them many times."""

    bucket: Bucket
    batch: int
    share: float  # of all micro-batches
    split: int = 1  # GPUs that share each clip
    last_frame: float = 0.0  # of these micro-batches: how many have a clip that gives its last frame as well

    @cached_property
    def tokens(self) -> int:
        """Of a clip, those of one GPU, outside its self-attention: T."""
        return -(-self.bucket.tokens // self.split)

    @cached_property
    def rows(self) -> int:
        """Of the whole batch: B x T."""
        return self.batch * self.tokens


class PreviewLoad(Struct, frozen=True, kw_only=True):
    """What one set of previews takes, and how many sets the run makes."""

    bucket: Bucket
    prompts: int
    passes: int  # through an expert, of one preview: each expert's steps, twice where it has guidance
    guided: bool  # some steps take two passes
    sets: int
    last_frame: float = 0.0  # of the prompts: how many have an end image
    accelerated: Accelerated = Accelerated()
    split: int = 1  # GPUs that share each pass
    whole: bool = True  # encoded and decoded by this GPU; else it has a part in the passes alone


class ValidationLoad(Struct, frozen=True, kw_only=True):
    """What one measurement of the held-out loss takes, and how many the run makes."""

    clips: tuple[tuple[Bucket, float], ...]  # so many of each shape, one at a time
    passes: int  # through the experts, of each clip
    last_frame: float = 0.0  # of the clips: how many give their last frame as well
    times: int
    split: int = 1  # GPUs that share each pass


class Workload(Struct, frozen=True, kw_only=True):
    """What a job asks of a machine."""

    loads: tuple[Load, ...]
    steps: int = 2000  # optimizer steps
    accumulation: int = 1
    ranks: tuple[float, ...] = (16, 16)  # of the experts that learn: means over all linears
    lowest: int = 0  # block at which the backward pass ends: below it nothing trains
    layouts: int = 1  # kinds of blocks, by what trains in them
    deterministic: bool = True
    needed: int = 2  # experts in host memory: previews go through both ...
    sharers: int = 1  # ... which so many processes share
    optimizer: str = "adamw"
    ema: bool = False
    terms: int = 1  # losses per micro-batch, each with its own forward and backward
    extra_forwards: int = 0  # per micro-batch, without a graph (the base's own answer, for DOP)
    previews: PreviewLoad | None = None
    validation: ValidationLoad | None = None
    saves: int = 0  # checkpoints written
    text_precision: TextPrecision = "float8"
    text_parameters: int = TEXT_PARAMETERS
    ara_rank: int = 0  # of a frozen branch on every linear; 0: none

    @property
    def rank(self) -> float:
        """The largest: gradients and branches exist for one expert at a time."""
        return max(self.ranks)

    @property
    def several_sizes(self) -> bool:
        """Whether passes differ in batch size or tokens: clips do, or previews, which take the shape of their control
        image."""
        return len(self.loads) > 1 or self.previews is not None

    @property
    def largest(self) -> Load:
        return max(self.loads, key=lambda load: (load.rows, load.bucket))


class Hardware(Struct, frozen=True, kw_only=True):
    """A GPU, its host's memory and the way between them. Rates are what is really reached."""

    name: str
    capability: tuple[int, int]
    vram_total: int
    vram_free: int
    ram_total: int
    ram_free: int
    copy_gbps: float  # pinned host memory to device, one way
    bf16_tflops: float
    fp8_tflops: float = 0.0  # 0: the card has no float8 products
    int8_tops: float = 0.0  # of 8-bit integers, with the rotations and the quantizing around them; 0: none
    attention_forward_tflops: float
    attention_backward_tflops: float
    deterministic_forward_tflops: float  # of the kernels that a deterministic job uses
    deterministic_backward_tflops: float
    # (forward, backward), by name; "": not measured here, some kernel
    attention_kernels: tuple[str, str] = ("", "")
    deterministic_kernels: tuple[str, str] = ("", "")
    memory_gbps: float  # of a device-to-device copy, bytes read and written
    source: str = ""  # where the rates come from, for people
    # bytes of host memory that may be page-locked; None: as much as there is. WSL2 tells nobody how much that is, so
    # without a trial it counts as 0
    lockable: int | None = None

    @property
    def computes_float8(self) -> bool:
        return self.capability >= TRANSFORMER["float8"][0] and self.fp8_tflops > 0

    @property
    def computes_int8(self) -> bool:
        return self.capability >= TRANSFORMER["int8"][0] and self.int8_tops > 0

    @property
    def gains_by_int8(self) -> bool:
        """Whether 8-bit integers are clearly the fastest products: never on the data-centre cards from Hopper on, whose
        float8 is as fast."""
        others = max(self.bf16_tflops, self.fp8_tflops if self.computes_float8 else 0.0)
        return self.computes_int8 and self.capability[0] in INT8_GENERATIONS and self.int8_tops >= INT8_GAIN * others


def workload_of(job: Job, facts: Facts | None = None) -> Workload:
    """The work of a job. Datasets whose clips are not known count as clips that fill their resolutions, square."""
    shape = shape_of(facts) if facts else ExpertShape()
    ranks = tuple(shape.mean_rank(job, e) for e in trained_experts(job)) or (job.target.rank,)
    preserves = job.training.dop or job.training.blank_prompt_preservation
    previews = _previews(job, facts)
    text = facts.model.parts.get("text_encoder") if facts and facts.model else None
    return Workload(
        loads=_loads(job, facts.datasets if facts else []),
        steps=job.training.steps,
        accumulation=job.training.gradient_accumulation,
        ranks=ranks,
        lowest=min((layer.block for e in trained_experts(job) for layer in shape.lora_layers(job, e)), default=0),
        layouts=shape.layouts(job),
        deterministic=job.training.deterministic,
        needed=2 if previews else len(ranks),
        optimizer=job.training.optimizer,
        ema=job.training.ema,
        terms=1 + preserves,
        extra_forwards=int(preserves),
        previews=previews,
        validation=_validation(job, facts),
        saves=-(-job.training.steps // job.save.every),
        text_precision=job.quantization.text_encoder,
        text_parameters=text.parameters if text and text.parameters else TEXT_PARAMETERS,
        ara_rank=ara_rank(job, facts.base if facts else None) if job.quantization.transformer == "qint4+ara" else 0,
    )


def ara_rank(job: Job, base: Path | None) -> int:
    """The rank of the job's recovery adapter, from its file's header; ARA_RANK where there is none to read (yet)."""
    path = base / expanded(job.quantization.ara) if base and job.quantization.ara else None
    if path is None or not path.is_file():
        return ARA_RANK
    try:
        return max(
            (t.shape[0] for name, t in read_header(path).items() if "lora_A" in name or "lora_down" in name),
            default=ARA_RANK,
        )
    except (OSError, Damaged):  # the run refuses it with its reason
        return ARA_RANK


def shape_of(facts: Facts) -> ExpertShape:
    """The local model's shape, or Wan 2.2 A14B's."""
    model = facts.model
    if model is None or 0 in (model.width, model.ffn, model.num_layers):
        return ExpertShape()
    return ExpertShape(width=model.width, ffn=model.ffn, layers=model.num_layers)


def boundary_of(job: Job, facts: Facts | None) -> float:
    """The noise level that divides the experts: the job's own, else the model's, else that of I2V A14B."""
    if job.model.boundary != "model":
        return job.model.boundary
    of_model = facts.model.boundary_ratio if facts and facts.model else None
    return I2V_BOUNDARY if of_model is None else of_model


def _previews(job: Job, facts: Facts | None) -> PreviewLoad | None:
    panel = job.sample
    if not panel.prompts:
        return None
    largest = largest_preview(job)
    sides = (max(SIDE_MULTIPLE, side // SIDE_MULTIPLE * SIDE_MULTIPLE) for side in (largest.height, largest.width))
    sampling = sampling_of(panel)
    accelerated = accelerated_by(job, facts.base, shape_of(facts).layers) if facts else Accelerated()
    return PreviewLoad(
        bucket=Bucket(largest.frames, *sides),
        prompts=len(panel.prompts),
        passes=sum(passes_of(sampling, boundary_of(job, facts)).values()),
        guided=max(sampling.guidance, sampling.guidance_low) > 1,
        sets=preview_sets(job),
        last_frame=sum(bool(prompt.end_img.strip()) for prompt in panel.prompts) / len(panel.prompts),
        accelerated=accelerated,
        split=of_previews(job, len(set(job.job.gpus))),
    )


def measurements(job: Job, every: int | None = None) -> int:
    """How often the whole run measures its held-out loss: before the first step, every so often (by default as the job
    says), and at the end."""
    return 2 + (job.training.steps - 1) // (every or job.validation.every)


def _validation(job: Job, facts: Facts | None) -> ValidationLoad | None:
    """Of a fraction that nobody has chosen yet, clips like the others."""
    if not validates(job):
        return None
    held = facts.held_out if facts else None
    shapes: Counter[Bucket] = Counter()
    giving = 0.0
    for one in held.clips if held else []:
        shapes.update(clip_buckets(one.clip, one.panel).values())
        giving += len(clip_buckets(one.clip, one.panel)) * one.panel.last_frame
    clips = {bucket: float(count) for bucket, count in shapes.items()}
    if held is None:
        known = sum(len(found.clips) for found in facts.datasets) if facts else 0
        count = wanted(job.validation.fraction, known) or MOST
        clips = {}
        for load in _loads(job, facts.datasets if facts else []):
            clips[load.bucket] = clips.get(load.bucket, 0.0) + load.share * count
            giving += load.share * count * load.last_frame
    return ValidationLoad(
        clips=tuple(sorted(clips.items())),
        passes=job.validation.bins * len(trained_experts(job)),
        times=measurements(job),
        last_frame=giving / (sum(clips.values()) or 1.0),
    )


def _loads(job: Job, found: list[DatasetFacts]) -> tuple[Load, ...]:
    """The micro-batches of an epoch. A dataset without known clips counts as full batches."""
    items: Counter[Group] = Counter()
    giving: dict[Group, float] = defaultdict(float)  # of the items, those that give their last frame
    for i, panel in enumerate(job.datasets):
        clips = found[i].clips if i < len(found) else []
        buckets = [
            bucket
            for clip in clips
            for bucket in clip_buckets(clip, panel).values()
            for _ in window_starts(clip, panel)
        ]
        each = panel.repeats if clips else panel.repeats * job.training.batch_size
        for bucket in buckets if clips else _square_buckets(panel):
            group = Group(panel.regularization, bucket, panel.weight)
            items[group] += each
            giving[group] += each * panel.last_frame * (bucket.frames > 1)
    if not items:  # there are clips, and none can train: the rules say why
        return _loads(job, [])
    batches: Counter[tuple[Bucket, int]] = Counter()
    whole: dict[tuple[Bucket, int], float] = defaultdict(float)
    for (group, size), count in batches_of(items, job.training.batch_size).items():
        batches[group.bucket, size] += count
        whole[group.bucket, size] += count * (1 - (1 - giving[group] / items[group]) ** size)
    split, total = job.job.gpus_per_clip, batches.total()
    return tuple(
        Load(bucket, size, count / total, split, whole[bucket, size] / count)
        for (bucket, size), count in sorted(batches.items())
    )


def _square_buckets(panel: DatasetPanel) -> set[Bucket]:
    return {
        Bucket(panel.num_frames, side, side)
        for resolution in panel.resolutions
        for side in [resolution // SIDE_MULTIPLE * SIDE_MULTIPLE]
    }
