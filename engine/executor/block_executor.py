"""Runs an expert block by block under a memory plan. The frozen weights pass through a ring of device slots, or stay.

Forward, without a graph: each block's input and its attention's output go to the stash. Backward, last block first: the
block is recomputed around the stashed attention, so attention itself runs once; what follows the attention, whose
working set is the largest, may be cut into chunks of tokens. No graph spans more than one part of one block.

B batch, C channels, F h w latent shape, T tokens, S text tokens, D width, N heads, K head width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch.autograd.graph import get_gradient_edge

from engine.executor.activation_offload import KeptActivations, OffloadedActivations, Stash
from engine.executor.weight_ring import Key, WeightRing
from engine.system.device import compile_alike, fixed_order
from engine.wan.attention import Attention
from engine.wan.block import Lora, Plain, Weights, post_attention, pre_attention, text_kv
from engine.wan.frozen_linear import as_bytes
from engine.weights.packed_blocks import Branches, Layout
from presets.machine.precisions import TRANSFORMER
from presets.planner.plan import Plan

BLOCK: tuple[Callable[..., Any], ...] = (pre_attention, text_kv, post_attention)
LossFn = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertWeights:
    """One expert's parts: the diffusers model without its blocks, the packed blocks in host memory, and its branches.

    `lora` is what trains (empty for an expert that does not), `scaling` its alpha / rank; `recovery` is frozen and
    travels with the blocks. `accelerator` and `shifts` are for previews: branches in host memory, and what is added to
    plain tensors.
    """

    name: str
    stem: WanTransformer3DModel
    masters: list[torch.Tensor]
    layout: Layout
    lora: list[Lora]
    scaling: float
    recovery: Branches | None = None
    accelerator: Sequence[Lora] = ()
    shifts: Sequence[Plain] = ()

    @property
    def block_bytes(self) -> int:
        return self.layout.bytes + (self.recovery.layout.bytes if self.recovery else 0)

    def pieces(self, block: int) -> tuple[torch.Tensor, ...]:
        """The host buffers that make up a block, in the order in which they lie on the device."""
        return (self.masters[block], self.recovery.buffers[block]) if self.recovery else (self.masters[block],)

    def on_device(self, block: int, buffer: torch.Tensor, *, e4m3_as_bytes: bool = False) -> "Frozen":
        """A block's tensors, as views of a device buffer that holds its pieces where nothing is added."""
        weights, plain = self.layout.views(buffer)
        if e4m3_as_bytes:
            weights = {name: as_bytes(packed) for name, packed in weights.items()}
        recovery = self.recovery.views(buffer[self.layout.bytes :]) if self.recovery else {}
        if self.shifts:
            plain |= {name: plain[name] + shift.to(plain[name]) for name, shift in self.shifts[block].items()}
        for name, pair in self.accelerator[block].items() if self.accelerator else ():
            a, b = (t.to(buffer.device) for t in pair)
            recovery[name] = (
                (torch.cat([recovery[name][0], a]), torch.cat([recovery[name][1], b], dim=1))
                if name in recovery
                else (a, b)
            )
        return Frozen(weights, plain, recovery)


class Frozen(NamedTuple):
    """The frozen tensors of one block, on the device."""

    weights: Weights
    plain: Plain
    recovery: Lora


@cache
def _compiled(function: Any) -> Any:
    """Compiled once per process: both experts, all blocks, every plan."""
    return torch.compile(function)


def _any_size(*tensors: torch.Tensor, dims: tuple[int, ...]) -> None:
    """Have the compiler take these dimensions for symbols from the first call on. Left to itself it would make
    constants of the first sizes it sees, and compile again for others: which clip gets which code would hang on their
    order, which a resume changes. (The first size still counts as a hint: reductions over the width may be cut
    otherwise where it has no more than 512 tokens.)"""
    from torch._dynamo import maybe_mark_dynamic  # seconds to import, and only where something is compiled

    for t in tensors:
        maybe_mark_dynamic(t, dims)


def _reads_e4m3(device: torch.device) -> bool:
    """Whether compiled code can read float8_e4m3fn there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TRANSFORMER["float8"][0]


class ExecutorResources:
    """What both experts share under one plan: block functions, the ring of slots, the stash (made here, unless there is
    one that this plan has used). `cuda` as in `engine.executor.weight_ring.WeightRing`."""

    def __init__(
        self,
        plan: Plan,
        attention: Attention,
        slot_bytes: int,
        device: torch.device,
        cuda: Any = None,
        stash: Stash | None = None,
    ) -> None:
        self.plan, self.attention, self.device = plan, attention, device
        self.fixed_order = attention.deterministic and device.type == "cuda"  # the CPU's order is fixed as it is
        if self.fixed_order and plan.compiled:
            compile_alike()
        self.before, self.of_text, self.after = (_compiled(part) if plan.compiled else part for part in BLOCK)
        self.any_size = plan.compiled and plan.any_size
        self.e4m3_as_bytes = plan.precision == "qfloat8" and not _reads_e4m3(device)
        if cuda is None and device.type == "cuda":
            cuda = torch.cuda
        self.ring = WeightRing(slot_bytes, plan.slots, device, cuda)
        self.stash = stash or (
            KeptActivations()
            if plan.stash == "device"
            else OffloadedActivations(device, cuda, stay=plan.stash_on_device)
        )


class _Attention(torch.autograd.Function):
    """Self-attention of a block whose graph is kept."""

    @staticmethod
    def forward(ctx: Any, attention: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, lse = attention.forward(q, k, v)
        ctx.attention = attention
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return None, *ctx.attention.backward(grad, *ctx.saved_tensors)


@dataclass
class _Call:
    """What all blocks of one pass share."""

    text_BSD: torch.Tensor
    time_B6D: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    strength: torch.Tensor


class BlockExecutor:
    """One expert, run as the machinery's plan says.

    Resident blocks lie on the device for good; of these, kept ones also keep their graph from the forward.
    """

    def __init__(self, weights: ExpertWeights, machinery: ExecutorResources) -> None:
        plan = machinery.plan
        self.blocks = len(weights.masters)
        resident = min(plan.resident, self.blocks)
        self.weights, self.machinery, self.device = weights, machinery, machinery.device
        self.heads = weights.stem.config.num_attention_heads
        # Residents are spread evenly, so that the copies of the others find time between them.
        chosen = [i for i in range(self.blocks) if (i + 1) * resident // self.blocks > i * resident // self.blocks]
        self._resident = {i: torch.cat([piece.to(self.device) for piece in weights.pieces(i)]) for i in chosen}
        self._chosen = chosen
        self._masters: dict[Key, tuple[torch.Tensor, ...]] = {
            (weights.name, i): weights.pieces(i) for i in range(self.blocks)
        }

    # --- the whole model ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, *, strength: float = 1.0
    ) -> torch.Tensor:
        """The velocity (B, 16, F, h, w), without a graph. `strength` scales the LoRA; 0 is the base."""
        with fixed_order(self.machinery.fixed_order):
            h, temb, call = self._enter(x_BCFhw, timestep_B, text_BSD, strength)
            for block, frozen in self._visits(range(self.blocks)):
                h = self._forward_block(block, frozen, h, call)[0]
            return self._leave(h, temb, x_BCFhw.shape)

    def forward_backward(
        self,
        x_BCFhw: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BSD: torch.Tensor,
        loss: LossFn,
        *,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """Add the gradient of `loss(prediction)` to the LoRA; returns the detached loss."""
        with fixed_order(self.machinery.fixed_order):
            graphs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of the kept blocks: input leaf, output
            with torch.no_grad():
                h, temb, call = self._enter(x_BCFhw, timestep_B, text_BSD, strength)
                kept = self._kept(h.shape[0] * h.shape[1])
                self.machinery.stash.begin(self.blocks - len(kept))
                order = [*range(self.blocks), *reversed(range(self.blocks))]
                visits = self._visits(order)
                for _ in range(self.blocks):
                    block, frozen = next(visits)
                    if block in kept:
                        graphs[block] = self._kept_block(block, frozen, h, call)
                        h = graphs[block][1].detach()
                    else:
                        y, a, lse = self._forward_block(block, frozen, h, call)
                        self.machinery.stash.put(block, (h, a, lse))
                        h = y
                        del y, a, lse
                self.machinery.stash.flush()
            h = h.detach().requires_grad_(True)
            value = loss(self._leave(h, temb, x_BCFhw.shape))
            value.backward()
            g_BTD = h.grad
            assert g_BTD is not None
            del h
            ahead = iter([block for block in reversed(range(self.blocks)) if block not in kept][1:])
            for block, frozen in visits:
                if block in kept:
                    leaf, y = graphs.pop(block)
                    y.backward(g_BTD)
                    assert leaf.grad is not None
                    g_BTD = leaf.grad
                    del leaf, y
                else:
                    x, a, lse = self.machinery.stash.get(block)
                    self.machinery.stash.prefetch(next(ahead, -1))
                    self._backward_block(block, frozen, x, a, lse, g_BTD, call)
                    del x, a, lse
            return value.detach()

    def _kept(self, rows: int) -> set[int]:
        """The blocks that keep their graph in a step of so many rows."""
        count = min(self.machinery.plan.kept_for(rows), self.blocks)
        assert count <= len(self._chosen), "a kept graph needs its weights to stay"
        return set(self._chosen[len(self._chosen) - count :])

    def _visits(self, order: "range | list[int]") -> Iterator[tuple[int, Frozen]]:
        """Blocks in order, each with its tensors on the device; the slot is released when the next one is asked for."""
        streamed = [(self.weights.name, i) for i in order if i not in self._resident]
        self.machinery.ring.begin(streamed, self._masters)
        turn = 0
        for block in order:
            if block in self._resident:
                yield (
                    block,
                    self.weights.on_device(block, self._resident[block], e4m3_as_bytes=self.machinery.e4m3_as_bytes),
                )
                continue
            yield (
                block,
                self.weights.on_device(
                    block, self.machinery.ring.take(turn), e4m3_as_bytes=self.machinery.e4m3_as_bytes
                ),
            )
            self.machinery.ring.release(turn)
            turn += 1

    def _enter(
        self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, strength: float
    ) -> tuple[torch.Tensor, torch.Tensor, _Call]:
        """Patches, time and text embeddings, rope: what diffusers' forward does before its blocks."""
        stem = self.weights.stem
        x = x_BCFhw.to(stem.patch_embedding.weight.dtype)
        cos, sin = stem.rope(x)
        h_BTD = stem.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
        temb, time, text, _ = stem.condition_embedder(timestep_B, text_BSD.to(x.dtype), None)
        # filled there: no copy that the launches would wait for
        factor = torch.full((), self.weights.scaling * strength, device=self.device)
        return h_BTD, temb, _Call(text, time.unflatten(1, (6, -1)), cos, sin, factor)

    def _leave(self, h_BTD: torch.Tensor, temb: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Final norm, projection and unpatchify: what diffusers' forward does after its blocks. (B, 16, F, h, w)."""
        stem, (B, _, F, h, w) = self.weights.stem, shape
        shift, scale = (stem.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        h_BTD = (stem.norm_out(h_BTD.float()) * (1 + scale) + shift).type_as(h_BTD)
        pt, ph, pw = stem.config.patch_size
        out = stem.proj_out(h_BTD).reshape(B, F // pt, h // ph, w // pw, pt, ph, pw, -1)
        return out.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    # --- one block ------------------------------------------------------------------------------------------------

    def _before(self, block: int, frozen: Frozen, x_BTD: torch.Tensor, call: _Call) -> Any:
        """q, k, v (B, T, N, K) of all tokens."""
        m, (weights, plain, recovery) = self.machinery, frozen
        if m.any_size:
            _any_size(x_BTD, call.cos, call.sin, dims=(0, 1))
            _any_size(call.time_B6D, dims=(0,))
        return m.before(
            x_BTD,
            call.time_B6D,
            call.cos,
            call.sin,
            weights,
            plain,
            self.weights.lora[block],
            recovery,
            call.strength,
            self.heads,
            m.plan.precision,
        )

    def _of_text(self, block: int, frozen: Frozen, call: _Call) -> Any:
        """The cross-attention's keys and values (B, S, N, K)."""
        m, (weights, plain, recovery) = self.machinery, frozen
        if m.any_size:
            _any_size(call.text_BSD, dims=(0,))
        return m.of_text(
            call.text_BSD,
            weights,
            plain,
            self.weights.lora[block],
            recovery,
            call.strength,
            self.heads,
            m.plan.precision,
        )

    def _after(
        self,
        block: int,
        frozen: Frozen,
        x: torch.Tensor,
        a: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        call: _Call,
    ) -> Any:
        """The block's output for a run of tokens, from its input and its attention's output there."""
        m, (weights, plain, recovery) = self.machinery, frozen
        if m.any_size:
            _any_size(x, a, dims=(0, 1))
            _any_size(*text, call.time_B6D, dims=(0,))
        return m.after(
            x,
            a,
            *text,
            call.time_B6D,
            weights,
            plain,
            self.weights.lora[block],
            recovery,
            call.strength,
            self.heads,
            m.plan.precision,
        )

    def _runs(self, tokens: int) -> list[slice]:
        """The plan's near-equal runs of tokens."""
        size = -(-tokens // self.machinery.plan.chunks(tokens))
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]

    def _forward_block(
        self, block: int, frozen: Frozen, x_BTD: torch.Tensor, call: _Call
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(output, attention's output (B, T, D), logsumexp), without a graph."""
        out, lse = self.machinery.attention.forward(
            *(t.transpose(1, 2) for t in self._before(block, frozen, x_BTD, call))
        )
        a_BTD, text = out.transpose(1, 2).flatten(2, 3), self._of_text(block, frozen, call)
        runs = self._runs(x_BTD.shape[1])
        if len(runs) == 1:
            return self._after(block, frozen, x_BTD, a_BTD, text, call), a_BTD, lse
        y_BTD = torch.empty_like(x_BTD)
        for run in runs:
            y_BTD[:, run] = self._after(block, frozen, x_BTD[:, run], a_BTD[:, run], text, call)
        return y_BTD, a_BTD, lse

    def _kept_block(
        self, block: int, frozen: Frozen, x_BTD: torch.Tensor, call: _Call
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(input leaf, output with its graph)."""
        with torch.enable_grad():
            leaf = x_BTD.detach().requires_grad_(True)
            q, k, v = (t.transpose(1, 2) for t in self._before(block, frozen, leaf, call))
            a = _Attention.apply(self.machinery.attention, q, k, v).transpose(1, 2).flatten(2, 3)
            return leaf, self._after(block, frozen, leaf, a, self._of_text(block, frozen, call), call)

    def _backward_block(
        self,
        block: int,
        frozen: Frozen,
        x_BTD: torch.Tensor,
        a_BTD: torch.Tensor,
        lse: torch.Tensor,
        g_BTD: torch.Tensor,
        call: _Call,
    ) -> None:
        """Turn `g`, the gradient of the block's output, into that of its input; the LoRA's gradients are added to its
        parameters."""

        def heads(t_BTD: torch.Tensor) -> torch.Tensor:
            return t_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)

        with torch.enable_grad():
            text = self._of_text(block, frozen, call)
        text_leaves = tuple(t.detach().requires_grad_(True) for t in text)
        ga_BTD = torch.empty_like(a_BTD)
        for run in self._runs(x_BTD.shape[1]):
            x, a = (t[:, run].detach().requires_grad_(True) for t in (x_BTD, a_BTD))
            with torch.enable_grad():
                y = self._after(block, frozen, x, a, text_leaves, call)
            y.backward(g_BTD[:, run])
            assert x.grad is not None and a.grad is not None
            g_BTD[:, run], ga_BTD[:, run] = x.grad, a.grad
            del x, a, y
        torch.autograd.backward(text, tuple(t.grad for t in text_leaves))

        x = x_BTD.detach().requires_grad_(True)
        with torch.enable_grad():
            qkv = self._before(block, frozen, x, call)
        # the graph without q, k and v themselves, which only attention needs
        edges = [get_gradient_edge(t) for t in qkv]
        q, k, v = (t.detach().transpose(1, 2) for t in qkv)
        grads = self.machinery.attention.backward(heads(ga_BTD), q, k, v, heads(a_BTD), lse)
        del q, k, v, qkv, ga_BTD
        torch.autograd.backward(edges, tuple(t.transpose(1, 2) for t in grads))
        assert x.grad is not None
        g_BTD += x.grad
