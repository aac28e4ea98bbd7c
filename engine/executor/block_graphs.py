"""Blocks of short clips as CUDA graphs: what a block launches, some hundred kernels each way, is recorded once per
device buffer that weights lie in, and queued by one call from then on. Short clips wait for the launching thread
otherwise.

A graph reads and writes fixed addresses. Weights have them (the ring's buffers, the residents'); all else of a visit is
copied to such and back: its tensors, what the pass is given, the block's LoRA and its gradients. Kernels and their
order are those of the launched block, and so are the bits. All graphs share one pool of memory for what they work in:
they run one after the other, and nothing of one is needed by the next.

Not for passes whose blocks are cut into chunks: there a parameter is used several times, and every use is a gradient by
itself (`engine.parallel.ordered_sum`).

B batch, T tokens, D width, N heads.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from engine.wan.block import BlockWeights, Lora, PassInputs

MOST_SHAPES = 16  # sizes of clips and previews that get graphs; later ones are launched

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]  # records what a function launches, without running it
Visit = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # output or input, attention's output, logsumexp
# a block's own functions: of its input, and of its input, attention's output, logsumexp and the output's gradient
Forward = Callable[[BlockWeights, torch.Tensor, PassInputs], Visit]
Backward = Callable[[BlockWeights, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, PassInputs], None]


class CudaCapture:
    """Records CUDA graphs, all of them in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # of this thread alone: others may go on allocating
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # it only says that the recording has failed
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay


class _StagedLora:
    """Fixed addresses for the LoRA of any block that trains the same linears at the same ranks, and its gradients."""

    def __init__(self, lora: Lora) -> None:
        self.lora: Lora = {
            name: (torch.nn.Parameter(torch.empty_like(a)), torch.nn.Parameter(torch.empty_like(b)))
            for name, (a, b) in lora.items()
        }
        self._leaves = [p for pair in self.lora.values() for p in pair]
        self._grads = [torch.empty_like(p) for p in self._leaves]

    def take(self, lora: Lora) -> None:
        if self._leaves:
            with torch.no_grad():
                torch._foreach_copy_(self._leaves, [p for pair in lora.values() for p in pair])

    def collect(self) -> None:
        """The leaves' gradients go where they stay."""
        with torch.no_grad():
            for leaf, kept in zip(self._leaves, self._grads, strict=True):
                assert leaf.grad is not None
                kept.copy_(leaf.grad)
                leaf.grad = None

    def give(self, lora: Lora) -> None:
        """Add them to the parameters' own by autograd, as a launched block does: hooks are called."""
        if self._leaves:
            torch.autograd.backward([p for pair in lora.values() for p in pair], self._grads)


class BlockGraphs:
    """The graphs of both experts under one plan, for passes of up to `rows` rows (batch times tokens)."""

    def __init__(self, rows: int, capture: Capture) -> None:
        self.rows, self.capture = rows, capture
        self._stages: dict[tuple[torch.Size, ...], Stage] = {}
        self._loras: dict[tuple[tuple[str, torch.Size, torch.Size], ...], _StagedLora] = {}
        self._flat: dict[str, torch.Tensor] = {}  # one pass at a time: all shapes share these

    def stage(self, x_BTD: torch.Tensor, given: PassInputs, heads: int) -> "Stage | None":
        """Where a pass of this shape has its fixed addresses; None where its blocks are launched."""
        if x_BTD.shape[0] * x_BTD.shape[1] > self.rows:
            return None
        key = (x_BTD.shape, *(t.shape for t in given))
        if key not in self._stages:
            if len(self._stages) == MOST_SHAPES:
                return None
            self._stages[key] = Stage(self, x_BTD, given, heads)
        stage = self._stages[key]
        for fixed, now in zip(stage.given, given, strict=True):
            fixed.copy_(now)
        return stage

    def lora(self, lora: Lora) -> _StagedLora:
        key = tuple((name, a.shape, b.shape) for name, (a, b) in lora.items())
        if key not in self._loras:
            self._loras[key] = _StagedLora(lora)
        return self._loras[key]

    def fixed(self, name: str, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A part of the memory of that name: (B, T, ...) or (B, N, T)."""
        count, width = torch.Size(shape).numel(), like.shape[2]
        if name not in self._flat:
            self._flat[name] = torch.empty(self.rows * width, dtype=like.dtype, device=like.device)
        return self._flat[name][:count].view(shape)


class Stage:
    """Passes of one shape. A kind of block is launched the first time, which compiles it and sets libraries up, and
    recorded from then on."""

    def __init__(self, graphs: BlockGraphs, x_BTD: torch.Tensor, given: PassInputs, heads: int) -> None:
        self._graphs = graphs
        batch, tokens, _ = x_BTD.shape
        self._x, self._a, self._y = (graphs.fixed(name, x_BTD, tuple(x_BTD.shape)) for name in "xay")
        self._lse = torch.empty((batch, heads, tokens), device=x_BTD.device)
        self.given = PassInputs(*(torch.empty_like(t) for t in given))
        self._launched: set[tuple[str, int]] = set()
        self._recorded: dict[tuple[Any, ...], Replay] = {}

    def _ready(self, kind: str, lora: _StagedLora) -> bool:
        """Whether such a block has been launched before."""
        key = kind, id(lora)
        known = key in self._launched
        self._launched.add(key)
        return known

    def _run(self, kind: str, block: BlockWeights, lora: _StagedLora, run: Callable[[BlockWeights], None]) -> None:
        parts = [*(t for packed in block.weights.values() for t in packed), *block.plain.values()]
        parts += [t for pair in block.recovery.values() for t in pair]
        key = kind, id(lora), *(t.data_ptr() for t in parts)
        if key not in self._recorded:
            fixed = block._replace(lora=lora.lora, strength=self.given.strength)
            self._recorded[key] = self._graphs.capture(lambda: run(fixed))
        self._recorded[key]()

    def forward(
        self,
        block: BlockWeights,
        x_BTD: torch.Tensor,
        launch: Forward,
    ) -> Visit:
        """What `launch` gives for a block: its output, its attention's output and logsumexp."""
        lora = self._graphs.lora(block.lora)
        if not self._ready("forward", lora):
            return launch(block, x_BTD, self.given)
        lora.take(block.lora)
        self._x.copy_(x_BTD)

        def run(fixed: BlockWeights) -> None:
            for kept, made in zip((self._y, self._a, self._lse), launch(fixed, self._x, self.given), strict=True):
                kept.copy_(made)

        self._run("forward", block, lora, run)
        return self._y.clone(), self._a.clone(), self._lse.clone()

    def backward(
        self,
        block: BlockWeights,
        visit: Visit,
        g_BTD: torch.Tensor,
        launch: Backward,
    ) -> None:
        """What `launch` does for a block: turn g into the gradient of its input, and add to those of its LoRA."""
        lora = self._graphs.lora(block.lora)
        if not self._ready("backward", lora):
            launch(block, *visit, g_BTD, self.given)
            return
        lora.take(block.lora)
        for fixed, now in zip((self._x, self._a, self._lse, self._y), (*visit, g_BTD), strict=True):
            fixed.copy_(now)

        def run(block: BlockWeights) -> None:
            launch(block, self._x, self._a, self._lse, self._y, self.given)
            lora.collect()

        self._run("backward", block, lora, run)
        g_BTD.copy_(self._y)
        lora.give(block.lora)
