"""What was measured of steps and encodes on cards, with the rates of each card that day, by where in benchmarks/results
it is from: the figures that `benchmarks.predictions` holds the planner to.

One expert, float8, LoRA of rank 16, AdamW, batch 1, no encodes unless a line says so. Each figure says which code it
was measured with: a change of what a step computes makes a new entry in CODES, and all figures history that are not
measured again.
"""

from msgspec import Struct
from msgspec.structs import replace

from presets.clips.geometry import Bucket
from presets.planner.costs import Costs
from presets.planner.plan import Plan
from presets.planner.sizes import GIB, ExpertShape
from presets.planner.workload import Hardware, Load, ValidationLoad, Workload

# bf16 787 TFLOP/s, row-wise float8 products about 1500, cuDNN attention 676 forward and 428 backward, pinned copies 55
# GB/s, device copies 4.3 TB/s; in a fixed order backward 341, by ours
H200 = Hardware(
    name="H200",
    capability=(9, 0),
    vram_total=140 * GIB,
    vram_free=139 * GIB,
    ram_total=256 * GIB,
    ram_free=250 * GIB,
    copy_gbps=55,
    bf16_tflops=787,
    fp8_tflops=1500,
    attention_forward_tflops=676,
    attention_backward_tflops=428,
    deterministic_forward_tflops=676,
    deterministic_backward_tflops=341,
    attention_kernels=("cudnn", "cudnn"),
    deterministic_kernels=("cudnn", "triton-large"),
    memory_gbps=4300,
)
# the same of an H100: the arithmetic of docs/speed.md; device copies by its sheet
H100 = Hardware(
    name="H100",
    capability=(9, 0),
    vram_total=int(79.6 * GIB),
    vram_free=79 * GIB,
    ram_total=256 * GIB,
    ram_free=250 * GIB,
    copy_gbps=55,
    bf16_tflops=786,
    fp8_tflops=1500,
    attention_forward_tflops=684,
    attention_backward_tflops=428,
    deterministic_forward_tflops=684,
    deterministic_backward_tflops=358,
    attention_kernels=("cudnn", "cudnn"),
    deterministic_kernels=("cudnn", "triton-large"),
    memory_gbps=3015,
)
# the same with flash-attn-4
H100_FLASH4 = replace(
    H100,
    deterministic_forward_tflops=758,
    deterministic_backward_tflops=473,
    deterministic_kernels=("flash4", "flash4"),
)
# H200s of the 27th, with and without it; float8, attention and memory as found from what the planner said that day
H200_FLASH4 = replace(
    H200,
    fp8_tflops=1482,
    deterministic_forward_tflops=695,
    deterministic_backward_tflops=512,
    deterministic_kernels=("flash4", "flash4"),
    memory_gbps=4130,
)
H200_OURS = replace(
    H200,
    bf16_tflops=778,
    fp8_tflops=1434,
    deterministic_forward_tflops=690,
    deterministic_backward_tflops=371,
    memory_gbps=4190,
)
# what a step and its encodes compute, by the day they came to do so
CODES = {
    "2026-11-22": "more passes over the tokens, a whole recomputation",
    "2026-11-27, cuDNN": "encodes by cuDNN's convolutions",
    "2026-11-27": "fewer passes; recomputed blocks whose backward read zeros",
    "2026-11-27, runs": "encodes by convolutions of our own, one of a conditioning's empty frames in each run",
    "2026-11-28, kept": "graphs kept with weights and what norms give",
    "2026-11-28": "recomputation up to the last linear, with its gradient; encodes by convolutions of our own, all of"
    " a conditioning's empty frames in one run",
}
ZEROS, LARGE_GRAPHS, PRESENT = "2026-11-27", "2026-11-28, kept", "2026-11-28"
# an H100 of that evening, with flash-attn-4
H100_EVENING = replace(
    H100_FLASH4,
    bf16_tflops=742,
    fp8_tflops=1384,
    deterministic_forward_tflops=703,
    deterministic_backward_tflops=473,
    memory_gbps=2888,
)
# an H100 of the 28th, without it: the attention's rates by that day's timing
H100_NOON = replace(H100, deterministic_forward_tflops=666, deterministic_backward_tflops=374)
# another H100 of that day, with it
H100_NIGHT = replace(H100_FLASH4, deterministic_backward_tflops=486)
KEPT_LEAN = Plan(precision="float8", resident=40, kept=40, activations="device", slots=0)
KEPT, RESIDENT = replace(KEPT_LEAN, keep_gelu=True), replace(KEPT_LEAN, kept=0)
STREAMED_DEVICE = Plan(precision="float8", activations="device")
STREAMED = Plan(precision="float8")
SOME = replace(STREAMED, resident=24, kept=24, keep_gelu=True)
CHUNKED, WIDE = replace(STREAMED, chunk=8192), replace(STREAMED, chunk=16384)


class Step(Struct, frozen=True, kw_only=True):
    """Steps of one clip under one plan: seconds and GiB as measured; None: not taken."""

    card: Hardware
    clip: tuple[int, int, int]
    plan: Plan
    seconds: float
    forward: float | None = None  # of a pass without a graph
    peak: float | None = None  # allocated
    reserved: float | None = None
    deterministic: bool = True
    blocks: int = 40
    terms: int = 1
    extra_forwards: int = 0
    only_blocks: bool = False  # neither optimizer nor what else a step has
    code: str = PRESENT  # one of CODES

    @property
    def costs(self) -> Costs:
        work = Workload(
            loads=(Load(Bucket(*self.clip), 1, 1.0),),
            ranks=(16,),
            needed=1,
            deterministic=self.deterministic,
            terms=self.terms,
            extra_forwards=self.extra_forwards,
        )
        return Costs(work, self.card, ExpertShape(layers=self.blocks))

    @property
    def said(self) -> float:
        found = self.costs.step(self.plan)
        return found.transformer + found.copies + (0.0 if self.only_blocks else found.other)

    @property
    def said_forward(self) -> float:
        return max(self.costs.time.forward(self.plan, self.costs.work.loads[0]))

    @property
    def said_memory(self) -> tuple[float, float]:
        """(allocated, reserved) in GiB: there was no VAE."""
        memory = self.costs.memory
        held = memory.held(self.plan)
        used, lost = memory.step(self.plan)
        base = sum(held.values()) - held["vae"]
        return (base + used) / GIB, (base + used + lost) / GIB


def _any_order(
    clip: tuple[int, int, int],
    plan: Plan,
    peak: float,
    reserved: float,
    seconds: float,
    forward: float | None,
) -> Step:
    return Step(
        card=H200,
        clip=clip,
        plan=plan,
        seconds=seconds,
        forward=forward,
        peak=peak,
        reserved=reserved,
        deterministic=False,
        code="2026-11-22",
    )


def _in_order(clip: tuple[int, int, int], plan: Plan, peak: float, reserved: float, seconds: float) -> Step:
    return Step(card=H200, clip=clip, plan=plan, seconds=seconds, peak=peak, reserved=reserved, code="2026-11-22")


def _now(
    card: Hardware,
    clip: tuple[int, int, int],
    plan: Plan,
    peak: float,
    reserved: float,
    seconds: float,
    forward: float | None = None,
    code: str = PRESENT,
) -> Step:
    return Step(
        card=card, clip=clip, plan=plan, seconds=seconds, forward=forward, peak=peak, reserved=reserved, code=code
    )


SHORT, MIDDLE, LONG, LONGEST = (21, 256, 256), (41, 512, 512), (81, 480, 832), (81, 720, 1280)
# Steps by where in benchmarks/results they are from
STEPS: dict[str, list[Step]] = {
    "2026-11-22-h200/step.json": [
        _any_order(MIDDLE, KEPT, 115.30, 116.07, 1.365, 0.491),
        _any_order(MIDDLE, RESIDENT, 25.77, 26.55, 1.675, 0.473),
        _any_order(MIDDLE, replace(STREAMED_DEVICE, resident=20), 20.20, 20.97, 1.685, 0.477),
        _any_order(MIDDLE, STREAMED_DEVICE, 13.65, 14.42, 1.688, 0.476),
        _any_order(MIDDLE, STREAMED, 5.69, 6.12, 1.692, 0.474),
        _any_order(MIDDLE, replace(STREAMED, chunk=4096, slots=2), 4.64, 4.72, 1.866, 0.61),
        _any_order(MIDDLE, SOME, 72.75, 73.52, 1.543, 0.479),
        _any_order((41, 768, 768), replace(SOME, kept=14), 87.55, 88.64, 5.308, 1.514),
        _any_order((41, 1024, 1024), replace(SOME, kept=8), 88.01, 90.22, 13.976, None),
        _any_order(LONG, CHUNKED, 8.71, 9.14, 8.665, None),
        _any_order(LONGEST, CHUNKED, 16.16, 16.84, 36.83, None),
    ],
    "2026-11-22-h200/step-deterministic.json": [
        _in_order(MIDDLE, KEPT, 115.30, 116.07, 1.531),
        _in_order(MIDDLE, STREAMED, 5.70, 6.12, 1.875),
        _in_order(MIDDLE, replace(SOME, activations="device"), 74.60, 75.02, 1.668),
        _in_order(LONG, CHUNKED, 8.62, 9.14, 10.355),
        _in_order(LONGEST, CHUNKED, 16.07, 16.72, 43.609),
    ],
    "2026-11-22-h200/launches.txt (10 blocks)": [
        Step(
            card=H200,
            clip=(21, side, side),
            plan=replace(RESIDENT, resident=10),
            blocks=10,
            seconds=seconds,
            forward=forward,
            only_blocks=True,
            code="2026-11-22",
        )
        for side, forward, seconds in ((256, 0.0493, 0.2134), (384, 0.0620, 0.2074), (512, 0.0654, 0.2103))
    ],
    # means over the undisturbed and the resumed run from each start's third step on: of 384 between 1.22 and 1.94, of
    # 512 between 1.93 and 2.06
    "2026-11-22-h200/events-*.jsonl (5 passes)": [
        Step(
            card=H200,
            clip=(21, side, side),
            plan=replace(STREAMED, resident=20, kept=2, keep_gelu=True),
            terms=2,
            extra_forwards=1,
            seconds=seconds,
            only_blocks=True,
            code="2026-11-22",
        )
        for side, seconds in ((384, 1.622), (512, 1.969))
    ],
    "2026-11-27-one-h100 (10 blocks)": [
        Step(
            card=H100,
            clip=(21, side, side),
            plan=replace(RESIDENT, resident=10) if resident else STREAMED,
            blocks=10,
            seconds=seconds,
            only_blocks=True,
            code="2026-11-22",
        )
        for side, resident, seconds in (
            (256, True, 0.2016),
            (256, False, 0.2318),
            (512, True, 0.2315),
            (512, False, 0.2386),
        )
    ],
    "2026-11-27-one-h100": [
        Step(card=H100, clip=SHORT, plan=KEPT, seconds=0.551, peak=38.7, code="2026-11-22"),
        Step(card=H100, clip=MIDDLE, plan=STREAMED, seconds=1.992, peak=5.70, code="2026-11-22"),
    ],
    "2026-11-27-fewer-passes": [
        _now(H100_FLASH4, MIDDLE, STREAMED, 5.79, 6.18, 1.599, 0.470, ZEROS),
        _now(H100_FLASH4, MIDDLE, replace(KEPT, kept=20), 69.75, 70.12, 1.458, 0.468, ZEROS),
    ],
    "2026-11-27-one-h200": [
        _now(H200_FLASH4, MIDDLE, STREAMED, 5.79, 6.18, 1.405, 0.434, ZEROS),
        _now(H200_FLASH4, MIDDLE, KEPT, 115.30, 115.55, 1.269, 0.433, LARGE_GRAPHS),
        _now(H200_FLASH4, LONG, CHUNKED, 8.71, 8.84, 6.944, code=ZEROS),
        _now(H200_FLASH4, LONGEST, CHUNKED, 16.17, 16.49, 29.532, code=ZEROS),
        _now(H200_OURS, MIDDLE, STREAMED, 5.79, 6.18, 1.579, 0.445, ZEROS),
        _now(H200_OURS, MIDDLE, KEPT, 115.30, 115.55, 1.439, 0.455, LARGE_GRAPHS),
        _now(H200_OURS, LONG, CHUNKED, 8.08, 8.54, 9.422, code=ZEROS),
    ],
    "2026-11-27-convolutions": [
        _now(H100_EVENING, MIDDLE, STREAMED, 5.79, 6.18, 1.587, 0.470, ZEROS),
        _now(H100_EVENING, MIDDLE, replace(KEPT, kept=20), 69.75, 70.10, 1.471, 0.467, ZEROS),
    ],
    "2026-11-28-recomputed": [
        _now(H200_FLASH4, MIDDLE, STREAMED, 5.57, 5.80, 1.534, 0.451),
        _now(H200_FLASH4, MIDDLE, KEPT, 115.30, 115.55, 1.289, 0.444, LARGE_GRAPHS),
        _now(H200_FLASH4, LONG, CHUNKED, 8.71, 8.91, 7.612),
        _now(H200_FLASH4, LONG, WIDE, 8.71, 8.93, 7.594),
    ],
    "2026-11-28-hidden-states": [
        _now(H200_FLASH4, MIDDLE, STREAMED, 5.57, 5.80, 1.516, 0.445),
        _now(H200_FLASH4, MIDDLE, replace(STREAMED, save_hidden=True), 5.45, 5.78, 1.485),
        _now(H200_FLASH4, MIDDLE, replace(KEPT, kept=20), 69.75, 70.09, 1.395, 0.439, LARGE_GRAPHS),
        _now(H200_FLASH4, LONG, WIDE, 8.71, 8.93, 7.479),
        _now(H100_NOON, MIDDLE, STREAMED, 5.57, 5.80, 1.795, 0.482),
        _now(H100_NOON, MIDDLE, replace(STREAMED, save_hidden=True), 5.45, 5.78, 1.767),
        _now(H100_NOON, LONG, WIDE, 8.08, 8.32, 10.222),
        _now(H100_NOON, LONG, replace(WIDE, save_hidden=True), 9.33, 9.40, 10.132),
    ],
    "2026-11-28-at-the-turn": [
        _now(H200_FLASH4, MIDDLE, STREAMED, 5.57, 5.82, 1.538, 0.450),
        _now(H200_FLASH4, MIDDLE, replace(STREAMED, save_hidden=True), 5.45, 6.01, 1.481, 0.448),
        _now(H200_FLASH4, MIDDLE, replace(KEPT, kept=20), 69.75, 70.09, 1.404, 0.442, LARGE_GRAPHS),
        _now(H200_FLASH4, LONG, WIDE, 8.71, 8.93, 7.508),
        _now(H200_FLASH4, LONG, replace(WIDE, save_hidden=True), 9.96, 10.23, 7.397),
        _now(H200_FLASH4, LONGEST, WIDE, 16.17, 16.85, 32.698),
        _now(H200_FLASH4, LONGEST, replace(WIDE, save_hidden=True), 19.05, 19.70, 32.638),
        _now(H100_NIGHT, MIDDLE, replace(STREAMED, save_hidden=True), 5.45, 6.01, 1.599, 0.477),
    ],
    "2026-11-28-smaller-graphs": [
        _now(H200_FLASH4, MIDDLE, KEPT, 86.88, 87.27, 1.271, 0.433),
        _now(H200_FLASH4, MIDDLE, replace(KEPT, kept=34), 77.48, 77.91, 1.310, 0.438),
        _now(H200_FLASH4, MIDDLE, STREAMED, 5.57, 5.82, 1.509, 0.437),
        _now(H200_FLASH4, MIDDLE, replace(STREAMED, save_hidden=True), 5.40, 5.77, 1.461, 0.440),
        _now(H200_FLASH4, LONG, replace(WIDE, save_hidden=True), 9.89, 10.32, 7.337),
        _now(H100_NIGHT, MIDDLE, STREAMED, 5.57, 5.82, 1.618, 0.471),
        _now(H100_NIGHT, MIDDLE, replace(STREAMED, save_hidden=True), 5.45, 5.91, 1.569, 0.471),
        _now(H100_NIGHT, MIDDLE, replace(KEPT, kept=20), 69.75, 70.11, 1.469, 0.465, LARGE_GRAPHS),
        _now(H100_NIGHT, LONG, WIDE, 8.71, 9.20, 7.780),
        _now(H100_NIGHT, LONG, replace(WIDE, save_hidden=True), 9.96, 10.56, 7.651),
    ],
    "2026-11-29-gelu-again": [
        _now(H200_FLASH4, MIDDLE, KEPT_LEAN, 75.30, 75.68, 1.291, 0.431),
        _now(H200_FLASH4, MIDDLE, replace(KEPT_LEAN, kept=34), 67.64, 68.04, 1.311, 0.437),
        _now(H200_FLASH4, MIDDLE, replace(STREAMED, save_hidden=True), 5.40, 5.77, 1.474, 0.442),
    ],
    "2026-11-29-nobody-waits": [
        _now(H200_FLASH4, MIDDLE, KEPT_LEAN, 75.32, 75.68, 1.282, 0.441),
        _now(H200_FLASH4, MIDDLE, replace(STREAMED, save_hidden=True), 5.40, 5.81, 1.462),
    ],
    # medians of the transformer's part of a step
    "2026-11-27-one-h200, a run": [
        Step(card=H200_FLASH4, clip=SHORT, plan=plan, seconds=seconds, only_blocks=True, code=ZEROS)
        for plan, seconds in (
            (KEPT, 0.623),
            (replace(STREAMED_DEVICE, resident=34), 0.919),
            (replace(STREAMED_DEVICE, resident=34, graphed=1536), 0.187),
        )
    ],
}


class Encodes(Struct, frozen=True):
    """Both encodes of a clip, so many frames at a time."""

    card: Hardware
    clip: tuple[int, int, int]
    frames: int
    seconds: float
    code: str = PRESENT

    @property
    def said(self) -> float:
        work = Workload(loads=(Load(Bucket(*self.clip), 1, 1.0),))
        return Costs(work, self.card).time.encodes(1, Bucket(*self.clip))


ENCODES: dict[str, list[Encodes]] = {
    "2026-11-27-fewer-passes": [
        Encodes(H100, MIDDLE, 8, 0.307, "2026-11-27, cuDNN"),
        Encodes(H100, MIDDLE, 16, 0.305, "2026-11-27, cuDNN"),
    ],
    "2026-11-27-one-h200": [
        Encodes(H200_FLASH4, MIDDLE, 8, 0.274, "2026-11-27, cuDNN"),
        Encodes(H200_FLASH4, MIDDLE, 16, 0.267, "2026-11-27, cuDNN"),
        Encodes(H200_FLASH4, LONG, 4, 0.910, "2026-11-27, cuDNN"),
        Encodes(H200_OURS, LONG, 4, 0.889, "2026-11-27, cuDNN"),
        Encodes(H200_FLASH4, LONGEST, 4, 2.071, "2026-11-27, cuDNN"),
    ],
    "2026-11-27-convolutions": [
        Encodes(H100_EVENING, MIDDLE, 8, 0.219, "2026-11-27, runs"),
        Encodes(H100_EVENING, MIDDLE, 16, 0.210, "2026-11-27, runs"),
    ],
    "2026-11-28-at-the-turn": [
        Encodes(H200_FLASH4, MIDDLE, 8, 0.180),
        Encodes(H200_FLASH4, MIDDLE, 16, 0.177),
        Encodes(H200_FLASH4, LONG, 8, 0.479),
        Encodes(H200_FLASH4, LONGEST, 8, 1.169),
        Encodes(H100_NIGHT, MIDDLE, 8, 0.190),
    ],
}
# Held-out losses on that H100: three clips of 21x384x384, eight passes each, with their encodes. The first of three
# measurements compiled
HELD_OUT = ValidationLoad(clips=((Bucket(21, 384, 384), 3.0),), passes=8, times=3)
MEASUREMENTS = (6.2, 7.1)


def held_out() -> float:
    work = Workload(loads=(Load(Bucket(21, 512, 512), 1, 1.0),), validation=HELD_OUT)
    return Costs(work, H100).time.validation(KEPT)
