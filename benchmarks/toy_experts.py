"""Which noise of the toy base decides a motion: above a sigma and below it the experts are told different things about
the same first frame.

    python -m benchmarks.toy_experts [--count N] [--sigmas S ...]

Each object is said to move left by one caption and right by the other. The noise at which the caption was heard that
leads to where the object ends has decided the motion. Without `--sigmas` it is asked at the experts' boundary.
"""

import argparse
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from engine.toy_base import DATA
from engine.toy_base.clip_vae import decode, encode, flat_convolutions
from engine.toy_base.films import CAMERAS, CAPTIONS, MOTIONS, Scene, locate, render, scenes
from engine.toy_base.parts import BOUNDARY, SIGMAS, embed, first_frame, normalize, with_short_captions
from engine.toy_base.score import SEED, sample

TOLD = ("moves left", "moves right")


def told(expert: WanTransformer3DModel, sigma: float, above: torch.Tensor, below: torch.Tensor) -> Any:
    """The expert, hearing one text from this sigma up and another below it, whatever the sampler says."""

    def hears(x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, *, return_dict: bool) -> Any:
        return expert(x, timestep, above if timestep[0] >= sigma * 1000 else below, return_dict=return_dict)

    return hears


def scene_of(motion: str, count: int) -> Scene:
    """The same objects in the same places for every motion."""
    motion_B = torch.full((count,), list(MOTIONS).index(motion))
    still_B = torch.full_like(motion_B, list(CAMERAS).index("still camera"))
    scene = scenes(count, torch.Generator().manual_seed(SEED), motion_B=motion_B, camera_B=still_B)
    return replace(scene, start_B2=torch.zeros_like(scene.start_B2))  # in the middle, so that either way is open


@torch.no_grad()
def decided(high: str, low: str, sigma: float, count: int) -> tuple[int, int]:
    """(objects that end nearer to where `high` leads, nearer to where `low` does), which were heard above and below."""
    vae = AutoencoderKLWan.from_pretrained(DATA / "vae", torch_dtype=torch.float32)
    text = embed(CAPTIONS)
    scene = {motion: scene_of(motion, count) for motion in (high, low)}
    above, below = (text[scene[motion].captions_B] for motion in (high, low))
    experts = {}
    for name in SIGMAS:
        net = WanTransformer3DModel.from_pretrained(DATA / name, torch_dtype=torch.float32)
        experts[name] = told(with_short_captions(net, torch.device("cpu")).eval(), sigma, above, below)
    film, places = render(scene[high])
    _, other = render(scene[low])
    conditioning = normalize(vae, encode(vae, first_frame(film))[:, :16])
    latents = sample(experts, conditioning, text[scene[low].captions_B], seed=7)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    ends, _ = locate(decode(vae, latents * std + mean).clamp(-1, 1), scene[high].colour_B)
    nearer = (ends[:, -1] - places[:, -1]).norm(dim=-1) < (ends[:, -1] - other[:, -1]).norm(dim=-1)
    return int(nearer.sum()), int((~nearer).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="objects for each way of telling")
    parser.add_argument("--sigmas", nargs="*", type=float, default=[BOUNDARY])
    args = parser.parse_args()
    with flat_convolutions():
        for sigma in args.sigmas:
            for high, low in (TOLD, TOLD[::-1]):
                of_high, of_low = decided(high, low, sigma, args.count)
                print(f"above {sigma:g} {high!r}, below {low!r}: {of_high} as was heard above, {of_low} as below")


if __name__ == "__main__":
    main()
