"""A copy of tensors in host memory, made by the device in its turn: what changes them next comes behind it."""

from collections.abc import Callable
from typing import Any

import torch

from engine.system.pinned_memory import HostMemoryRefused, host_buffer

ALIGNED = 16  # bytes: of any type


def with_tensors(state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A state of dicts and lists, each of its tensors changed."""
    if isinstance(state, torch.Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: with_tensors(value, change) for key, value in state.items()}
    return [with_tensors(value, change) for value in state] if isinstance(state, list) else state


class HostCopy:
    """One copy at a time, in memory that is kept: making 0.9 GB of it anew, plain, kept a GPU waiting for half a
    second."""

    def __init__(self, *, pinned: bool, least: int = 0) -> None:
        """`pinned`: page-locked memory, where there is enough. `least`: bytes that are taken at the first copy, for
        later ones may be larger."""
        self.pinned, self._least = pinned, least
        self._room = torch.empty(0, dtype=torch.uint8)

    def take(self, state: Any) -> Any:
        """The state with its tensors in host memory, in place of the one before. The device writes them when it comes
        to it. Raises HostMemoryRefused."""
        sizes: list[int] = []

        def measure(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(-(-tensor.nbytes // ALIGNED) * ALIGNED)
            return tensor

        with_tensors(state, measure)
        if self._room.numel() < sum(sizes):
            self._make(max(self._least, sum(sizes)))
        parts = iter(self._room[: sum(sizes)].split(sizes))

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            there = next(parts)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            return there.copy_(tensor.detach(), non_blocking=True)

        return with_tensors(state, copy)

    def _make(self, size: int) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)
        try:
            self._room = host_buffer(size, pinned=self.pinned)
        except HostMemoryRefused:
            self._room = host_buffer(size, pinned=False)  # the device is waited for then
