"""Bytes that a plan takes on the device and in host memory. Seconds are `time_costs`, the numbers fitted to
measurements `coefficients`.

T tokens, B batch size, M = B T rows, D width. A *row tensor* is one (M, D) tensor in bf16: 2 M D bytes.
"""

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from presets.clips.geometry import Bucket
from presets.planner.coefficients import ATTENTION_ROWS
from presets.planner.coefficients import FITTED as c
from presets.planner.plan import AT_THE_TURN, Plan, Precision
from presets.planner.preview_accelerators import BLOCKS_ALIVE
from presets.planner.sizes import GIB, OPTIMIZER_BYTES, ExpertShape
from presets.planner.workload import Hardware, Load, PreviewLoad, Workload

# row tensors more at attention's backward where GPUs share a clip: what it works on by heads beside the same by tokens,
# and what is sent and received. Counted, not measured
SPLIT_ROWS = 7
TEXT_TOKENS = 512
ALIGN = 256  # bytes; see engine.weights.packed_blocks
QINT4_GROUP = 128  # inputs per scale and shift
STORED = {
    "none": 2.0,
    "float8": 1.0,
    "int8": 1.0,
    "qfloat8": 1.0,
    "qint8": 1.0,
    "qint4": 0.5,
}  # bytes per weight, without scales
# bytes per weight that a kept graph holds besides: where the backward makes the weight from codes that are joined, the
# compiler has the forward join them
KEPT_CODES = {"qint4": 1}


@lru_cache(maxsize=256)  # hundreds of plans are priced for a job, of a few precisions
def block_bytes(shape: ExpertShape, precision: Precision, ara_rank: int = 0) -> int:
    """One packed block as it travels and lies on the device: its weights with their scales, biases and norms (the
    layout of engine.weights.packed_blocks), and the recovery adapter's branches in bf16."""
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
    # norms in bf16, norm2 and the modulation table in fp32
    packed = int(total + 8 * D + 4 * (2 + 6) * D + ALIGN * 40)
    return packed + 2 * shape.lora_parameters(ara_rank) // shape.layers


def training_peak(phases: dict[str, int]) -> int:
    """The highest of the phases that the plan is about."""
    return max(size for name, size in phases.items() if name != "text")


@dataclass(frozen=True)
class MemoryCosts:
    """Bytes of plans for one workload on one machine. Where two are returned, the second is what the allocator cannot
    hand out again."""

    work: Workload
    hardware: Hardware
    shape: ExpertShape

    @property
    def row(self) -> int:
        """Bytes of one row of a row tensor."""
        return 2 * self.shape.width

    @property
    def tail(self) -> Load:
        """The largest batch."""
        return max(self.work.loads, key=lambda load: load.rows)

    def held(self, plan: Plan) -> dict[str, int]:
        """What lies on the device from the first step to the last."""
        w = self.work
        block = block_bytes(self.shape, plan.precision, w.ara_rank)
        per_expert = 4 + OPTIMIZER_BYTES[w.optimizer] + (4 if w.ema else 0)
        return {
            "weights": plan.resident * w.needed * block,
            "ring": plan.slots * block,
            # gradients exist for one expert at a time
            "lora": self.shape.lora_parameters(sum(w.ranks)) * per_expert + self.shape.lora_parameters(w.rank) * 4,
            "stem": int(c.stem * self.shape.width**2) * w.needed,
            "vae": int(c.vae_weights),
            **({"graphs": self._graphs(plan)} if plan.graphed else {}),
        }

    def _graphs(self, plan: Plan) -> int:
        """CUDA graphs of blocks: what they work in, which nothing else has the use of, their fixed inputs, what the
        driver keeps. The first block of each shape is launched, so all else needs no less."""
        w, tensor = self.work, plan.graphed * self.row
        working = self._recomputed(plan, tensor, tensor, self._workspace)
        lora = 2 * 4 * self.shape.lora_parameters(w.rank) // self.shape.layers * w.layouts
        shapes = {(load.bucket, load.batch) for load in w.loads if plan.as_graphs(load.batch, load.bucket.tokens)}
        if w.previews and plan.as_graphs(1, w.previews.bucket.tokens):
            shapes.add((w.previews.bucket, 1))
        if w.validation:
            shapes |= {(bucket, 1) for bucket, _ in w.validation.clips if plan.as_graphs(1, bucket.tokens)}
        recorded = 2 * len(shapes) * (plan.resident * w.needed + plan.slots)
        return int(
            (1 + c.lost) * working + self._weight_copy(plan) + c.graph_inputs * tensor + lora + recorded * c.graph
        )

    def activations(self, plan: Plan, load: Load | None = None) -> int:
        """Bytes of one block that wait for its backward, of the largest batch or of `load`."""
        heads = self.shape.width // 128
        return int((load or self.tail).rows * (waiting_rows(plan) * self.row + 4 * heads))

    def filled(self, plan: Plan) -> Plan:
        """The plan with more graphs kept for the batches smaller than the largest: as many as fit in what that one
        takes."""
        shorter = sorted(
            {load.rows: load for load in self.work.loads if plan.graphed < load.rows < self.tail.rows}.items()
        )
        if plan.resident <= plan.kept or not shorter:
            return plan
        budget = sum(self.step(plan))
        found = ((rows, self._most_kept(plan, load, budget)) for rows, load in shorter)
        return msgspec.structs.replace(plan, also_kept=tuple((rows, kept) for rows, kept in found if kept > plan.kept))

    def _most_kept(self, plan: Plan, load: Load, budget: float) -> int:
        """Bytes rise evenly with the graphs kept, from the first one on."""

        def need(kept: int) -> float:
            return sum(self.step(msgspec.structs.replace(plan, kept=kept), load))

        first = max(plan.kept, 1)
        least, most = need(first), need(plan.resident)
        if most <= budget:
            return plan.resident
        return (
            first + int((budget - least) / (most - least) * (plan.resident - first)) if least <= budget else plan.kept
        )

    def step(self, plan: Plan, load: Load | None = None) -> tuple[float, float]:
        """(working set of a training step at its highest, lost), of the largest batch or of `load` with plan.kept
        graphs."""
        load = load or self.tail
        tensor = load.rows * self.row
        part = load.batch * plan.longest_run(load.tokens) * self.row
        ratio = self.shape.ffn / self.shape.width
        kept_blocks = self._kept(plan, load)
        waiting = self.shape.layers - kept_blocks
        here = plan.staying(waiting)
        if here == AT_THE_TURN < waiting:  # they lie where others are read to afterwards
            here = 0
        window = min(waiting, c.activation_window) * waiting_rows(plan) * tensor if here < waiting else 0.0
        staying = float(here * self.activations(plan, load))
        activations = max(window, staying)  # those that stay are used up before the others come back
        beside = self._workspace + (SPLIT_ROWS if load.split > 1 else 0)
        recomputed = self._recomputed(plan, tensor, part, beside) if waiting else 0.0
        kept = (c.kept + (c.kept_ffn + plan.keep_gelu) * ratio) * tensor + self._kept_beside(plan, load)
        graphs, working = 0.0, recomputed
        if kept_blocks:  # residents are spread evenly, so all but one graph may be alive while a block is recomputed
            graphs = kept_blocks * kept
            its_own = self.activations(plan, load) if here else 0  # what that block would have had waiting
            working = max((c.kept_backward + beside) * tensor, recomputed - kept + its_own)
        share = c.lost_chunked if part < tensor else c.lost
        lost = share * (recomputed or working) + c.lost_kept * graphs + c.lost_activations * staying + share * window
        return c.fixed + self._weight_copy(plan) + activations + graphs + working, lost

    def _kept_beside(self, plan: Plan, load: Load) -> float:
        """What a kept graph holds however short the clip is: of the text, of the LoRA in bf16, of some weights."""
        of_block = KEPT_CODES.get(plan.precision, 0) * self.shape.parameters
        of_block += 2 * self.shape.lora_parameters(self.work.rank)
        return c.kept_text * load.batch * TEXT_TOKENS * self.row + of_block / self.shape.layers

    def _kept(self, plan: Plan, load: Load) -> int:
        """plan.kept, but where CUDA graphs recompute all."""
        return 0 if load.rows <= plan.graphed else plan.kept

    @property
    def _workspace(self) -> float:
        """Row tensors that the kernel of attention's backward needs more than others, or less."""
        if not self.work.deterministic:
            return 0.0
        return ATTENTION_ROWS.get(self.hardware.deterministic_kernels[1], 0.0)

    def _recomputed(self, plan: Plan, tensor: float, part: float, beside: float) -> float:
        """What a block that is recomputed works in, of a row tensor over the whole length and one over a chunk, with
        `beside` row tensors beside attention's own at its backward."""
        chunk_ffn = (c.chunk_ffn + _turned_rows(plan.precision)) * (self.shape.ffn / self.shape.width)
        given = c.hidden_spared if plan.save_hidden else 0.0
        return max(c.outside * tensor + (c.chunk - given + chunk_ffn) * part, (c.attention + beside) * tensor)

    def _weight_copy(self, plan: Plan) -> int:
        """The largest weight once more: transposed for the 8-bit product, or dequantized."""
        return _weight_bytes(plan.precision) * self.shape.width * self.shape.ffn

    def _forward(self, plan: Plan, load: Load) -> tuple[float, float]:
        """(working set of a pass without a graph, lost)."""
        tensor, part = load.rows * self.row, load.batch * plan.longest_run(load.tokens) * self.row
        chunk_ffn = c.forward_chunk_ffn + _turned_rows(plan.precision)
        work = max(
            c.forward_attention * tensor,
            c.forward_outside * tensor + (c.forward_chunk + chunk_ffn * (self.shape.ffn / self.shape.width)) * part,
        )
        work += c.hidden_rows * tensor if plan.save_hidden else 0.0  # made there too, and let go
        return c.fixed + self._weight_copy(plan) + work, (c.lost_chunked if part < tensor else c.lost) * work

    def _encode(self, plan: Plan) -> float:
        """The VAE at work on the batch that takes most, `plan.vae_frames` at a time."""
        return max(of.batch * _encode_bytes(of.bucket, plan.vae_frames, of.last_frame) for of in self.work.loads)

    def _preview(self, plan: Plan) -> tuple[float, float]:
        """(the highest of a preview's own phases, lost)."""
        previews = self.work.previews
        if previews is None:
            return 0.0, 0.0
        passes = self.preview_forward(plan, previews, batch=1)
        if not previews.whole:
            return passes
        bucket = previews.bucket
        pixels = bucket.height * bucket.width
        decode = pixels * (c.decode_pixel * min(1.0, (1 + bucket.frames) / 5) + c.decode_clip_frame * bucket.frames)
        encode = _encode_bytes(bucket, plan.vae_frames, previews.last_frame)
        decode, encode = decode + previews.accelerated.stem, encode + previews.accelerated.stem
        if plan.activations == "host":  # the trainer parks the experts while it decodes
            held = self.held(plan)
            decode -= held["weights"] + held["ring"] + held["stem"] + held.get("graphs", 0)
        parts = [passes, (decode, c.lost_vae * decode), (encode, c.lost_vae * encode)]
        highest = max(size for size, _ in parts)  # what is lost may lift another part above it
        return highest, max(map(sum, parts)) - highest

    def preview_forward(self, plan: Plan, previews: PreviewLoad, batch: int) -> tuple[float, float]:
        """(working set of a preview's pass, lost), with what its accelerator brings to the device block by block."""
        size, lost = self._forward(plan, Load(previews.bucket, batch, 1.0, previews.split))
        own = previews.accelerated
        # copied into one branch with it
        joined = 2 * self.shape.lora_parameters(self.work.ara_rank) // self.shape.layers if own.block else 0
        return size + own.stem + BLOCKS_ALIVE * (own.block + joined), lost

    def batched_guidance(self, plan: Plan) -> bool:
        """Whether a preview's two prompts fit as one batch of two, without raising the plan's highest peak."""
        previews = self.work.previews
        if previews is None or not previews.guided:
            return False
        size, lost = self.preview_forward(plan, previews, batch=2)
        return sum(self.held(plan).values()) + size + lost <= self.vram(plan)[1]

    def vram(self, plan: Plan) -> tuple[dict[str, int], int]:
        """(allocated peak of each phase, reserved peak over all)."""
        base = sum(self.held(plan).values())
        encode, text = self._encode(plan), self.text()
        found = {"step": self.step(plan), "preview": self._preview(plan), "vae": (encode, c.lost_vae * encode)}
        phases = {name: int(base + size) for name, (size, _) in found.items() if size} | {"text": text}
        return phases, int(max([base + size + lost for size, lost in found.values()] + [text * 1.05]))

    def text(self) -> int:
        """The text encoder on the device, alone there: captions are encoded before anything else is loaded."""
        w = self.work
        return int(w.text_parameters * c.text_linears * (2 if w.text_precision == "none" else 1) + 0.35 * GIB)

    def ram(self, plan: Plan) -> dict[str, int]:
        """Host memory, by what holds it; of what several processes share, this one's part. What the text encoder needs
        of it, before the experts come, is less than these."""
        w = self.work
        # clips that run as CUDA graphs recompute all blocks, and longer ones may keep them
        loads = [self.tail, *(load for load in w.loads if load.rows <= plan.graphed)]
        waiting = [(self.shape.layers - self._kept(plan, load), load) for load in loads]
        return {
            "weights": block_bytes(self.shape, plan.precision, w.ara_rank) * self.shape.layers * w.needed // w.sharers,
            "activations": max((n - plan.staying(n)) * self.activations(plan, load) for n, load in waiting),
            "accelerator": w.previews.accelerated.host if w.previews else 0,
            "process": int(c.process),
        }

    def locked(self, plan: Plan) -> Plan:
        """The plan with its host buffers page-locked where the system allows so much of it."""
        ram, limit = self.ram(plan), self.hardware.lockable
        return msgspec.structs.replace(plan, pinned=limit is None or ram["weights"] + ram["activations"] <= limit)


def waiting_rows(plan: Plan) -> float:
    """Row tensors of one block that wait for its backward."""
    return c.stash_rows + (c.hidden_rows if plan.save_hidden else 0.0)


def _weight_bytes(precision: Precision) -> int:
    """Of a weight as the backward uses it."""
    return {"float8": 1, "int8": 1, "none": 0}.get(precision, 2)


def _turned_rows(precision: Precision) -> float:
    """Rows of width F more over a chunk: what an int8 product gives, beside the same rotated back."""
    return c.turned_ffn if precision == "int8" else 0.0


def _encode_bytes(bucket: Bucket, at_once: int, last_frame: float) -> float:
    """While a clip is encoded, and, if some give their last frame, the frames of a conditioning beside it; the first
    run has one frame more."""
    frames = bucket.frames
    through = min(frames, 1 + at_once)
    caches = c.encode_pixel if frames > 1 else 2 * c.encode_frame
    held = (c.encode_clip_frame + (c.encode_empty_frame if last_frame else 0.0)) * frames
    return bucket.height * bucket.width * (caches + c.encode_frame * through + held)
