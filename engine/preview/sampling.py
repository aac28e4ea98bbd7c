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
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image, ImageOps

from engine.data.frames import DecodeRequest
from engine.data.frames import decode as decode_clip
from engine.encode.latents import Encoder, condition, decode
from presets.clips.clip_facts import VIDEO_SUFFIXES, probe_clip
from presets.clips.geometry import SIDE_MULTIPLE, Bucket, square_pixels
from presets.clips.images import open_image
from presets.job.expert_schedule import Expert
from presets.job.preview_settings import Sampling, expert_at, noise_levels
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS

Hdr = Literal["plain", "tonemap"]
NEAR_NOISE = 1e-6  # how far the multistep solver stays away from pure noise, as in diffusers


class Predicts(Protocol):
    """An expert: `engine.executor.block_executor.BlockExecutor`, or several processes' as one."""

    def predict(
        self, x_BCFhw: torch.Tensor, timestep_B: torch.Tensor, text_BSD: torch.Tensor, *, strength: float = 1.0
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class PreviewRequest:
    """One preview to make. Text embeddings are (1, S, D)."""

    image_CHW: torch.Tensor  # float32 in [-1, 1], sides multiples of 16
    text: torch.Tensor
    negative: torch.Tensor
    seed: int
    frames: int
    strength: float = 1.0  # of the trained LoRA
    end_CHW: torch.Tensor | None = None  # what it is to end at; of the image's size


def control_image(path: Path, width: int, height: int, *, hdr: Hdr = "plain") -> torch.Tensor:
    """The control image at its own shape, inside an area of width x height: (3, H, W) float32 in [-1, 1].

    Sides are multiples of 16; what the rounding leaves over is cropped evenly. Of a video it is the first frame,
    HDR treated as in a dataset. Raises OSError or ClipError.
    """
    image = _frame(path, hdr, last=False)
    return _fitted(image, preview_size(image.width, image.height, width * height))


def end_image(path: Path, like_CHW: torch.Tensor, *, hdr: Hdr = "plain") -> torch.Tensor:
    """The image that a preview ends at, cropped evenly to the size of the one it starts from. Of a video it is the last
    frame. Raises OSError or ClipError."""
    _, height, width = like_CHW.shape
    return _fitted(_frame(path, hdr, last=True), (width, height))


def _fitted(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _frame(path: Path, hdr: Hdr, *, last: bool) -> Image.Image:
    """An image; of a video one frame, as training decodes it: upright, square pixels, at its full size."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return open_image(path)
    clip = probe_clip(path)
    width, height = map(round, square_pixels(clip.width, clip.height, clip.pixel_aspect))
    # of two frames spread over a clip, the second is its last
    bucket = Bucket(2 if last else 1, height, width)
    request = DecodeRequest(str(path), "video", bucket, "uniform", start=0.0, flip_x=False, flip_y=False, hdr=hdr)
    return Image.fromarray(decode_clip(request)[-1])


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


def scheduler_for(sampling: Sampling, device: torch.device | str = "cpu") -> Any:
    """flowmatch: Euler on the flow; unipc: the multistep solver on flow sigmas. Both at our noise levels, and with the
    timesteps (1000 sigma) as they are: diffusers' own would go down to another end and be whole numbers."""
    unipc = sampling.sampler == "unipc"
    scheduler = (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        if unipc
        else FlowMatchEulerDiscreteScheduler()
    )
    scheduler.set_timesteps(sampling.steps, device=device)
    levels = noise_levels(sampling)
    scheduler.timesteps = torch.tensor([NUM_TRAIN_TIMESTEPS * sigma for sigma in levels], device=device)
    # the multistep solver takes the logarithm of 1 - sigma
    solved = [min(sigma, 1 - NEAR_NOISE) for sigma in levels] if unipc else levels
    scheduler.sigmas = torch.tensor([*solved, 0.0], device=scheduler.sigmas.device)
    return scheduler


@torch.no_grad()
def sample_latents(
    executors: Mapping[Expert, Predicts],
    encoder: Encoder,
    request: PreviewRequest,
    sampling: Sampling,
    *,
    boundary: float,
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
    last = {} if request.end_CHW is None else {0: request.end_CHW}
    conditioning = condition(encoder, request.image_CHW.unsqueeze(0), request.frames, last)
    scheduler = scheduler_for(sampling, device)
    guidances: dict[Expert, float] = {"high_noise": sampling.guidance, "low_noise": sampling.guidance_low}
    for i, (t, sigma) in enumerate(zip(scheduler.timesteps, noise_levels(sampling), strict=True)):
        progress(i, sampling.steps)
        expert = expert_at(sigma, boundary)
        executor, guidance = executors[expert], guidances[expert]
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
    progress(sampling.steps, sampling.steps)
    return latents


def to_frames(vae: AutoencoderKLWan, latents: torch.Tensor) -> np.ndarray:
    """Latents (1, 16, F, h, w) -> uint8 frames (T, H, W, 3)."""
    video = decode(vae, latents)[0]
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
