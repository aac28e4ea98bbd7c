"""Blocks of short clips as CUDA graphs: what a block launches, some hundred kernels each way, is recorded once per
device buffer that weights lie in, and queued by one call from then on. Short clips wait for the launching thread
otherwise.

A graph reads and writes fixed addresses. Weights have them (the ring's buffers, the residents'); all else of a visit is
copied to such and back: its tensors, what the pass is given, the block's LoRA and its gradients. Kernels and their
order are those of the launched block, and so are the bits. All graphs share one pool of memory for what they work in:
they run one after the other, and nothing of one is needed by the next.

The first graph of each kind has to give the bits of the launched block. Where it does not, or cannot be recorded
(memory runs out, a kernel that cannot be), all graphs are dropped and blocks are launched from then on: the same bits,
slower.

Not for passes whose blocks are cut into chunks: there a parameter is used several times, and every use is a gradient by
itself (`engine.parallel.ordered_sum`).

B batch, T tokens, D width, N heads.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from engine.wan.block import BlockWeights, Lora, PassInputs

MOST_SHAPES = 16  # sizes of clips and previews that get graphs; later ones are launched

Made = TypeVar("Made")
Replay = Callable[[], None]
Visit = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # output or input, attention's output, logsumexp
# a block's own functions: of its input, and of its input, attention's output, logsumexp and the output's gradient
Forward = Callable[[BlockWeights, torch.Tensor, PassInputs], tuple[torch.Tensor, ...]]
Backward = Callable[[BlockWeights, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, PassInputs], None]


class Capture(Protocol):
    def __call__(self, run: Callable[[], None]) -> Replay:
        """Record what a function launches, without running it. Raises RuntimeError where that cannot be."""
        ...

    def free(self) -> None:
        """Give back the memory of what is dropped: while it records, torch frees none."""
        ...


class CudaCapture:
    """Records CUDA graphs, all of them in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def free(self) -> None:
        torch.cuda.synchronize(self._stream.device)
        torch.cuda.empty_cache()

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
                with suppress(RuntimeError):  # it leaves this out where CUDA has ended the recording by itself
                    torch._C._cuda_endAllocateToPool(self._stream.device.index, self._pool)
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
        self.grads = [torch.empty_like(p) for p in self._leaves]

    def take(self, lora: Lora) -> None:
        if self._leaves:
            with torch.no_grad():
                torch._foreach_copy_(self._leaves, [p for pair in lora.values() for p in pair])

    def collect(self) -> None:
        """The leaves' gradients go where they stay."""
        with torch.no_grad():
            for leaf, kept in zip(self._leaves, self.grads, strict=True):
                assert leaf.grad is not None
                kept.copy_(leaf.grad)
                leaf.grad = None

    def give(self, lora: Lora) -> None:
        """Add them to the parameters' own by autograd, as a launched block does: hooks are called."""
        if self._leaves:
            torch.autograd.backward([p for pair in lora.values() for p in pair], self.grads)


class BlockGraphs:
    """The graphs of both experts under one plan, for passes of up to `rows` rows (batch times tokens). `refused` is
    told why there are none any more; without it that is an error. `prove`: launching a block twice gives the same
    bits, so a graph has to as well."""

    def __init__(
        self, rows: int, capture: Capture, refused: Callable[[str], None] | None = None, *, prove: bool = True
    ) -> None:
        self.rows, self.capture, self.prove, self._refused = rows, capture, prove, refused
        self.given_up = False
        self._stages: dict[tuple[torch.Size, ...], Stage] = {}
        self._loras: dict[tuple[tuple[str, torch.Size, torch.Size], ...], _StagedLora] = {}
        self._flat: dict[str, torch.Tensor] = {}  # one pass at a time: all shapes share these

    @property
    def recorded(self) -> bool:
        return any(stage.recorded for stage in self._stages.values())

    def give_up(self, why: str) -> None:
        """Drop all graphs, and record no more. Not to be called in a handler, whose traceback holds on to tensors."""
        self.given_up = True
        for stage in self._stages.values():
            stage.drop()
        for held in (self._stages, self._loras, self._flat):
            held.clear()
        self.capture.free()
        if self._refused is None:
            raise RuntimeError(f"CUDA graphs: {why}")
        self._refused(why)

    def stage(self, x_BTD: torch.Tensor, given: PassInputs, heads: int) -> "Stage | None":
        """Where a pass of this shape has its fixed addresses; None where its blocks are launched."""
        if self.given_up or x_BTD.shape[0] * x_BTD.shape[1] > self.rows:
            return None
        key = (x_BTD.shape, *(t.shape for t in given))
        if key not in self._stages:
            if len(self._stages) == MOST_SHAPES:
                return None
            made, why = _tried(lambda: Stage(self, x_BTD, given, heads))
            if made is None:
                self.give_up(why)
                return None
            self._stages[key] = made
        stage = self._stages[key]
        for fixed, now in zip(stage.given, given, strict=True):
            fixed.copy_(now)
        return stage

    def lora(self, lora: Lora) -> _StagedLora | None:
        """None where there are no graphs any more."""
        if self.given_up:
            return None
        key = tuple((name, a.shape, b.shape) for name, (a, b) in lora.items())
        if key not in self._loras:
            made, why = _tried(lambda: _StagedLora(lora))
            if made is None:
                self.give_up(why)
                return None
            self._loras[key] = made
        return self._loras[key]

    def fixed(self, name: str, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A part of the memory of that name: (B, T, ...) or (B, N, T)."""
        count, width = torch.Size(shape).numel(), like.shape[2]
        if name not in self._flat:
            self._flat[name] = torch.empty(self.rows * width, dtype=like.dtype, device=like.device)
        return self._flat[name][:count].view(shape)


def _tried(make: Callable[[], Made]) -> tuple[Made | None, str]:
    """(what was made, "") or (None, why it could not be)."""
    try:
        return make(), ""
    except RuntimeError as e:  # torch.OutOfMemoryError is one, and so is what CUDA says of a recording
        return None, (str(e) or type(e).__name__).splitlines()[0]


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
        self._known: set[tuple[str, int]] = set()  # kinds of which a graph is recorded
        self._recorded: dict[tuple[Any, ...], Replay] = {}

    @property
    def recorded(self) -> bool:
        return bool(self._recorded)

    def drop(self) -> None:
        self._recorded.clear()

    def _staged(self, kind: str, block: BlockWeights) -> _StagedLora | None:
        """Where the block's LoRA has fixed addresses; None where the block is launched."""
        lora = self._graphs.lora(block.lora)
        if lora is None:
            return None
        key = kind, id(lora)
        if key in self._launched:
            return lora
        self._launched.add(key)
        return None

    def _run(
        self,
        kind: str,
        block: BlockWeights,
        lora: _StagedLora,
        fill: Callable[[], None],
        run: Callable[[BlockWeights], None],
        results: list[torch.Tensor],
    ) -> bool:
        """Have `run` done to the block by its graph, over what `fill` puts to fixed addresses. False where there are no
        graphs any more; nothing is done then."""
        parts = [*(t for packed in block.weights.values() for t in packed), *block.plain.values()]
        parts += [t for pair in block.recovery.values() for t in pair]
        key = kind, id(lora), *(t.data_ptr() for t in parts)
        if key not in self._recorded:
            fixed = block._replace(lora=lora.lora, strength=self.given.strength)
            why = self._record(key, partial(run, fixed), fill, results)
            if why:
                self._graphs.give_up(why)
                return False
        fill()
        self._recorded[key]()
        return True

    def _record(
        self, key: tuple[Any, ...], run: Callable[[], None], fill: Callable[[], None], results: list[torch.Tensor]
    ) -> str:
        """Record a graph; returns why there can be none."""
        graphs, kind = self._graphs, key[:2]
        first = kind not in self._known
        if first:
            graphs.capture.free()
        replay, why = _tried(lambda: graphs.capture(run))
        if replay is None:
            return f"recording a block: {why}"
        self._recorded[key] = replay
        if first and graphs.prove:
            same, why = _tried(lambda: _same(run, replay, fill, results))
            if not same:
                return why or "a recorded block gave other bits than a launched one"
        self._known.add(kind)
        return ""

    def forward(
        self,
        block: BlockWeights,
        x_BTD: torch.Tensor,
        launch: Forward,
    ) -> tuple[torch.Tensor, ...]:
        """What `launch` gives for a block: its output, its attention's output and logsumexp."""
        results = [self._y, self._a, self._lse]

        def run(fixed: BlockWeights) -> None:
            for kept, made in zip(results, launch(fixed, self._x, self.given), strict=True):
                kept.copy_(made)

        lora = self._staged("forward", block)
        if lora is None or not self._run("forward", block, lora, partial(self._fill, lora, block, x_BTD), run, results):
            return launch(block, x_BTD, self.given)
        return self._y.clone(), self._a.clone(), self._lse.clone()

    def backward(
        self,
        block: BlockWeights,
        visit: Visit,
        g_BTD: torch.Tensor,
        launch: Backward,
    ) -> None:
        """What `launch` does for a block: turn g into the gradient of its input, and add to those of its LoRA."""
        lora = self._staged("backward", block)

        def run(fixed: BlockWeights) -> None:
            g_BTD = self._y.detach()  # it ends as another tensor
            launch(fixed, self._x, self._a, self._lse, g_BTD, self.given)
            self._y.copy_(g_BTD)
            if lora is not None:
                lora.collect()

        if lora is None or not self._run(
            "backward",
            block,
            lora,
            partial(self._fill, lora, block, *visit, g_BTD),
            run,
            [self._y, *lora.grads],
        ):
            launch(block, *visit, g_BTD, self.given)
            return
        g_BTD.copy_(self._y)
        lora.give(block.lora)

    def _fill(self, lora: _StagedLora, block: BlockWeights, *now: torch.Tensor) -> None:
        """Put a visit's tensors where its graph reads them: input, attention's output, logsumexp, gradient."""
        lora.take(block.lora)
        for fixed, tensor in zip((self._x, self._a, self._lse, self._y), now, strict=False):
            fixed.copy_(tensor)


def _same(run: Callable[[], None], replay: Replay, fill: Callable[[], None], results: list[torch.Tensor]) -> bool:
    """Whether a graph gives the bits of what it is a recording of."""
    fill()
    run()
    right = [t.clone() for t in results]
    for t in results:
        t.fill_(torch.nan)
    fill()
    replay()
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(results, right, strict=True))
