"""Where tensors go and as what: the device, the type of what is computed, and whether host memory is page-locked.

Which plan puts an expert's weights there is engine.training.placement's; page-locked memory itself,
engine.system.pinned_memory's.
"""

from contextlib import suppress
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """Where tensors go and as what: the device, the type of what is computed, and whether host memory is
    page-locked."""

    device: torch.device
    dtype: torch.dtype
    pinned: bool

    @classmethod
    def on(cls, device: torch.device, *, pinned: bool | None = None) -> "Placement":
        """As the device is best used; left out, `pinned` is so where a GPU reads that memory."""
        gpu = device.type == "cuda"
        # bf16 products crawl on a CPU
        return cls(device, torch.bfloat16 if gpu else torch.float32, pinned=gpu if pinned is None else pinned)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """It, on the device. Where host memory is page-locked it is copied in its turn, and nobody waits for what the
        device has to do before."""
        if self.pinned:
            with suppress(RuntimeError):  # the system locks no more: what CUDA says then is what a full card says
                tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=self.pinned)
