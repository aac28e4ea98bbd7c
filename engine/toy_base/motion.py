"""A motion that the toy base was never shown, objects that go round, and how near a video comes to it.

B films, T frames, S pixels a side. Places as in `films`: halves of the picture's side from its middle. Errors are in
widths of the picture.
"""

import math
from dataclasses import replace

import torch

from engine.toy_base.films import CAMERAS, COLOURS, EDGE, FRAMES, MOTIONS, SHAPES, Scene, locate, render, scenes

RADIUS = (
    0.3  # of the circle, in halves of the side: half of it leads about as far from the start as a straight way does
)
TURNS = (
    0.5  # in FRAMES frames. A whole one is faster than the base's VAE knows: it gives such a film back 0.03 widths off
)
SEEN = 0.004  # of the picture: an object smaller than this cannot be followed (the smallest star has 0.02)
LOST = 0.5  # widths: what a frame counts whose object cannot be followed


def circle(frames: int = FRAMES, turns: float = TURNS) -> torch.Tensor:
    """The way (T, 2) from (0, 0) clockwise round a middle that lies below it, so many turns in FRAMES frames."""
    angle = 2 * math.pi * turns * torch.arange(frames) / (FRAMES - 1)
    return RADIUS * torch.stack([torch.sin(angle), 1 - torch.cos(angle)], -1)


def standing(looks: list[tuple[str, str]], generator: torch.Generator, motion: str = "stays") -> Scene:
    """One scene for each (colour, shape) under a still camera, moving as the base knows it."""
    motion_B = torch.full((len(looks),), list(MOTIONS).index(motion))
    scene = scenes(
        len(looks),
        generator,
        motion_B=motion_B,
        camera_B=torch.full_like(motion_B, list(CAMERAS).index("still camera")),
    )
    colour_B = torch.tensor([list(COLOURS).index(colour) for colour, _ in looks])
    return replace(scene, colour_B=colour_B, shape_B=torch.tensor([SHAPES.index(shape) for _, shape in looks]))


def circling(looks: list[tuple[str, str]], generator: torch.Generator, turns: float = TURNS) -> Scene:
    """One scene for each (colour, shape) whose object goes round, where a whole circle stays in the picture."""
    scene = standing(looks, generator)
    lowest = torch.tensor([RADIUS - EDGE, -EDGE])
    highest = torch.tensor([EDGE - RADIUS, EDGE - 2 * RADIUS])
    start_B2 = lowest + (highest - lowest) * torch.rand(len(looks), 2, generator=generator)
    return replace(scene, start_B2=start_B2, path_BT2=circle(turns=turns).expand(len(looks), -1, -1))


def path_error(video: torch.Tensor, colour_B: torch.Tensor, wanted_BT2: torch.Tensor) -> torch.Tensor:
    """(B): mean distance of each video's object from the wanted way over the frames behind the first, which is given.
    `video` (B, 3, T, S, S) as `render` draws it."""
    found_BT2, share_BT = locate(video, colour_B)
    away_BT = (found_BT2 - wanted_BT2).norm(dim=-1) / 2
    return torch.where(share_BT < SEEN, torch.full_like(away_BT, LOST), away_BT)[:, 1:].mean(1)


def turned(video: torch.Tensor, colour_B: torch.Tensor, start_B2: torch.Tensor) -> torch.Tensor:
    """(B): turns that each video's object makes clockwise round the middle of its circle, from first to last frame."""
    found_BT2, _ = locate(video, colour_B)
    arm_BT2 = found_BT2 - (start_B2 + torch.tensor([0.0, RADIUS]))[:, None]
    angle_BT = torch.atan2(arm_BT2[..., 1], arm_BT2[..., 0])
    steps = torch.remainder(angle_BT.diff(dim=1) + math.pi, 2 * math.pi) - math.pi
    return steps.sum(1) / (2 * math.pi)


def look(video: torch.Tensor, scene: Scene) -> torch.Tensor:
    """(B): how like a drawn film each video looks, whichever way its object took: peak signal to noise in dB around
    the object, behind the first frame, to the same scene drawn along the way that was found. Blur, a lost shape and
    another colour lower it."""
    found_BT2, _ = locate(video, scene.colour_B)
    drawn, _ = render(replace(scene, start_B2=torch.zeros_like(scene.start_B2), path_BT2=found_BT2), video.shape[2])
    u_S = (torch.arange(video.shape[-1]) + 0.5) / video.shape[-1] * 2 - 1
    reach_B = 1.5 * scene.radius_B[:, None, None]
    across, down = ((u_S - found_BT2[..., axis, None]).abs() < reach_B for axis in (0, 1))
    near_BTSS = (down[..., :, None] & across[..., None, :])[:, 1:]
    wrong_BTSS = (video - drawn).square().mean(1)[:, 1:]
    error_B = (wrong_BTSS * near_BTSS).sum((1, 2, 3)) / near_BTSS.sum((1, 2, 3)).clamp(min=1)
    return 10 * torch.log10(4 / error_B.clamp(min=1e-6))
