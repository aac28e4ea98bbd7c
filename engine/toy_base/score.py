"""How good the toy base is: what its VAE gives back, and whether its videos do what their captions say.

B films, T frames, F latent frames.

The films are engine.toy_base.films's, the training engine.toy_base.train's.
"""

from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from engine.toy_base.clip_vae import decode, encode
from engine.toy_base.films import CAMERAS, CAPTIONS, FRAMES, MOTIONS, locate, render, scenes
from engine.toy_base.parts import SHIFT, SIGMAS, embed, first_frame, normalize, with_short_captions

STEPS = 20
NEAR = 0.15  # of the picture's width: how far an object may end from where its film ends
SEEN = 0.01  # of the picture: an object smaller than this at the end has left it
SEED = 4242


@torch.no_grad()
def fidelity(vae: AutoencoderKLWan, device: torch.device, count: int) -> dict[str, float]:
    """Peak signal to noise of unseen films through the VAE, in dB: mean and worst."""
    video = render(scenes(count, torch.Generator(device).manual_seed(SEED + 1)))[0]
    back = torch.cat([decode(vae, encode(vae, part)[:, :16]) for part in video.split(16)]).clamp(-1, 1)
    each = psnr(back, video)
    return {"mean_db": round(each.mean().item(), 2), "worst_db": round(each.min().item(), 2)}


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B) in dB, of videos in -1..1."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3, 4)))


@torch.no_grad()
def sample(experts: dict[str, Any], conditioning: torch.Tensor, text: torch.Tensor, seed: int) -> torch.Tensor:
    """Normalized latents by Euler's method over Wan's own spacing of sigmas, without guidance. `conditioning` (B, 16,
    F, h, w)."""
    B, _, F, h, w = conditioning.shape
    device = conditioning.device
    x = torch.randn(B, 16, F, h, w, generator=torch.Generator(device).manual_seed(seed), device=device)
    even = torch.linspace(1, 0, STEPS + 1, device=device)
    sigmas = SHIFT * even / (1 + (SHIFT - 1) * even)
    mask = torch.zeros(B, 4, F, h, w, device=device)
    mask[:, :, 0] = 1
    for sigma, following in pairwise(sigmas):
        name = next(name for name, (low, _) in SIGMAS.items() if sigma >= low)
        velocity = experts[name](
            torch.cat([x, mask, conditioning], 1), (sigma * 1000).expand(B), text, return_dict=False
        )[0]
        x = x + (following - sigma) * velocity.float()
    return x


@torch.no_grad()
def report(vae: AutoencoderKLWan, experts: dict[str, Any], device: torch.device, count: int = 100) -> dict[str, Any]:
    """Scores over `count` unseen first frames and captions, each motion as often, with the camera at rest and with any
    camera, in 17 and in 9 frames."""
    vae = vae.to(device).eval()
    experts = {name: with_short_captions(net, device).eval() for name, net in experts.items()}
    text = embed(CAPTIONS).to(device)
    mean, std = (
        torch.tensor(v, device=device).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    found: dict[str, Any] = {"vae": fidelity(vae, device, count)}
    motion = torch.arange(count, device=device) % len(MOTIONS)
    generator = torch.Generator(device).manual_seed(SEED)
    for camera, camera_B in (
        ("still camera", torch.full_like(motion, list(CAMERAS).index("still camera"))),
        ("any camera", None),
    ):
        scene = scenes(count, generator, motion_B=motion, camera_B=camera_B)
        film = render(scene)[0]
        conditioning = torch.cat([normalize(vae, encode(vae, first_frame(part))[:, :16]) for part in film.split(16)])
        for frames in (FRAMES, FRAMES // 2 + 1):
            latents = sample(experts, conditioning[:, :, : (frames - 1) // 4 + 1], text[scene.captions_B], seed=7)
            video = torch.cat([decode(vae, part * std + mean) for part in latents.split(16)]).clamp(-1, 1)
            found[f"{camera}, {frames} frames"] = compare(video, film[:, :, :frames], scene.colour_B)
    return found


def compare(video: torch.Tensor, film: torch.Tensor, colour_B: torch.Tensor) -> dict[str, float]:
    """A model's videos against the films of the same first frames and captions."""
    made, made_share = locate(video, colour_B)
    meant, meant_share = locate(film, colour_B)
    seen = meant_share[:, -1] > SEEN
    away = (made[:, -1] - meant[:, -1]).norm(dim=-1) / 2
    size = made_share[:, -1] / meant_share[:, -1]
    return {
        "of": int(seen.sum()),
        "ends_near": int((seen & (away < NEAR)).sum()),
        "keeps_size": int((seen & (size > 0.6) & (size < 1.6)).sum()),
        "end_off_by": round(away[seen].mean().item(), 4),
        "psnr_db": round(psnr(video, film).mean().item(), 2),
    }
