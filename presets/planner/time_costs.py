"""Seconds that a plan takes, by part of a step. Bytes are `memory_costs`, the numbers fitted to measurements
`coefficients`.

T tokens, B batch size, M = B T rows, D width, F inner width of the feed-forward, L blocks. The linears of an expert
hold P = L (8 D^2 + 2 D F) parameters. They take 2 M (P - 2 L D^2) + 2 B S (2 L D^2) operations a pass: keys and values
of the cross-attention see the S text tokens alone. A recomputed step makes three passes (forward, recomputation, input
gradient), a kept block two. Attention takes 4 B T^2 D L forward and twice that backward; it is never computed twice.
"""

from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace

from presets.clips.geometry import Bucket
from presets.planner.coefficients import (
    BACKWARD,
    BACKWARD_IN_STEPS,
    DECODE_FLOP,
    ENCODE_FLOP,
    FORWARD,
    FORWARD_IN_STEPS,
    STILL_STAGES,
)
from presets.planner.coefficients import FITTED as c
from presets.planner.memory_costs import STORED, TEXT_TOKENS, block_bytes, waiting_rows
from presets.planner.plan import Plan
from presets.planner.sizes import OPTIMIZER_BYTES, ExpertShape
from presets.planner.workload import Hardware, Load, Workload

OWN_CONVOLUTIONS = (9, 0)  # the compute capability on which the encoder's were measured to be faster than cuDNN's
EIGHT_BITS = ("float8", "int8")  # the precisions that also multiply in 8 bits


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


@dataclass(frozen=True)
class TimeCosts:
    """Seconds of plans for one workload on one machine."""

    work: Workload
    hardware: Hardware
    shape: ExpertShape

    def _linears(self, plan: Plan, load: Load) -> float:
        """One pass of all frozen linears and the LoRA."""
        rate = self._product_rate(plan)
        of_text = 2 * self.shape.layers * self.shape.width**2
        products = 2 * load.rows * (self.shape.parameters - of_text) + 2 * load.batch * TEXT_TOKENS * of_text
        branches = (
            2
            * load.rows
            * (self.shape.lora_parameters(self.work.rank) + self.shape.lora_parameters(self.work.ara_rank))
        )
        at_once = load.batch * plan.longest_run(load.tokens)
        return products / rate * (1 + c.half_rows / at_once) + branches / (self.hardware.bf16_tflops * 1e12)

    def _product_rate(self, plan: Plan) -> float:
        """Operations a second of the frozen linears."""
        h = self.hardware
        return 1e12 * ({"float8": h.fp8_tflops, "int8": h.int8_tops}.get(plan.precision, 0.0) or h.bf16_tflops)

    def _spared(self, plan: Plan, rows: int) -> float:
        """What the compiler leaves out where all blocks are recomputed: the last linear and, where the hidden states
        are saved, both output projections."""
        if not plan.compiled:
            return 0.0
        outputs = self.shape.ffn + (2 * self.shape.width if plan.save_hidden else 0)
        product = 2 * rows * self.shape.layers * self.shape.width * outputs
        return product / self._product_rate(plan) + self._traffic(c.spared, rows)

    def _weights_again(self, plan: Plan, load: Load) -> tuple[float, float]:
        """Seconds of a (forward, backward) pass that go into dequantizing or transposing weights, once per chunk."""
        moved = self.shape.parameters * plan.chunks(load.tokens) / (self.hardware.memory_gbps * 1e9)
        if plan.precision in EIGHT_BITS:
            return 0.0, 2 * moved
        each = 0.0 if plan.precision == "none" else STORED[plan.precision] + 2
        return each * moved, each * moved

    def _traffic(self, factor: float, rows: int) -> float:
        return factor * rows * (2 * self.shape.width) * self.shape.layers / (self.hardware.memory_gbps * 1e9)

    def attention(self, load: Load) -> tuple[float, float]:
        """(forward, backward) of the self-attention of all blocks, by the kernels that the job runs with."""
        h = self.hardware
        forward, backward = h.deterministic_forward_tflops, h.deterministic_backward_tflops
        kernels = h.deterministic_kernels
        if not self.work.deterministic:
            forward, backward = h.attention_forward_tflops, h.attention_backward_tflops
            kernels = h.attention_kernels
        forward *= FORWARD_IN_STEPS.get(kernels[0], FORWARD)
        backward *= BACKWARD_IN_STEPS.get(kernels[1], BACKWARD)
        whole = 4 * load.batch * load.bucket.tokens**2 * self.shape.width * self.shape.layers / 1e12
        products = whole / load.split  # each GPU has a part of the heads
        return products / forward, 2 * products / backward

    def forward(self, plan: Plan, load: Load) -> tuple[float, float]:
        """(computing, copying to the device) of one pass without a graph."""
        chunks = plan.chunks(load.tokens)
        attention, _ = self.attention(load)
        token_wise = (
            self._linears(plan, load)
            + self._traffic(c.traffic_forward + (c.traffic_chunked if chunks > 1 else 0), load.rows)
            + self._weights_again(plan, load)[0]
        )
        launches = self.shape.layers * c.launch_forward * _launched(chunks)
        if _as_graphs(plan, load):
            token_wise += self._traffic(c.graph_rows, load.rows) + self.shape.layers * c.graph_gaps
            launches = self.shape.layers * c.launch_graph
        return max(attention + token_wise, launches), self._copy(plan, self.shape.layers - plan.resident)

    def backward(self, plan: Plan, load: Load) -> tuple[float, float]:
        """(computing, copying to the device) of the backward half of a step, recomputation included."""
        layers, rows, chunks = self.shape.layers, load.rows, plan.chunks(load.tokens)
        visited = layers - self.work.lowest
        part, redone = visited / layers, max(0, visited - plan.kept_for(rows)) / layers
        forward_again, backward_again = self._weights_again(plan, load)
        linear = self._linears(plan, load)
        again = linear + self._traffic(c.traffic_forward, rows) + forward_again - self._spared(plan, rows)
        _, attention = self.attention(load)
        gradient = linear + self._traffic(c.traffic_backward, rows) + backward_again
        if chunks > 1:
            again += self._traffic(c.traffic_chunked, rows)
        launches = (visited * c.launch_gradient + redone * layers * c.launch_again) * _launched(chunks)
        if _as_graphs(plan, load):
            gradient += self._traffic(c.graph_rows, rows) + layers * c.graph_gaps
            launches = visited * c.launch_graph
        streamed = max(0.0, part * (layers - plan.resident) - plan.slots)  # residents are spread evenly
        copying = self._copy(plan, streamed) + self._activation_copy(plan, load)
        cheap = c.traffic_kept if plan.keep_gelu else c.traffic_kept + c.traffic_gelu
        made_again = (part - redone) * self._traffic(cheap, rows)
        return max(part * (attention + gradient) + redone * again + made_again, launches), copying

    def _copy(self, plan: Plan, blocks: float) -> float:
        """Weights of so many blocks, one way."""
        size = block_bytes(self.shape, plan.precision, self.work.ara_rank)
        return blocks * size / self._rate(plan)

    def _rate(self, plan: Plan) -> float:
        """Bytes a second between host and device, one way, while the card computes."""
        return self.hardware.copy_gbps * c.copy * 1e9 * (1.0 if plan.pinned else c.unlocked)

    def _activation_copy(self, plan: Plan, load: Load) -> float:
        waiting = max(0, self.shape.layers - self.work.lowest - plan.kept_for(load.rows))
        leaving = waiting - plan.staying(waiting)
        return leaving * waiting_rows(plan) * load.rows * (2 * self.shape.width) / self._rate(plan)

    def encodes(self, batch: int, bucket: Bucket, last_frame: float = 0.0) -> float:
        """Seconds of a clip's latents and of its conditioning; an image's are the same."""
        latents = self._encode(ENCODE_FLOP, batch, bucket)
        return latents + (self._conditioning(batch, bucket, last_frame) if bucket.frames > 1 else 0.0)

    def _conditioning(self, batch: int, bucket: Bucket, last_frame: float) -> float:
        """Seconds, where `last_frame` of these give their last frame as well: all of it is encoded then. Else few
        frames are computed, whatever the clip's length."""
        still = sum(share * min(1.0, reached / bucket.frames) for share, reached in STILL_STAGES)
        return self._encode((last_frame + (1 - last_frame) * still) * ENCODE_FLOP, batch, bucket)

    def _encode(self, flop: float, batch: int, bucket: Bucket) -> float:
        """Seconds of so many operations per pixel and frame of the VAE's encoder."""
        rate = c.encode_rate if self.hardware.capability == OWN_CONVOLUTIONS else c.vae_rate
        return flop * batch * _pixels(bucket) / (self.hardware.bf16_tflops * rate * 1e12)

    def _decode(self, bucket: Bucket) -> float:
        return DECODE_FLOP * _pixels(bucket) / (self.hardware.bf16_tflops * c.vae_rate * 1e12)

    def _micro_batch(self, plan: Plan, load: Load) -> Seconds:
        """Every term forward and backward, the extra forwards, the VAE."""
        w = self.work
        forward, fetched = self.forward(plan, load)
        backward, fetched_back = self.backward(plan, load)
        leaving = self._activation_copy(plan, load)
        # weights in and activations out go in opposite directions
        first = max(fetched, leaving)
        waiting = max(0.0, first - forward)
        if not plan.pinned:  # the host waits for what leaves, and queues nothing meanwhile
            first, waiting = fetched + leaving, leaving + max(0.0, fetched - forward)
        waits = w.terms * (waiting + max(0.0, fetched_back - backward)) + w.extra_forwards * max(0.0, fetched - forward)
        return Seconds(
            transformer=w.terms * (forward + backward) + w.extra_forwards * forward,
            copies=waits,
            vae=self.encodes(load.batch, load.bucket, load.last_frame),
            other=0.0,
            copying=w.terms * (first + fetched_back) + w.extra_forwards * fetched,
        )

    def step(self, plan: Plan, loads: tuple[Load, ...] | None = None) -> Seconds:
        """One optimizer step over the mix of `loads` (whose shares add up to 1): the work's own by default."""
        loads = loads or self.work.loads
        parts = [(load.share * self.work.accumulation, self._micro_batch(plan, load)) for load in loads]
        update = (
            self.shape.lora_parameters(self.work.rank)
            * (3 * (4 + OPTIMIZER_BYTES[self.work.optimizer]) + 16)
            / (self.hardware.memory_gbps * 1e9)
        )
        return Seconds(
            transformer=sum(n * s.transformer for n, s in parts),
            copies=sum(n * s.copies for n, s in parts),
            vae=sum(n * s.vae for n, s in parts),
            other=c.step + update,
            copying=sum(n * s.copying for n, s in parts),
        )

    def preview(self, plan: Plan) -> float:
        """One preview: its passes, the VAE both ways, the file. 0 without previews."""
        previews = self.work.previews
        if previews is None:
            return 0.0
        if previews.accelerated.stem or previews.accelerated.block:  # such blocks are launched
            plan = replace(plan, graphed=0)
        forward, fetched = self.forward(plan, Load(previews.bucket, 1, 1.0, previews.split))
        conditioning = self._conditioning(1, previews.bucket, previews.last_frame)
        vae = conditioning + self._decode(previews.bucket)
        return previews.passes * max(forward, fetched) + vae + c.video

    def validation(self, plan: Plan) -> float:
        """One measurement of the held-out loss: of each clip the VAE once, and its passes. 0 without any."""
        held = self.work.validation
        if held is None:
            return 0.0
        total = 0.0
        for bucket, clips in held.clips:
            passes = held.passes * max(self.forward(plan, Load(bucket, 1, 1.0, held.split)))
            total += clips * (passes + self.encodes(1, bucket, held.last_frame))
        return total

    def run(self, plan: Plan) -> float:
        """The whole run: steps, previews, measurements of the held-out loss, checkpoints, compilation."""
        w, previews = self.work, self.work.previews
        shapes = {(load.bucket, load.batch) for load in w.loads} | ({(previews.bucket, 1)} if previews else set())
        compilations = len({batch > 1 for _, batch in shapes}) if plan.any_size else len(shapes)
        shown = previews.prompts * previews.sets * self.preview(plan) if previews else 0.0
        return (
            w.steps * self.step(plan).total
            + shown
            + (w.validation.times * self.validation(plan) if w.validation else 0.0)
            + w.saves * c.save
            + (compilations * w.layouts * c.compile if plan.compiled else 0.0)
        )


def _pixels(bucket: Bucket) -> int:
    return bucket.frames * bucket.height * bucket.width


def _as_graphs(plan: Plan, load: Load) -> bool:
    """What GPUs that share a clip send each other is not recorded."""
    return load.split == 1 and plan.as_graphs(load.batch, load.bucket.tokens)


def _launched(chunks: int) -> float:
    """What a block launches, in blocks that are not in chunks."""
    return 1 + c.launch_chunk * (chunks - 1)
