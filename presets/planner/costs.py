"""What a plan costs: bytes on the device and in host memory, seconds per step by part. Formulas over the sizes of the
work and a table of coefficients; nothing else is empirical.

T tokens, B batch size, M = B T rows, D width, F inner width of the feed-forward, L blocks, r rank. A *row tensor* is
one (M, D) tensor in bf16: 2 M D bytes. The linears of an expert hold P = L (8 D^2 + 2 D F) parameters.

Linears take 2 M (P - 2 L D^2) + 2 B S (2 L D^2) operations a pass: keys and values of the cross-attention see the S
text tokens alone. A recomputed step makes three passes (forward, recomputation, input gradient), a kept block two.
Attention takes 4 B T^2 D L forward and twice that backward; it is never computed twice. Prediction errs a little high.
"""

import math
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from presets.planner.plan import Plan, Precision
from presets.planner.preview_accelerators import BLOCKS_ALIVE
from presets.planner.sizes import GIB, OPTIMIZER_BYTES, ExpertShape
from presets.planner.workload import Hardware, Load, PreviewLoad, Workload

ALIGN = 256  # bytes; see engine.weights.packed_blocks
QINT4_GROUP = 128  # inputs per scale and shift
STORED = {"none": 2.0, "float8": 1.0, "qfloat8": 1.0, "qint8": 1.0, "qint4": 0.5}  # bytes per weight, without scales
TEXT_TOKENS = 512
FLOAT8 = "float8"  # the precision that also multiplies in 8 bits


@dataclass(frozen=True)
class Coefficients:
    """Everything that was fitted to measurements, or stands in for one. Fitted on an H200, 2026-11-22, unless it says
    otherwise.

    Bytes are in row tensors of 2 M D bytes where a comment says "rows".
    """

    # On the device
    context: float = 0.6 * GIB  # CUDA itself, kernels and library handles: outside torch's count. An estimate
    stem: float = 21.3  # bytes per D^2 of the parts around the blocks: 0.52 GiB
    fixed: float = 0.13 * GIB  # of a pass, whatever its length: norms' tables, LoRA casts, text
    # rows over the whole length while chunks are worked on: gradients in and out, without the stash window
    outside: float = 5.9
    chunk: float = 6.2  # rows over one chunk: backward of the token-wise parts ...
    chunk_ffn: float = 4.0  # ... and, of width F, its feed-forward
    # rows during attention's backward when chunked: q, k, v, their gradients, the graph before them, workspace
    attention: float = 14.6
    # more of them in a deterministic backward by torch's flash kernel: its partial sums in fp32
    attention_sums: float = 6.0
    stash_rows: float = 2.0  # rows that wait for a block's backward: its input and its attention's output
    stash_window: int = 2  # blocks of these on the device with a host stash: the present one and the one read ahead
    kept: float = 14.75  # rows of a kept block's graph, besides its weights ...
    kept_ffn: float = 2.0  # ... and, of width F
    kept_backward: float = 9.0  # rows while a kept block goes backward
    forward_attention: float = 9.0  # rows of a pass without a graph around attention. An estimate
    forward_outside: float = 4.0  # the same around the token-wise parts. An estimate
    forward_chunk: float = 5.0
    forward_chunk_ffn: float = 2.5
    lost: float = 0.2  # of the working set: what the allocator cannot hand out again
    lost_chunked: float = 0.08
    lost_stash: float = 0.04  # of a device stash
    lost_kept: float = 0.002
    lost_vae: float = 0.1  # An estimate
    # The VAE: bytes per pixel of a frame
    encode_pixel: float = 1920.0  # the frames that later runs look back at, per clip in the batch
    encode_frame: float = 960.0  # for each frame that goes through at a time
    encode_clip_frame: float = 18.0  # for each frame of the clip: its pixels in fp32 and bf16
    decode_pixel: float = 9400.0
    decode_clip_frame: float = 25.0
    vae_weights: float = 0.24 * GIB
    # Host memory
    process: float = 4.0 * GIB  # Python, CUDA and the data workers
    # share of the text encoder in its linears, which come to the device; the table of words stays in host memory
    text_linears: float = 0.815
    ram_margin: float = 1.5 * GIB  # for everything else on the machine
    # Seconds
    half_rows: float = 250.0  # rows at which a matrix product runs at half its rate
    attention_forward: float = 0.90  # of the isolated rate
    attention_backward: float = 1.0
    traffic_forward: float = 116.0  # rows read and written by one block's token-wise parts, besides the products
    traffic_backward: float = 239.0
    traffic_chunked: float = 55.0  # more of it when chunked, forward ...
    traffic_chunked_backward: float = 61.0  # ... and backward
    copy: float = 0.9  # of the copy rate, while the card computes
    call: float = 0.15e-3  # seconds of Python and launches for one part of one block; hidden behind the GPU's work
    vae_rate: float = 0.335  # of the bf16 rate: 54 TFLOP of a 41 x 512 x 512 encode in 0.205 s, of 787 TFLOP/s
    step: float = 0.02  # seconds of a step that belong to nothing else
    video: float = 2.0  # seconds to write one preview. An estimate
    save: float = 3.0  # seconds of a checkpoint. An estimate
    compile: float = 40.0  # seconds for each new shape, 30 to 45


FITTED = Coefficients()
# per pixel and frame, counted at 41 x 512 x 512
ENCODE_FLOP, DECODE_FLOP = 54e12 / (41 * 512 * 512), 91e12 / (41 * 512 * 512)


class Seconds(Struct, frozen=True, kw_only=True):
    """Where the time of one optimizer step goes. The parts add up to `total`."""

    transformer: float  # computing
    copies: float  # waiting for copies that the computing does not hide
    vae: float
    other: float  # optimizer, data, launches that nothing hides
    # how long the busiest direction of the copy engines works, hidden or not: no part of the total
    copying: float = 0.0

    @property
    def total(self) -> float:
        return self.transformer + self.copies + self.vae + self.other

    @property
    def copies_hidden(self) -> bool:
        """Whether computing hides the copies, but for a hundredth of the step."""
        return self.copies <= 0.01 * self.total


class Prediction(Struct, frozen=True, kw_only=True):
    """What a plan is expected to take on a machine. Bytes and seconds."""

    peak_vram: int  # allocated at the highest once training has begun: text is encoded before
    peak_reserved: int  # with what the allocator cannot reuse
    need_vram: int  # with the CUDA context as well: what must be free before the run
    phases: dict[str, int]  # allocated peak of each phase: text, then step, vae, preview
    held: dict[str, int]  # what lies on the device through all phases but text: weights, ring, lora, stem, vae
    ram: int
    ram_held: dict[str, int]  # masters, stash, accelerator, process
    seconds: Seconds  # of the mean step
    largest: Seconds  # of a step of the largest bucket
    preview: float  # seconds for one preview; 0 without previews
    total: float  # seconds of the whole run: steps, previews, checkpoints, compilation

    @property
    def tightest(self) -> str:
        """The phase that takes most, text included."""
        return max(self.phases, key=lambda name: self.phases[name])


def block_bytes(shape: ExpertShape, precision: Precision) -> int:
    """One packed block with its scales, biases and norms; the layout of engine.weights.packed_blocks."""
    D, F = shape.width, shape.ffn
    linears = [(D, D)] * 8 + [(F, D), (D, F)]
    total = 0.0
    for out, into in linears:
        total += out * into * STORED[precision] + 2 * out  # weight and bias
        if precision == "qint4":
            groups = into / QINT4_GROUP if into % QINT4_GROUP == 0 else 1
            total += 8 * out * groups
        elif precision != "none":
            total += 4 * out
    return int(total + 8 * D + 4 * (2 + 6) * D + ALIGN * 40)  # norms in bf16, norm2 and the modulation table in fp32


class Costs:
    """Costs of plans for one workload on one machine: what does not depend on the plan is worked out once."""

    def __init__(
        self, work: Workload, hardware: Hardware, shape: ExpertShape | None = None, coefficients: Coefficients = FITTED
    ) -> None:
        self.work, self.hardware, self.shape, self.c = work, hardware, shape or ExpertShape(), coefficients
        self.row = 2 * self.shape.width  # bytes of one row of a row tensor
        self.ratio = self.shape.ffn / self.shape.width
        self.layers = self.shape.layers
        self.tail = max(work.loads, key=lambda load: load.rows)
        self.clip = max(
            work.loads, key=lambda load: load.batch * load.bucket.frames * load.bucket.height * load.bucket.width
        )

    # --- bytes ----------------------------------------------------------------------------------------------------

    def block(self, plan: Plan) -> int:
        """One block as it travels and lies on the device: its weights, and the recovery adapter's branches in bf16."""
        return (
            block_bytes(self.shape, plan.precision) + 2 * self.shape.lora_parameters(self.work.ara_rank) // self.layers
        )

    def held(self, plan: Plan) -> dict[str, int]:
        """What lies on the device from the first step to the last."""
        w, c = self.work, self.c
        block = self.block(plan)
        per_expert = 4 + OPTIMIZER_BYTES[w.optimizer] + (4 if w.ema else 0)
        return {
            "weights": plan.resident * w.needed * block,
            "ring": plan.slots * block,
            # gradients exist for one expert at a time
            "lora": self.shape.lora_parameters(sum(w.ranks)) * per_expert + self.shape.lora_parameters(w.rank) * 4,
            "stem": int(c.stem * self.shape.width**2) * w.needed,
            "vae": int(c.vae_weights),
        }

    def stash(self, load: Load | None = None) -> int:
        """Bytes of one block that wait for its backward, of the largest batch or of `load`."""
        heads = self.shape.width // 128
        return int((load or self.tail).rows * (self.c.stash_rows * self.row + 4 * heads))

    def staying(self, plan: Plan, waiting: int) -> int:
        """How many of the blocks that wait do so on the device."""
        return waiting if plan.stash == "device" else min(plan.stash_on_device, waiting)

    def weight_copy(self, plan: Plan) -> float:
        """The largest weight once more: transposed for the float8 product, or dequantized."""
        return self._weight_bytes(plan.precision) * self.shape.width * self.shape.ffn

    def _weight_bytes(self, precision: Precision) -> int:
        """Of a weight as the backward uses it; a kept graph holds all of its block's. Measured for float8 alone."""
        return {"float8": 1, "none": 0}.get(precision, 2)

    def filled(self, plan: Plan) -> Plan:
        """The plan with more graphs kept for the batches smaller than the largest: as many as fit in what that one
        takes."""
        shorter = sorted({load.rows: load for load in self.work.loads if load.rows < self.tail.rows}.items())
        if plan.resident <= plan.kept or not shorter:
            return plan
        budget = sum(self.step_bytes(plan))
        found = ((rows, self._most_kept(plan, load, budget)) for rows, load in shorter)
        return msgspec.structs.replace(plan, also_kept=tuple((rows, kept) for rows, kept in found if kept > plan.kept))

    def _most_kept(self, plan: Plan, load: Load, budget: float) -> int:
        """Bytes rise evenly with the graphs kept, from the first one on."""

        def need(kept: int) -> float:
            return sum(self.step_bytes(msgspec.structs.replace(plan, kept=kept), load))

        first = max(plan.kept, 1)
        least, most = need(first), need(plan.resident)
        if most <= budget:
            return plan.resident
        return (
            first + int((budget - least) / (most - least) * (plan.resident - first)) if least <= budget else plan.kept
        )

    def step_bytes(self, plan: Plan, load: Load | None = None) -> tuple[float, float]:
        """(working set of a training step at its highest, what of it the allocator loses), of the largest batch or of
        `load` with plan.kept graphs."""
        c, load = self.c, load or self.tail
        tensor = load.rows * self.row
        part = chunk_rows(load, plan.chunk) * self.row
        waiting = self.layers - plan.kept
        here = self.staying(plan, waiting)
        window = min(waiting, c.stash_window) * c.stash_rows * tensor if here < waiting else 0.0
        staying = float(here * self.stash(load))
        stash = max(window, staying)  # those that stay are used up before the others come back
        token_wise = c.outside * tensor + (c.chunk + c.chunk_ffn * self.ratio) * part
        sums = c.attention_sums * (self.work.deterministic and self.hardware.partial_sums)
        recomputed = max(token_wise, (c.attention + sums) * tensor) if waiting else 0.0
        kept = (c.kept + c.kept_ffn * self.ratio) * tensor + self._weight_bytes(
            plan.precision
        ) * self.shape.parameters / self.layers
        graphs, working = 0.0, recomputed
        if plan.kept:  # residents are spread evenly, so all but one graph may be alive while a block is recomputed
            graphs = plan.kept * kept
            working = max((c.kept_backward + sums) * tensor, recomputed - kept)
        share = c.lost_chunked if part < tensor else c.lost
        lost = share * (recomputed or working) + c.lost_kept * graphs + c.lost_stash * staying + share * window
        return c.fixed + self.weight_copy(plan) + stash + graphs + working, lost

    def forward_bytes(self, plan: Plan, load: Load) -> tuple[float, float]:
        """The same of a pass without a graph, as previews make."""
        c, tensor, part = self.c, load.rows * self.row, chunk_rows(load, plan.chunk) * self.row
        work = max(
            c.forward_attention * tensor,
            c.forward_outside * tensor + (c.forward_chunk + c.forward_chunk_ffn * self.ratio) * part,
        )
        return c.fixed + self.weight_copy(plan) + work, (c.lost_chunked if part < tensor else c.lost) * work

    def encode_bytes(self, plan: Plan) -> float:
        """The VAE at work on the largest clip of a batch, `plan.vae_frames` at a time."""
        c, load = self.c, self.clip
        bucket = load.bucket
        return load.batch * bucket.height * bucket.width * _encode_pixel(c, bucket.frames, plan.vae_frames)

    def preview_bytes(self, plan: Plan) -> tuple[float, float]:
        """(the highest of a preview's own phases, what of it the allocator loses)."""
        previews, c = self.work.previews, self.c
        if previews is None:
            return 0.0, 0.0
        bucket = previews.bucket
        pixels = bucket.height * bucket.width
        decode = pixels * (c.decode_pixel * min(1.0, (1 + bucket.frames) / 5) + c.decode_clip_frame * bucket.frames)
        encode = pixels * _encode_pixel(c, bucket.frames, plan.vae_frames)
        forward, lost = self.preview_forward_bytes(plan, previews, batch=1)
        decode, encode = decode + previews.accelerated.stem, encode + previews.accelerated.stem
        if plan.stash == "host":  # the trainer parks the experts while it decodes
            held = self.held(plan)
            decode -= held["weights"] + held["ring"] + held["stem"]
        return max(
            (decode, c.lost_vae * decode),
            (encode, c.lost_vae * encode),
            (forward, lost),
            key=lambda pair: pair[0] + pair[1],
        )

    def preview_forward_bytes(self, plan: Plan, previews: PreviewLoad, batch: int) -> tuple[float, float]:
        """(working set of a preview's pass, what of it the allocator loses), with what its accelerator brings to the
        device block by block."""
        size, lost = self.forward_bytes(plan, Load(previews.bucket, batch, 1.0))
        own = previews.accelerated
        # copied into one branch with it
        joined = 2 * self.shape.lora_parameters(self.work.ara_rank) // self.layers if own.block else 0
        return size + own.stem + BLOCKS_ALIVE * (own.block + joined), lost

    def batched_guidance(self, plan: Plan) -> bool:
        """Whether a preview's two prompts fit as one batch of two, without raising the plan's highest peak."""
        previews = self.work.previews
        if previews is None or not previews.guided:
            return False
        size, lost = self.preview_forward_bytes(plan, previews, batch=2)
        return sum(self.held(plan).values()) + size + lost <= self.vram(plan)[1]

    def vram(self, plan: Plan) -> tuple[dict[str, int], int]:
        """(allocated peak of each phase, reserved peak over all)."""
        c = self.c
        base = sum(self.held(plan).values())
        found = {"step": self.step_bytes(plan), "preview": self.preview_bytes(plan)}
        encode = self.encode_bytes(plan)
        found["vae"] = encode, c.lost_vae * encode
        text = self.text_bytes()
        phases = {name: int(base + size) for name, (size, _) in found.items() if size} | {"text": int(text)}
        reserved = max([base + size + lost for size, lost in found.values()] + [text * 1.05])
        return phases, int(reserved)

    def text_bytes(self) -> int:
        """The text encoder on the device, alone there: captions are encoded before anything else is loaded."""
        w, c = self.work, self.c
        return int(w.text_parameters * c.text_linears * (2 if w.text_precision == "none" else 1) + 0.35 * GIB)

    def ram(self, plan: Plan) -> dict[str, int]:
        """Host memory, by what holds it. What the text encoder needs of it, before the experts come, is less than
        these."""
        w = self.work
        masters = self.block(plan) * self.layers * w.needed
        waiting = self.layers - plan.kept
        stash = (waiting - self.staying(plan, waiting)) * self.stash()
        return {
            "masters": masters,
            "stash": stash,
            "accelerator": w.previews.accelerated.host if w.previews else 0,
            "process": int(self.c.process),
        }

    # --- seconds --------------------------------------------------------------------------------------------------

    def linear_seconds(self, plan: Plan, load: Load) -> float:
        """One pass of all frozen linears and the LoRA."""
        h, c, rows = self.hardware, self.c, load.rows
        rate = (h.fp8_tflops or h.bf16_tflops) if plan.precision == FLOAT8 else h.bf16_tflops
        of_text = 2 * self.layers * self.shape.width**2
        products = 2 * rows * (self.shape.parameters - of_text) + 2 * load.batch * TEXT_TOKENS * of_text
        branches = (
            2 * rows * (self.shape.lora_parameters(self.work.rank) + self.shape.lora_parameters(self.work.ara_rank))
        )
        return products / (rate * 1e12) * (1 + c.half_rows / chunk_rows(load, plan.chunk)) + branches / (
            h.bf16_tflops * 1e12
        )

    def _weights_again(self, plan: Plan, load: Load) -> tuple[float, float]:
        """Seconds of a (forward, backward) pass that go into dequantizing or transposing weights, once per chunk."""
        moved = self.shape.parameters * chunk_count(load, plan.chunk) / (self.hardware.memory_gbps * 1e9)
        if plan.precision == FLOAT8:
            return 0.0, 2 * moved
        each = 0.0 if plan.precision == "none" else STORED[plan.precision] + 2
        return each * moved, each * moved

    def _traffic(self, factor: float, rows: int) -> float:
        return factor * rows * self.row * self.layers / (self.hardware.memory_gbps * 1e9)

    def attention_seconds(self, load: Load) -> tuple[float, float]:
        """(forward, backward) of the self-attention of all blocks, by the kernels that the job runs with."""
        h, c = self.hardware, self.c
        rates = (
            (h.deterministic_forward_tflops, h.deterministic_backward_tflops)
            if self.work.deterministic
            else (h.attention_forward_tflops, h.attention_backward_tflops)
        )
        products = 4 * load.batch * load.bucket.tokens**2 * self.shape.width * self.layers / 1e12
        return products / (rates[0] * c.attention_forward), 2 * products / (rates[1] * c.attention_backward)

    def forward(self, plan: Plan, load: Load) -> tuple[float, float]:
        """(computing, copying to the device) of one pass without a graph."""
        c, rows = self.c, load.rows
        chunked = chunk_count(load, plan.chunk) > 1
        attention, _ = self.attention_seconds(load)
        token_wise = (
            self.linear_seconds(plan, load)
            + self._traffic(c.traffic_forward + (c.traffic_chunked if chunked else 0), rows)
            + self._weights_again(plan, load)[0]
        )
        calls = chunk_count(load, plan.chunk) + 3
        return max(attention + token_wise, calls * self.layers * c.call), self._copy(plan, self.layers - plan.resident)

    def backward(self, plan: Plan, load: Load) -> tuple[float, float]:
        """(computing, copying to the device) of the backward half of a step, recomputation included."""
        c, rows = self.c, load.rows
        chunked = chunk_count(load, plan.chunk) > 1
        redone = (self.layers - plan.kept_for(rows)) / self.layers
        forward_again, backward_again = self._weights_again(plan, load)
        linear = self.linear_seconds(plan, load)
        again = linear + self._traffic(c.traffic_forward, rows) + forward_again
        _, attention = self.attention_seconds(load)
        gradient = linear + self._traffic(c.traffic_backward, rows) + backward_again
        if chunked:
            again += self._traffic(c.traffic_chunked_backward, rows)
        calls = 2 * chunk_count(load, plan.chunk) + 5
        copying = self._copy(plan, max(0, self.layers - plan.resident - plan.slots)) + self._stash_copy(plan, load)
        return max(attention + gradient + redone * again, calls * self.layers * c.call), copying

    def _copy(self, plan: Plan, blocks: int) -> float:
        return blocks * self.block(plan) / (self.hardware.copy_gbps * self.c.copy * 1e9)

    def _stash_copy(self, plan: Plan, load: Load) -> float:
        waiting = self.layers - plan.kept_for(load.rows)
        leaving = waiting - self.staying(plan, waiting)
        return leaving * self.c.stash_rows * load.rows * self.row / (self.hardware.copy_gbps * self.c.copy * 1e9)

    def micro_batch(self, plan: Plan, load: Load) -> Seconds:
        """One micro-batch: every term forward and backward, the extra forwards, the VAE."""
        w, c = self.work, self.c
        forward, fetched = self.forward(plan, load)
        backward, fetched_back = self.backward(plan, load)
        first = max(fetched, self._stash_copy(plan, load))  # weights in and stash out go in opposite directions
        waits = w.terms * (max(0.0, first - forward) + max(0.0, fetched_back - backward)) + w.extra_forwards * max(
            0.0, fetched - forward
        )
        bucket = load.bucket
        encodes = (
            2
            * ENCODE_FLOP
            * load.batch
            * bucket.frames
            * bucket.height
            * bucket.width
            / (self.hardware.bf16_tflops * c.vae_rate * 1e12)
        )
        return Seconds(
            transformer=w.terms * (forward + backward) + w.extra_forwards * forward,
            copies=waits,
            vae=encodes,
            other=0.0,
            copying=w.terms * (first + fetched_back) + w.extra_forwards * fetched,
        )

    def step(self, plan: Plan, loads: tuple[Load, ...]) -> Seconds:
        """One optimizer step over the mix of `loads` (whose shares add up to 1)."""
        parts = [(load.share * self.work.accumulation, self.micro_batch(plan, load)) for load in loads]
        update = (
            self.shape.lora_parameters(self.work.rank)
            * (3 * (4 + OPTIMIZER_BYTES[self.work.optimizer]) + 16)
            / (self.hardware.memory_gbps * 1e9)
        )
        return Seconds(
            transformer=sum(n * s.transformer for n, s in parts),
            copies=sum(n * s.copies for n, s in parts),
            vae=sum(n * s.vae for n, s in parts),
            other=self.c.step + update,
            copying=sum(n * s.copying for n, s in parts),
        )

    def preview_seconds(self, plan: Plan) -> float:
        """One preview: its passes, the VAE both ways, the file."""
        previews, c = self.work.previews, self.c
        if previews is None:
            return 0.0
        bucket = previews.bucket
        forward, fetched = self.forward(plan, Load(bucket, 1, 1.0))
        vae = (
            (ENCODE_FLOP + DECODE_FLOP)
            * bucket.frames
            * bucket.height
            * bucket.width
            / (self.hardware.bf16_tflops * c.vae_rate * 1e12)
        )
        return previews.steps * (1 + previews.guided) * max(forward, fetched) + vae + c.video

    # --- all of it ------------------------------------------------------------------------------------------------

    def predict(self, plan: Plan) -> Prediction:
        phases, reserved = self.vram(plan)
        w, c = self.work, self.c
        ram = self.ram(plan)
        mean = self.step(plan, w.loads)
        preview = self.preview_seconds(plan)
        shapes = {(load.bucket, load.batch) for load in w.loads} | ({(w.previews.bucket, 1)} if w.previews else set())
        compilations = len({batch > 1 for _, batch in shapes}) if plan.any_size else len(shapes)
        previews = w.previews.prompts * w.previews.sets * preview if w.previews else 0.0
        return Prediction(
            peak_vram=training_peak(phases),
            peak_reserved=reserved,
            need_vram=int(reserved + c.context),
            phases=phases,
            held=self.held(plan),
            ram=sum(ram.values()),
            ram_held=ram,
            seconds=mean,
            largest=self.step(plan, (Load(w.largest.bucket, w.largest.batch, 1.0),)),
            preview=preview,
            total=w.steps * mean.total
            + previews
            + w.saves * c.save
            + (compilations * c.compile if plan.compiled else 0.0),
        )


def predict(plan: Plan, work: Workload, hardware: Hardware, shape: ExpertShape | None = None) -> Prediction:
    """What a plan takes for this work on this machine. `shape` is Wan 2.2 A14B's when it is not given."""
    return Costs(work, hardware, shape).predict(plan)


def training_peak(phases: dict[str, int]) -> int:
    """The highest of the phases that the plan is about."""
    return max(size for name, size in phases.items() if name != "text")


def chunk_count(load: Load, chunk: int) -> int:
    """How many runs of tokens, none above `chunk` (0: all at once), what follows the attention is cut into."""
    return Plan(chunk=chunk).chunks(load.bucket.tokens)


def chunk_rows(load: Load, chunk: int) -> int:
    """Rows of such a run, over the whole batch."""
    return load.batch * math.ceil(load.bucket.tokens / chunk_count(load, chunk))


def _encode_pixel(c: Coefficients, frames: int, at_once: int) -> float:
    """Bytes per pixel of a frame while a clip is encoded; the first run has one frame more."""
    through = min(frames, 1 + at_once)
    caches = c.encode_pixel if frames > 1 else 2 * c.encode_frame
    return caches + c.encode_frame * through + c.encode_clip_frame * frames
