"""What is added to an expert's weights while they are read from their files: the seam between whoever reads weights
(`engine.weights.load_expert`) and whoever knows what is merged into them (`engine.adapters.merge`)."""

from typing import Protocol

import torch


class AddedChanges(Protocol):
    """Changes of one expert's tensors, by their names in diffusers' model: `blocks.3.attn1.to_q.weight`."""

    @property
    def identity(self) -> str:
        """Of everything that the changed weights depend on beside the base."""

    def has(self, name: str) -> bool:
        """Whether this tensor is changed."""

    def added(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The changed tensor. `weight` is fp32 and may be written to; so is the answer, on the same device. Raises
        UserError."""
