"""Previews: the base with the LoRA as it stands, through both experts, from each prompt's control image.

The loop is that of diffusers' WanImageToVideoPipeline, step for step (a test compares them bit for bit); it is written
out so that experts may be run by an executor.

Which previews are due and what they leave in the run folder is engine.training.previews's; how they are written as
files, engine.preview.video_files's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image, ImageOps

from engine.encode.latents import Encoder, condition, decode
from engine.executor.block_executor import BlockExecutor
from presets.clips.geometry import SIDE_MULTIPLE
from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.preview_settings import low_guidance
from presets.job.schema import SamplePanel
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS


@dataclass(frozen=True)
class PreviewRequest:
    """One preview to make. Text embeddings are (1, S, D)."""

    image_CHW: torch.Tensor  # float32 in [-1, 1], sides multiples of 16
    text: torch.Tensor
    negative: torch.Tensor
    seed: int
    frames: int
    strength: float = 1.0  # of the trained LoRA


def control_image(path: Path, width: int, height: int) -> torch.Tensor:
    """The control image at its own shape, inside an area of width x height: (3, H, W) float32 in [-1, 1].

    Sides are multiples of 16; what the rounding leaves over is cropped evenly.
    """
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    w, h = preview_size(image.width, image.height, width * height)
    fitted = ImageOps.fit(image, (w, h), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


def preview_size(width: int, height: int, area: int) -> tuple[int, int]:
    """The sides, multiples of 16 with at most `area` pixels, that crop least off a picture of width x height; the
    larger of equals."""
    scale = math.sqrt(area / (width * height))

    def near(side: float) -> set[int]:
        down = max(1, math.floor(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE
        return {down, down + SIDE_MULTIPLE}

    def kept(w: int, h: int) -> float:
        cover = max(w / width, h / height)
        return w * h / (width * cover * height * cover)

    candidates = {(w, h) for w in near(width * scale) for h in near(height * scale)}
    candidates |= {(w, area // w // SIDE_MULTIPLE * SIDE_MULTIPLE) for w, _ in candidates} | {
        (area // h // SIDE_MULTIPLE * SIDE_MULTIPLE, h) for _, h in candidates
    }
    fitting = [(w, h) for w, h in candidates if w > 0 and h > 0 and w * h <= area]
    return max(fitting, key=lambda wh: (round(kept(*wh), 2), wh[0] * wh[1]))


def scheduler_for(sampler: str, shift: float) -> Any:
    """flowmatch: Euler on the flow; unipc: the multistep solver on flow sigmas. Both with the model's own shift."""
    if sampler == "unipc":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    return FlowMatchEulerDiscreteScheduler(shift=shift)


@torch.no_grad()
def sample_latents(
    executors: Mapping[Expert, BlockExecutor],
    encoder: Encoder,
    request: PreviewRequest,
    panel: SamplePanel,
    *,
    boundary: float,
    shift: float,
    batched_guidance: bool,
    progress: Callable[[int, int], None],
) -> torch.Tensor:
    """Denoise one preview: latents (1, 16, F, h, w), float32.

    Guidance is each expert's own; at 1 or below, the negative prompt is not asked at all. `batched_guidance` asks both
    prompts in one batch of two: the weights pass through once, activations take twice the room, and sums may round
    otherwise.
    """
    device = request.image_CHW.device
    _, H, W = request.image_CHW.shape
    shape = (1, encoder.vae.config.z_dim, (request.frames - 1) // 4 + 1, H // 8, W // 8)
    # On the CPU, so that the same seed gives the same preview on every card.
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(device)
    conditioning = condition(encoder, request.image_CHW.unsqueeze(0), request.frames)
    scheduler = scheduler_for(panel.sampler, shift)
    scheduler.set_timesteps(panel.steps, device=device)
    for i, t in enumerate(scheduler.timesteps):
        progress(i, panel.steps)
        noisy = bool(t >= boundary * NUM_TRAIN_TIMESTEPS)
        executor, guidance = executors[EXPERTS[0 if noisy else 1]], panel.guidance if noisy else low_guidance(panel)
        x, timestep = torch.cat([latents, conditioning], dim=1), t.expand(1)
        if guidance <= 1:
            velocity = executor.predict(x, timestep, request.text, strength=request.strength)
        else:
            if batched_guidance:
                both = executor.predict(
                    x.expand(2, -1, -1, -1, -1),
                    timestep.expand(2),
                    torch.cat([request.text, request.negative]),
                    strength=request.strength,
                )
                guided, unguided = both.chunk(2)
            else:
                guided, unguided = (
                    executor.predict(x, timestep, text, strength=request.strength)
                    for text in (request.text, request.negative)
                )
            velocity = unguided + guidance * (guided - unguided)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    progress(panel.steps, panel.steps)
    return latents


def to_frames(vae: AutoencoderKLWan, latents: torch.Tensor) -> np.ndarray:
    """Latents (1, 16, F, h, w) -> uint8 frames (T, H, W, 3)."""
    video = decode(vae, latents)[0]
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
