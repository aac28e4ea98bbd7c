"""What a block's backward needs from its forward: its input, its attention's output and logsumexp, and the hidden
states inside it where the plan saves them.

Kept on the device, or offloaded to pinned host memory: written by one copy stream during the forward, read ahead by
another during the backward. A block's tensors travel as one. Where they are offloaded, those of the last blocks
stay on the device all the same: they are asked for before anything could have come back. Weights come
to the device through `engine.executor.weight_ring`.
"""

from typing import Any

import torch

from engine.system.pinned_memory import host_buffer

Tensors = tuple[torch.Tensor, ...]

# blocks whose tensors may still be on their way out when those of another are put; a forward has that much less to hold
# than a backward
LEAVING = 2


class KeptActivations:
    """Everything stays where it is."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensors] = {}

    def begin(self, waiting: int) -> None:
        """A pass begins that will put so many blocks. What an aborted pass has left is forgotten."""
        self._kept.clear()

    def put(self, block: int, tensors: Tensors) -> None:
        self._kept[block] = tensors

    def prefetch(self, block: int) -> None:
        pass

    def get(self, block: int) -> Tensors:
        return self._kept.pop(block)

    def flush(self) -> None:
        pass


class OffloadedActivations:
    """Host buffers, one per block, made at first use and reused for every bucket they are large enough for.

    Without `pinned` they are plain memory: the driver then copies through locked buffers of its own, and a put waits
    for its copy. The last `stay` blocks of a pass have none: theirs stay on the device. `cuda` as in
    `engine.executor.weight_ring.WeightRing`. Raises HostMemoryRefused.
    """

    def __init__(self, device: torch.device, cuda: Any = None, *, stay: int = 0, pinned: bool = True) -> None:
        self.device, self.stay = device, stay
        self.pinned = pinned and device.type == "cuda"
        self._leave = 0  # puts still to come of blocks whose tensors leave the device
        self._here: dict[int, Tensors] = {}
        self._cuda = cuda
        self._out: Any = cuda.Stream(device) if cuda else None
        self._in: Any = cuda.Stream(device) if cuda else None
        self._host: dict[int, torch.Tensor] = {}
        self._shapes: dict[int, list[tuple[torch.dtype, torch.Size]]] = {}
        self._leaving: list[tuple[Any, Tensors]] = []  # on their way out: alive until the copy is done
        self._arriving: dict[int, tuple[Any, Tensors]] = {}

    def _views(self, block: int) -> list[torch.Tensor]:
        views, offset = [], 0
        for dtype, shape in self._shapes[block]:
            size = shape.numel() * dtype.itemsize
            views.append(self._host[block][offset : offset + size].view(dtype).view(shape))
            offset += -(-size // 256) * 256
        return views

    def begin(self, waiting: int) -> None:
        """A pass begins that will put so many blocks. What an aborted pass has left is forgotten: its numbers would be
        handed to a block whose own stay here."""
        self.flush()
        for done, _ in self._arriving.values():
            if done is not None:  # the memory is free only once nothing is written to it
                self._cuda.current_stream(self.device).wait_event(done)
        for left in (self._here, self._shapes, self._arriving):
            left.clear()
        self._leave = max(0, waiting - self.stay)

    def put(self, block: int, tensors: Tensors) -> None:
        if self._leave == 0:
            self._here[block] = tensors
            self._drop_left(LEAVING)
            return
        self._leave -= 1
        self._shapes[block] = [(t.dtype, t.shape) for t in tensors]
        need = sum(-(-t.numel() * t.element_size() // 256) * 256 for t in tensors)
        if block not in self._host or self._host[block].numel() < need:
            self._host.pop(block, None)
            self._host[block] = host_buffer(need, pinned=self.pinned)
        if not self._cuda:
            for view, tensor in zip(self._views(block), tensors, strict=True):
                view.copy_(tensor)
            return
        self._drop_left(LEAVING)
        self._out.wait_stream(self._cuda.current_stream(self.device))
        with self._cuda.stream(self._out):
            for view, tensor in zip(self._views(block), tensors, strict=True):
                view.copy_(tensor, non_blocking=True)
            done = self._cuda.Event()
            done.record()
        self._leaving.append((done, tensors))

    def _drop_left(self, keep: int) -> None:
        """Drop tensors whose copy the current stream has waited for: their memory may then be used again."""
        while len(self._leaving) > keep:
            done, _ = self._leaving.pop(0)
            self._cuda.current_stream(self.device).wait_event(done)

    def flush(self) -> None:
        """The forward is over: the current stream waits for the last writes, and reads wait for the current stream."""
        if self._cuda:
            self._drop_left(keep=0)

    def prefetch(self, block: int) -> None:
        """Start bringing a block's tensors back, unless they are here, or on their way, or this pass left none."""
        if block in self._arriving or block not in self._shapes:
            return
        # Allocated on the current stream, so that freeing and reuse follow its order; the copy waits for that.
        tensors = tuple(torch.empty(shape, dtype=dtype, device=self.device) for dtype, shape in self._shapes[block])
        done = None
        if self._cuda:
            self._in.wait_stream(self._cuda.current_stream(self.device))
            with self._cuda.stream(self._in):
                for tensor, view in zip(tensors, self._views(block), strict=True):
                    tensor.copy_(view, non_blocking=True)
                done = self._cuda.Event()
                done.record()
        else:
            for tensor, view in zip(tensors, self._views(block), strict=True):
                tensor.copy_(view)
        self._arriving[block] = (done, tensors)

    def get(self, block: int) -> Tensors:
        if block in self._here:
            return self._here.pop(block)
        self.prefetch(block)
        done, tensors = self._arriving.pop(block)
        # else a pass that keeps this block's graph would fetch them again, and the next one be handed those
        del self._shapes[block]
        if done is not None:
            self._cuda.current_stream(self.device).wait_event(done)
        return tensors


Activations = KeptActivations | OffloadedActivations
