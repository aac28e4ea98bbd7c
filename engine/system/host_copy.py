"""A copy of a state's tensors in host memory, all in one piece, made by the device in its turn: what changes them next
comes behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.system.pinned_memory import HostMemoryRefused, host_buffer

ALIGNED = 16  # bytes: of any type


@dataclass(frozen=True)
class Place:
    """Where a tensor lies among the bytes of a copy."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def among(self, flat: torch.Tensor) -> torch.Tensor:
        size = self.dtype.itemsize * torch.Size(self.shape).numel()
        return flat[self.start : self.start + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Copied:
    """A state: what is no tensor of it, with a Place for each that is, and the bytes of these."""

    outline: Any
    flat: torch.Tensor  # uint8, on the host

    def state(self) -> Any:
        """It, in these bytes."""
        return _changed(self.outline, Place, lambda place: place.among(self.flat))


class HostCopy:
    """One copy at a time, in memory that is kept: making 1.2 GB of it anew, plain, kept an H200 waiting for 0.7 s."""

    def __init__(self, *, pinned: bool, least: int = 0) -> None:
        """`pinned`: page-locked memory, where there is enough. `least`: bytes that are taken at once, for later copies
        may be larger."""
        self.pinned, self._least = pinned, least
        self._room = torch.empty(0, dtype=torch.uint8)

    def take(self, state: Any) -> Copied:
        """A state of dicts and lists, copied in place of the one before. The device writes it when it comes to it.
        Raises HostMemoryRefused."""
        end, taken = 0, list[tuple[Place, torch.Tensor]]()

        def place(tensor: torch.Tensor) -> Place:
            nonlocal end
            taken.append((Place(end, tensor.dtype, tuple(tensor.shape)), tensor))
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
            return taken[-1][0]

        outline = _changed(state, torch.Tensor, place)
        flat = self.room(end)
        for there, tensor in taken:
            there.among(flat).copy_(tensor.detach(), non_blocking=True)
        return Copied(outline, flat)

    def wait(self) -> None:
        """Until the device has written it."""
        if self.pinned:
            torch.cuda.synchronize()

    def room(self, size: int) -> torch.Tensor:
        """So many bytes, for a copy in place of the one before. Raises HostMemoryRefused."""
        if self._room.numel() < size:
            self._room = torch.empty(0, dtype=torch.uint8)
            at_least = max(size, self._least)
            try:
                self._room = host_buffer(at_least, pinned=self.pinned)
            except HostMemoryRefused:
                self._room = host_buffer(at_least, pinned=False)  # the device is waited for then
        return self._room[:size]


def bytes_to_copy(tensors: int, of_all: int) -> int:
    """That so many tensors of so many bytes take at most."""
    return of_all + tensors * ALIGNED


def _changed(state: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The state, with what is of that kind changed."""
    if isinstance(state, kind):
        return change(state)
    if isinstance(state, dict):
        return {key: _changed(value, kind, change) for key, value in state.items()}
    return [_changed(value, kind, change) for value in state] if isinstance(state, list) else state
