"""Where tensors go and as what: the device, the type of what is computed, and whether host memory is page-locked."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """Where tensors go and as what: the device, the type of what is computed, and whether host memory is
    page-locked."""

    device: torch.device
    dtype: torch.dtype
    pinned: bool
