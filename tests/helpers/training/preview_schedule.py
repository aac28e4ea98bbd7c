"""Schedulers for diffusers' own pipeline that go through the noise levels of our previews."""

from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from presets.job.preview_settings import Sampling, noise_levels


class Euler(FlowMatchEulerDiscreteScheduler):
    levels: list[float]

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        assert num_inference_steps == len(self.levels)
        super().set_timesteps(
            num_inference_steps, device, sigmas=self.levels, timesteps=[1000 * sigma for sigma in self.levels]
        )


class UniPC(UniPCMultistepScheduler):
    """Its own timesteps are cut to whole numbers, so they are put in their place again."""

    levels: list[float]

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        assert num_inference_steps == len(self.levels)
        super().set_timesteps(device=device, sigmas=np.array(self.levels))
        exact = self.timesteps.new_tensor([1000 * sigma for sigma in self.levels], dtype=self.sigmas.dtype)
        assert (exact - self.timesteps).abs().max() <= 1
        self.timesteps = exact


def pipeline_scheduler(sampling: Sampling) -> Any:
    scheduler: Any = (
        UniPC(prediction_type="flow_prediction", use_flow_sigmas=True) if sampling.sampler == "unipc" else Euler()
    )
    scheduler.levels = noise_levels(sampling)
    return scheduler
