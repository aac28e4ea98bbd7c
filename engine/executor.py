"""How an expert is run: knows blocks, memory and kernels, and nothing of what is trained.

B batch, C channels (36 in, 16 out), F h w latent shape, S text tokens, D text width.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from engine import lora

LossFn = Callable[[torch.Tensor], torch.Tensor]


class ResidentExecutor:
    """The whole expert on the device, plain autograd; each block's activations recomputed in backward when asked."""

    def __init__(self, model: WanTransformer3DModel, *, recompute: bool) -> None:
        self.model = model
        if recompute:
            model.enable_gradient_checkpointing()
        model.train()  # recomputing hangs on train mode; Wan's only dropout has p = 0

    @torch.no_grad()
    def predict(self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, *, strength: float = 1.0) -> torch.Tensor:
        """The velocity (B, 16, F, h, w), without a graph. `strength` scales the LoRA; 0 is the base."""
        with lora.strength(self.model, strength):
            return self._forward(x_BCFhw, timestep_B, text_BSD)

    def forward_backward(
        self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, loss: LossFn, *, strength: float = 1.0
    ) -> torch.Tensor:
        """Add the gradient of `loss(prediction)` to the LoRA; returns the detached loss."""
        with lora.strength(self.model, strength):
            value = loss(self._forward(x_BCFhw, timestep_B, text_BSD))
            value.backward()
        return value.detach()

    def _forward(self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype
        out: Any = self.model(hidden_states=x_BCFhw.to(dtype), timestep=timestep_B, encoder_hidden_states=text_BSD.to(dtype), return_dict=False)
        return out[0]
