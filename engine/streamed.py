"""Runs an expert block by block under a memory plan. The frozen weights pass through a ring of device slots, or stay.

Forward, without a graph: each block's input and its attention's output go to the stash. Backward, last block first: the
block is recomputed around the stashed attention, so attention itself runs once; the token-wise parts may be cut into
chunks, so that their working set does not grow with the clip. No graph spans more than one part of one block.

B batch, C channels, F h w latent shape, T tokens, S text tokens, D width, N heads, K head width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from engine import attention
from engine.block import Lora, Plain, Weights, after, before
from engine.masters import Layout
from engine.ring import Key, Ring
from engine.stash import DeviceStash, HostStash, Stash
from presets.plan import Plan

LossFn = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertWeights:
    """One expert's parts: the diffusers model without its blocks, the packed blocks in host memory, and its branches.

    `lora` is what trains (empty for an expert that does not), `scaling` its alpha / rank; `recovery` is frozen. `shifts` are
    added to a block's plain tensors (for previews with an accelerator).
    """

    name: str
    stem: WanTransformer3DModel
    masters: list[torch.Tensor]
    layout: Layout
    lora: list[Lora]
    scaling: float
    recovery: Sequence[Lora]
    shifts: Sequence[Plain] = ()


@cache
def _compiled(function: Any) -> Any:
    """Compiled once per process: both experts, all blocks, every plan. Shapes that vary become symbolic by themselves."""
    return torch.compile(function)


class Machinery:
    """What both experts share under one plan: block functions, the ring of slots, the stash."""

    def __init__(self, plan: Plan, backend: str, slot_bytes: int, device: torch.device) -> None:
        self.plan, self.backend, self.device = plan, backend, device
        self.before = _compiled(before) if plan.compiled else before
        self.after = _compiled(after) if plan.compiled else after
        self.ring = Ring(slot_bytes, plan.slots, device)
        self.stash: Stash = DeviceStash() if plan.stash == "device" else HostStash(device)


class _Attention(torch.autograd.Function):
    """Self-attention of a block whose graph is kept."""

    @staticmethod
    def forward(ctx: Any, backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, lse = attention.forward(backend, q, k, v)
        ctx.backend = backend
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return None, *attention.backward(ctx.backend, grad, *ctx.saved_tensors)


@dataclass
class _Call:
    """What all blocks of one pass share."""

    text_BSD: torch.Tensor
    time_B6D: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    strength: torch.Tensor


class StreamedExecutor:
    """One expert, run as the machinery's plan says.

    Resident blocks lie on the device for good; of these, kept ones also keep their graph from the forward.
    """

    def __init__(self, weights: ExpertWeights, machinery: Machinery) -> None:
        plan = machinery.plan
        self.blocks = len(weights.masters)
        resident, kept = min(plan.resident, self.blocks), min(plan.kept, self.blocks)
        assert kept <= resident, "a kept graph needs its weights to stay"
        self.weights, self.machinery, self.device = weights, machinery, machinery.device
        self.heads = weights.stem.config.num_attention_heads
        # Residents are spread evenly, so that the copies of the others find time between them.
        chosen = [i for i in range(self.blocks) if (i + 1) * resident // self.blocks > i * resident // self.blocks]
        self._resident = {i: weights.masters[i].to(self.device) for i in chosen}
        self._kept = set(chosen[len(chosen) - kept :])
        self._masters: dict[Key, torch.Tensor] = {(weights.name, i): m for i, m in enumerate(weights.masters)}

    # --- the whole model ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, *, strength: float = 1.0) -> torch.Tensor:
        """The velocity (B, 16, F, h, w), without a graph. `strength` scales the LoRA; 0 is the base."""
        h, temb, call = self._enter(x_BCFhw, timestep_B, text_BSD, strength)
        for block, weights, plain in self._visits(range(self.blocks)):
            h = self._forward_block(block, weights, plain, h, call, train=False)[0]
        return self._leave(h, temb, x_BCFhw.shape)

    def forward_backward(
        self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, loss: LossFn, *, strength: float = 1.0
    ) -> torch.Tensor:
        """Add the gradient of `loss(prediction)` to the LoRA; returns the detached loss."""
        graphs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of the kept blocks: input leaf, output
        with torch.no_grad():
            h, temb, call = self._enter(x_BCFhw, timestep_B, text_BSD, strength)
            order = [*range(self.blocks), *reversed(range(self.blocks))]
            visits = self._visits(order)
            for _ in range(self.blocks):
                block, weights, plain = next(visits)
                if block in self._kept:
                    graphs[block] = self._kept_block(block, weights, plain, h, call)
                    h = graphs[block][1].detach()
                else:
                    y, a, lse = self._forward_block(block, weights, plain, h, call, train=True)
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
        for block, weights, plain in visits:
            if block in self._kept:
                leaf, y = graphs.pop(block)
                y.backward(g_BTD)
                assert leaf.grad is not None
                g_BTD = leaf.grad
                del leaf, y
            else:
                x, a, lse = self.machinery.stash.get(block)
                self.machinery.stash.prefetch(block - 1)
                g_BTD = self._backward_block(block, weights, plain, x, a, lse, g_BTD, call)
                del x, a, lse
        return value.detach()

    def _visits(self, order: "range | list[int]") -> Iterator[tuple[int, Weights, Plain]]:
        """Blocks in order, each with its tensors on the device; the slot is released when the next one is asked for."""
        streamed = [(self.weights.name, i) for i in order if i not in self._resident]
        self.machinery.ring.begin(streamed, self._masters)
        turn = 0
        for block in order:
            if block in self._resident:
                yield block, *self._tensors(block, self._resident[block])
                continue
            yield block, *self._tensors(block, self.machinery.ring.take(turn)[: self.weights.layout.bytes])
            self.machinery.ring.release(turn)
            turn += 1

    def _tensors(self, block: int, buffer: torch.Tensor) -> tuple[Weights, Plain]:
        weights, plain = self.weights.layout.views(buffer)
        if self.weights.shifts:
            plain |= {name: plain[name] + shift.to(plain[name]) for name, shift in self.weights.shifts[block].items()}
        return weights, plain

    def _enter(self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor, _Call]:
        """Patches, time and text embeddings, rope: what diffusers' forward does before its blocks."""
        stem = self.weights.stem
        x = x_BCFhw.to(stem.patch_embedding.weight.dtype)
        cos, sin = stem.rope(x)
        h_BTD = stem.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
        temb, time, text, _ = stem.condition_embedder(timestep_B, text_BSD.to(x.dtype), None)
        factor = torch.tensor(self.weights.scaling * strength, device=self.device)
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

    def _before(self, block: int, weights: Weights, plain: Plain, x: torch.Tensor, call: _Call, part: slice) -> Any:
        own, m = self.weights, self.machinery
        cos, sin = call.cos[:, part], call.sin[:, part]
        return m.before(x, call.time_B6D, cos, sin, weights, plain, own.lora[block], own.recovery[block], call.strength, self.heads, m.plan.precision)

    def _after(self, block: int, weights: Weights, plain: Plain, x: torch.Tensor, a: torch.Tensor, call: _Call) -> torch.Tensor:
        own, m = self.weights, self.machinery
        out: torch.Tensor = m.after(
            x, a, call.text_BSD, call.time_B6D, weights, plain, own.lora[block], own.recovery[block], call.strength, self.heads, m.plan.precision
        )
        return out

    def _chunks(self, tokens: int) -> list[slice]:
        """Near-equal runs of tokens, none above the plan's chunk."""
        count = math.ceil(tokens / self.machinery.plan.chunk) if self.machinery.plan.chunk else 1
        size = math.ceil(tokens / count)
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]

    def _qkv(self, block: int, weights: Weights, plain: Plain, x_BTD: torch.Tensor, call: _Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v (B, N, T, K) of all tokens, without a graph."""
        parts = [self._before(block, weights, plain, x_BTD[:, part], call, part) for part in self._chunks(x_BTD.shape[1])]
        q, k, v = ((torch.cat(t, dim=1) if len(t) > 1 else t[0]).transpose(1, 2) for t in zip(*parts, strict=True))
        return q, k, v

    def _forward_block(
        self, block: int, weights: Weights, plain: Plain, x_BTD: torch.Tensor, call: _Call, *, train: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(output, attention output (B, T, D), logsumexp), without a graph."""
        out, lse = attention.forward(self.machinery.backend, *self._qkv(block, weights, plain, x_BTD, call))
        a_BTD = out.transpose(1, 2).flatten(2, 3)
        parts = [self._after(block, weights, plain, x_BTD[:, part], a_BTD[:, part], call) for part in self._chunks(x_BTD.shape[1])]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], a_BTD, lse

    def _kept_block(self, block: int, weights: Weights, plain: Plain, x_BTD: torch.Tensor, call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
        """(input leaf, output with its graph)."""
        with torch.enable_grad():
            leaf = x_BTD.detach().requires_grad_(True)
            q, k, v = (t.transpose(1, 2) for t in self._before(block, weights, plain, leaf, call, slice(None)))
            a = _Attention.apply(self.machinery.backend, q, k, v).transpose(1, 2).flatten(2, 3)
            return leaf, self._after(block, weights, plain, leaf, a, call)

    def _backward_block(
        self, block: int, weights: Weights, plain: Plain, x_BTD: torch.Tensor, a_BTD: torch.Tensor, lse: torch.Tensor, g_BTD: torch.Tensor, call: _Call
    ) -> torch.Tensor:
        """The gradient of the block's input; the LoRA's gradients are added to its parameters."""
        chunks = self._chunks(x_BTD.shape[1])
        gx, ga = torch.empty_like(x_BTD), torch.empty_like(a_BTD)
        for part in chunks:
            x, a = (t[:, part].detach().requires_grad_(True) for t in (x_BTD, a_BTD))
            with torch.enable_grad():
                y = self._after(block, weights, plain, x, a, call)
            y.backward(g_BTD[:, part])
            assert x.grad is not None and a.grad is not None
            gx[:, part], ga[:, part] = x.grad, a.grad
            del x, a, y

        def heads(t_BTD: torch.Tensor) -> torch.Tensor:
            return t_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)

        if len(chunks) == 1:
            x = x_BTD.detach().requires_grad_(True)
            with torch.enable_grad():
                q, k, v = self._before(block, weights, plain, x, call, slice(None))
            qh, kh, vh = (t.detach().transpose(1, 2) for t in (q, k, v))
            grads = attention.backward(self.machinery.backend, heads(ga), qh, kh, vh, heads(a_BTD), lse)
            torch.autograd.backward((q, k, v), tuple(t.transpose(1, 2) for t in grads))
            assert x.grad is not None
            return gx.add_(x.grad)

        with torch.no_grad():
            qh, kh, vh = self._qkv(block, weights, plain, x_BTD, call)
            grads = attention.backward(self.machinery.backend, heads(ga), qh, kh, vh, heads(a_BTD), lse)
        del ga, qh, kh, vh
        for part in chunks:
            x = x_BTD[:, part].detach().requires_grad_(True)
            with torch.enable_grad():
                q, k, v = self._before(block, weights, plain, x, call, part)
            torch.autograd.backward((q, k, v), tuple(t[:, :, part].transpose(1, 2) for t in grads))
            assert x.grad is not None
            gx[:, part] += x.grad
            del x, q, k, v
        return gx
