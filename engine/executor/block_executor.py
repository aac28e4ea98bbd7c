"""Runs an expert block by block under a memory plan. The frozen weights pass through a ring of device buffers, or stay.

Forward, without a graph: each block's input and its attention's output are saved, on the device or in host memory, and
what else the plan says. Backward, last block first: the block is recomputed around what was saved, so attention itself
runs once, and up to its last linear, whose product nothing needs; what follows the attention, whose working set is the
largest, may be cut into chunks of tokens. It ends with the first block that trains: no gradient is asked for below. No
graph of autograd's spans more than one part of one block. Where the plan says so, a block of a short clip is one CUDA
graph each way (`engine.executor.block_graphs`). What both experts share is in `engine.executor.executor_resources`, the
loss in `engine.training.objective`.

Where several ranks share a clip (`engine.executor.token_split`), T counts this rank's tokens, and each rank adds to the
LoRA's gradients what its own tokens give: their sum over the ranks is the clip's.

B batch, C channels, F h w latent shape, T tokens, S text tokens, D width, N heads, K head width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge

from engine.executor.block_graphs import Stage
from engine.executor.executor_resources import ExecutorResources, mark_frozen
from engine.executor.expert_weights import ExpertWeights
from engine.executor.token_split import Share, TokenSplit
from engine.executor.weight_ring import Key
from engine.system.device import fixed_order
from engine.wan.attention import Attention
from engine.wan.block import BEFORE_LINEARS, TEXT_LINEARS, BlockWeights, PassInputs

LossFn = Callable[[torch.Tensor], torch.Tensor]


def _attention_forward(
    attention: Attention, share: Share | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention's output (B, T, N, K) and its logsumexp: of this rank's heads where ranks share a clip."""
    if share is None:
        out, lse = attention.forward(*(t.transpose(1, 2) for t in (q, k, v)))
        return out.transpose(1, 2), lse
    out, lse = attention.forward(*(share.to_heads(t).transpose(1, 2) for t in (q, k, v)))
    return share.to_tokens(out.transpose(1, 2)), lse


def _attention_backward(
    attention: Attention, share: Share | None, grad: torch.Tensor, saved: Sequence[torch.Tensor], lse: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k, v (B, T, N, K); `saved` are these and the output."""
    if share is None:
        g, q, k, v, out = (t.transpose(1, 2) for t in (grad, *saved))
        return tuple(t.transpose(1, 2) for t in attention.backward(g, q, k, v, out, lse))
    g, q, k, v, out = (share.to_heads(t).transpose(1, 2) for t in (grad, *saved))
    grads = attention.backward(g, q, k, v, out, lse)
    del g, q, k, v, out
    return tuple(share.to_tokens(t.transpose(1, 2)) for t in grads)


class _Attention(torch.autograd.Function):
    """Self-attention of a block whose graph is kept."""

    @staticmethod
    def forward(
        ctx: Any, attention: Attention, share: Share | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        out, lse = _attention_forward(attention, share, q, k, v)
        ctx.attention, ctx.share = attention, share
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        *saved, lse = ctx.saved_tensors
        return None, None, *_attention_backward(ctx.attention, ctx.share, grad, saved, lse)


class BlockExecutor:
    """One expert, run as the plan of its resources says.

    Resident blocks lie on the device for good; of these, kept ones also keep their graph from the forward.
    """

    def __init__(self, weights: ExpertWeights, resources: ExecutorResources) -> None:
        self.weights, self.resources, self.device = weights, resources, resources.device
        self.blocks = len(weights.blocks.buffers)
        resident = min(resources.plan.resident, self.blocks)
        # Residents are spread evenly, so that the copies of the others find time between them.
        self._chosen = [
            i for i in range(self.blocks) if (i + 1) * resident // self.blocks > i * resident // self.blocks
        ]
        self._resident = {
            i: torch.empty(weights.block_bytes, dtype=torch.uint8, device=self.device) for i in self._chosen
        }
        self._unfilled = set(self._chosen)  # filled at their first visit: they may still be read from the disk

    # --- the whole model ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        x_BCFhw: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BSD: torch.Tensor,
        *,
        strength: float = 1.0,
        split: TokenSplit | None = None,
    ) -> torch.Tensor:
        """The velocity (B, 16, F, h, w), without a graph. `strength` scales the LoRA; 0 is the base. The ranks of a
        `split` are given the same, and all have the whole answer."""
        with fixed_order(self.resources.fixed_order):
            h, temb, given, share = self._enter(x_BCFhw, timestep_B, text_BSD, strength, split)
            stage = self._stage(h, given, share)
            for _, weights in self._visits(range(self.blocks), given.strength):
                h = self._forward(stage, weights, h, given, share)[0]
            return self._leave(h, temb, share, x_BCFhw.shape)

    def forward_backward(
        self,
        x_BCFhw: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BSD: torch.Tensor,
        loss: LossFn,
        *,
        strength: float = 1.0,
        split: TokenSplit | None = None,
    ) -> torch.Tensor:
        """Add the gradient of `loss(prediction)` to the LoRA; returns the detached loss. The ranks of a `split` get
        the same: each adds its part of the gradient, and all return the whole loss."""
        activations = self.resources.activations
        lowest = next((i for i, lora in enumerate(self.weights.lora) if lora), 0)
        with fixed_order(self.resources.fixed_order):
            graphs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of the kept blocks: input leaf, output
            with torch.no_grad():
                h, temb, given, share = self._enter(x_BCFhw, timestep_B, text_BSD, strength, split)
                stage = self._stage(h, given, share)
                # as many as the rank keeps that has a token more: plans are made for that one
                tokens = share.most if share else h.shape[1]
                kept = {block for block in self._kept(h.shape[0] * tokens) if block >= lowest}
                back = list(reversed(range(lowest, self.blocks)))
                activations.begin(len(back) - len(kept))
                visits = self._visits([*range(self.blocks), *back], given.strength)
                for _ in range(self.blocks):
                    block, weights = next(visits)
                    if block in kept:
                        graphs[block] = self._kept_block(weights, h, given, share)
                        h = graphs[block][1].detach()
                    else:
                        y, *saved = self._forward(stage, weights, h, given, share)
                        if block >= lowest:
                            activations.put(block, (h, *saved))
                        h = y
                        del y, saved
                activations.flush()
            h = h.detach().requires_grad_(True)
            value = loss(self._leave(h, temb, share, x_BCFhw.shape))
            value.backward()
            g_BTD = h.grad
            assert g_BTD is not None
            del h
            ahead = iter([block for block in back if block not in kept][1:])
            for block, weights in visits:
                if block in kept:
                    leaf, y = graphs.pop(block)
                    y.backward(g_BTD)
                    assert leaf.grad is not None
                    g_BTD = leaf.grad
                    del leaf, y
                else:
                    x, a, lse, *hidden = activations.get(block)
                    activations.prefetch(next(ahead, -1))
                    if stage:
                        stage.backward(weights, (x, a, lse), g_BTD, self._backward_block)
                    else:
                        self._backward_block(weights, x, a, lse, g_BTD, given, share, hidden)
                    del x, a, lse, hidden
            return value.detach()

    def _kept(self, rows: int) -> set[int]:
        """The blocks that keep their graph in a step of so many rows."""
        count = min(self.resources.plan.kept_for(rows), self.blocks)
        assert count <= len(self._chosen), "a kept graph needs its weights to stay"
        return set(self._chosen[len(self._chosen) - count :])

    def uses(self, clips: int, tokens: int, most: int) -> list[int]:
        """How often a pass back adds to the gradient of each of the LoRA's parameters, in their order. `tokens`: of
        each clip, on the rank that is asked about; `most`: on the one that has most."""
        kept, chunks = self._kept(clips * most), len(self._chunks(tokens))
        return [
            1 if block in kept or name in (*BEFORE_LINEARS, *TEXT_LINEARS) else chunks
            for block, lora in enumerate(self.weights.lora)
            for name, pair in lora.items()
            for _ in pair
        ]

    def _stage(self, h_BTD: torch.Tensor, given: PassInputs, share: Share | None) -> Stage | None:
        """Where blocks of this pass run as CUDA graphs. An accelerator's own tensors lie somewhere else every time, and
        what ranks tell each other is not recorded."""
        graphs, weights = self.resources.graphs, self.weights
        if graphs is None or share or weights.accelerator or weights.shifts or len(self._chunks(h_BTD.shape[1])) > 1:
            return None
        return graphs.stage(h_BTD, given, weights.outer.config.num_attention_heads)

    def _visits(self, order: Sequence[int], strength: torch.Tensor) -> Iterator[tuple[int, BlockWeights]]:
        """Blocks in order, each with its tensors on the device; a ring buffer is released when the next is asked
        for."""
        ring = self.resources.ring
        ring.begin([(self.weights.name, i) for i in order if i not in self._resident], self._pieces)
        turn = 0
        for block in order:
            if block in self._resident:
                yield block, self._on_device(block, self._filled(block), strength)
                continue
            yield block, self._on_device(block, ring.take(turn), strength)
            ring.release(turn)
            turn += 1

    def _pieces(self, key: Key) -> tuple[torch.Tensor, ...]:
        return self.weights.pieces(key[1])

    def _filled(self, block: int) -> torch.Tensor:
        """A resident block."""
        buffer, offset = self._resident[block], 0
        if block in self._unfilled:
            for piece in self.weights.pieces(block):
                buffer[offset : offset + piece.numel()].copy_(piece, non_blocking=True)
                offset += piece.numel()
            self._unfilled.remove(block)
        return buffer

    def _on_device(self, block: int, buffer: torch.Tensor, strength: torch.Tensor) -> BlockWeights:
        plan, as_bytes = self.resources.plan, self.resources.e4m3_as_bytes
        weights = self.weights.on_device(block, buffer, strength, plan.precision, e4m3_as_bytes=as_bytes)
        if plan.compiled:
            mark_frozen(weights)
        return weights

    def _enter(
        self,
        x_BCFhw: torch.Tensor,
        timestep_B: torch.Tensor,
        text_BSD: torch.Tensor,
        strength: float,
        split: TokenSplit | None,
    ) -> tuple[torch.Tensor, torch.Tensor, PassInputs, Share | None]:
        """Patches, time and text embeddings, rope: what diffusers' forward does before its blocks."""
        outer = self.weights.outer
        x = x_BCFhw.to(outer.patch_embedding.weight.dtype)
        cos, sin = outer.rope(x)
        h_BTD = outer.patch_embedding(x).flatten(2).transpose(1, 2)
        share = split.of(h_BTD.shape[1]) if split else None
        if share:  # positions stay those of the whole clip
            h_BTD, cos, sin = h_BTD[:, share.mine], cos[:, share.mine], sin[:, share.mine]
        temb, time, text, _ = outer.condition_embedder(timestep_B, text_BSD.to(x.dtype), None)
        # filled there: no copy that the launches would wait for
        factor = torch.full((), self.weights.scaling * strength, device=self.device)
        return h_BTD.contiguous(), temb, PassInputs(text, time.unflatten(1, (6, -1)), cos, sin, factor), share

    def _leave(self, h_BTD: torch.Tensor, temb: torch.Tensor, share: Share | None, shape: torch.Size) -> torch.Tensor:
        """Final norm, projection and unpatchify: what diffusers' forward does after its blocks. (B, 16, F, h, w)."""
        outer, (B, _, F, h, w) = self.weights.outer, shape
        shift, scale = (outer.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        h_BTD = (outer.norm_out(h_BTD.float()) * (1 + scale) + shift).type_as(h_BTD)
        pt, ph, pw = outer.config.patch_size
        out_BTC = outer.proj_out(h_BTD)
        if share:
            out_BTC = share.whole(out_BTC)
        out = out_BTC.reshape(B, F // pt, h // ph, w // pw, pt, ph, pw, -1)
        return out.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    # --- one block ------------------------------------------------------------------------------------------------

    def _chunks(self, tokens: int) -> list[slice]:
        """The plan's near-equal runs of tokens."""
        size = -(-tokens // self.resources.plan.chunks(tokens))
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]

    def _forward(
        self,
        stage: Stage | None,
        weights: BlockWeights,
        x_BTD: torch.Tensor,
        given: PassInputs,
        share: Share | None,
    ) -> tuple[torch.Tensor, ...]:
        if stage:
            return stage.forward(weights, x_BTD, self._forward_block)
        return self._forward_block(weights, x_BTD, given, share)

    def _forward_block(
        self, weights: BlockWeights, x_BTD: torch.Tensor, given: PassInputs, share: Share | None = None
    ) -> tuple[torch.Tensor, ...]:
        """(output, attention's output (B, T, D), logsumexp), without a graph; then, where the plan saves them, the
        hidden states behind self-attention and behind the attention to the text (B, T, D), which a pass without a
        backward lets go: it runs the same code."""
        resources = self.resources
        out, lse = _attention_forward(resources.attention, share, *resources.pre_attention(x_BTD, given, weights))
        a_BTD, text, chunks = out.flatten(2, 3), resources.text_kv(given, weights), self._chunks(x_BTD.shape[1])
        if len(chunks) == 1:
            y_BTD, *hidden = resources.post_attention(x_BTD, a_BTD, text, given, weights)
            return y_BTD, a_BTD, lse, *hidden
        whole = [torch.empty_like(x_BTD) for _ in range(3 if resources.plan.save_hidden else 1)]
        for chunk in chunks:
            parts = resources.post_attention(x_BTD[:, chunk], a_BTD[:, chunk], text, given, weights)
            for tensor, part in zip(whole, parts, strict=True):
                tensor[:, chunk] = part
        return whole[0], a_BTD, lse, *whole[1:]

    def _kept_block(
        self, weights: BlockWeights, x_BTD: torch.Tensor, given: PassInputs, share: Share | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(input leaf, output with its graph)."""
        resources = self.resources
        with torch.enable_grad():
            leaf = x_BTD.detach().requires_grad_(True)
            q, k, v = resources.pre_attention(leaf, given, weights, kept=True)
            a = _Attention.apply(resources.attention, share, q, k, v).flatten(2, 3)
            text = resources.text_kv(given, weights)
            return leaf, resources.post_attention(leaf, a, text, given, weights, kept=True)[0]

    def _backward_block(
        self,
        weights: BlockWeights,
        x_BTD: torch.Tensor,
        a_BTD: torch.Tensor,
        lse: torch.Tensor,
        g_BTD: torch.Tensor,
        given: PassInputs,
        share: Share | None = None,
        hidden: Sequence[torch.Tensor] = (),
    ) -> None:
        """Turn `g`, the gradient of the block's output, into that of its input; the LoRA's gradients are added to its
        parameters. `hidden`: the states inside the block that its forward saved."""
        resources = self.resources

        def heads(t_BTD: torch.Tensor) -> torch.Tensor:
            return t_BTD.unflatten(2, (weights.heads, -1))

        with torch.enable_grad():
            text = resources.text_kv(given, weights)
        # where neither has a LoRA, nothing before them learns
        text_leaves = tuple(t.detach().requires_grad_(t.requires_grad) for t in text)
        chunks = self._chunks(x_BTD.shape[1])
        ga_BTD = torch.empty_like(a_BTD) if len(chunks) > 1 else None
        for chunk in chunks:
            x, a = (t[:, chunk].detach().requires_grad_(True) for t in (x_BTD, a_BTD))
            with torch.enable_grad():
                y = resources.post_attention_again(
                    x, a, tuple(t[:, chunk] for t in hidden), text_leaves, given, weights
                )
            y.backward(g_BTD[:, chunk])
            assert x.grad is not None and a.grad is not None
            if ga_BTD is None:  # of all tokens at once: nothing is copied, and what g held is let go
                g_BTD.data = x.grad
                ga_BTD = a.grad
            else:
                g_BTD[:, chunk], ga_BTD[:, chunk] = x.grad, a.grad
            del x, a, y
        roots = [t for t in text if t.requires_grad]
        if roots:
            torch.autograd.backward(roots, [leaf.grad for leaf in text_leaves if leaf.requires_grad])

        x = x_BTD.detach().requires_grad_(True)
        with torch.enable_grad():
            qkv = resources.pre_attention_again(x, g_BTD, given, weights)
        # the graph without q, k and v themselves, which only attention needs
        edges = [get_gradient_edge(t) for t in qkv]
        saved = [*(t.detach() for t in qkv), heads(a_BTD)]
        del qkv
        assert ga_BTD is not None
        grads = _attention_backward(resources.attention, share, heads(ga_BTD), saved, lse)
        del saved, ga_BTD
        torch.autograd.backward(edges, grads)
        assert x.grad is not None
        g_BTD.data = x.grad
