"""Drawn films: one coloured shape that moves over a soft background under a moving camera, and the caption that says
so.

A film is a function of its `Scene`, so whatever a model makes of the first frame and the caption can be compared with
the film itself. Speed varies by a few percent, which no caption says; everything else that follows the first frame is
in the caption.

B films, T frames, S pixels a side. Places are in halves of the picture's side from its middle, x to the right and y
down.
"""

import math
from dataclasses import dataclass, field

import torch

SIDE, FRAMES = 64, 17
COLOURS = {
    "red": (0.85, 0.12, 0.1),
    "green": (0.15, 0.7, 0.25),
    "blue": (0.15, 0.3, 0.9),
    "yellow": (0.95, 0.8, 0.15),
    "purple": (0.6, 0.2, 0.75),
    "orange": (0.95, 0.5, 0.1),
}
SHAPES = ("ball", "box", "star", "ring")
MOTIONS = {"stays": (0, 0), "moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
CAMERAS = {
    "still camera": (0, 0, 0),
    "camera pans left": (-1, 0, 0),
    "camera pans right": (1, 0, 0),
    "camera zooms in": (0, 0, -1),
    "camera zooms out": (0, 0, 1),
}
# how far an object moves from the first to the last frame, and the share by which that varies
REACH, SPREAD = 0.55, 0.07
PAN, ZOOM = 0.35, 0.35  # of the camera, in the same time: half sides, and the logarithm of the scale
EDGE = 0.62  # objects stay within
MARGIN = 0.1  # which those that move may pass by so much


def caption(colour: int, shape: int, motion: int, camera: int) -> str:
    return f"a {list(COLOURS)[colour]} {SHAPES[shape]} {list(MOTIONS)[motion]}, {list(CAMERAS)[camera]}"


CAPTIONS = [
    caption(c, s, m, k)
    for c in range(len(COLOURS))
    for s in range(len(SHAPES))
    for m in range(len(MOTIONS))
    for k in range(len(CAMERAS))
]


@dataclass(frozen=True)
class Scene:
    """What B films are drawn from. Numbers index the tables above."""

    colour_B: torch.Tensor
    shape_B: torch.Tensor
    motion_B: torch.Tensor
    camera_B: torch.Tensor
    start_B2: torch.Tensor  # place in the first frame
    velocity_B2: torch.Tensor  # way from the first to the last frame
    radius_B: torch.Tensor
    grey_B3: torch.Tensor  # of the background ...
    contrast_B3: torch.Tensor
    waves_B2: torch.Tensor  # ... and its pattern
    phases_B2: torch.Tensor
    path_BT2: torch.Tensor | None = field(default=None)  # a way of its own, from (0, 0) on, in place of `velocity_B2`

    @property
    def captions_B(self) -> torch.Tensor:
        """Indices into CAPTIONS."""
        return ((self.colour_B * len(SHAPES) + self.shape_B) * len(MOTIONS) + self.motion_B) * len(
            CAMERAS
        ) + self.camera_B


def scenes(
    count: int,
    generator: torch.Generator,
    *,
    motion_B: torch.Tensor | None = None,
    camera_B: torch.Tensor | None = None,
) -> Scene:
    """Random scenes on the generator's device. An object's motion cannot be known from where it starts but near the
    edges."""
    device = generator.device

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def pick(choices: int) -> torch.Tensor:
        return torch.randint(0, choices, (count,), generator=generator, device=device)

    colour, shape, motion, camera = pick(len(COLOURS)), pick(len(SHAPES)), pick(len(MOTIONS)), pick(len(CAMERAS))
    motion, camera = motion if motion_B is None else motion_B, camera if camera_B is None else camera_B
    way = torch.tensor(list(MOTIONS.values()), device=device, dtype=torch.float32)[motion]
    velocity = way * (REACH * (1 - SPREAD + 2 * SPREAD * uniform(count)))[:, None]
    least = -EDGE - velocity.clamp(max=0) - MARGIN * (way != 0)
    most = EDGE - velocity.clamp(min=0) + MARGIN * (way != 0)
    start = least + (most - least) * uniform(count, 2)
    grey = 0.3 + 0.3 * uniform(count, 1) + 0.08 * (uniform(count, 3) - 0.5)
    contrast = 0.07 + 0.08 * uniform(count, 1) + 0.03 * uniform(count, 3)
    return Scene(
        colour_B=colour,
        shape_B=shape,
        motion_B=motion,
        camera_B=camera,
        start_B2=start,
        velocity_B2=velocity,
        grey_B3=grey,
        contrast_B3=contrast,
        waves_B2=2 + 2.5 * uniform(count, 2),
        phases_B2=2 * math.pi * uniform(count, 2),
        radius_B=0.2 + 0.08 * uniform(count),
    )


def render(scene: Scene, frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor]:
    """The films (B, 3, T, S, S) in -1..1, and where their objects are on the screen (B, T, 2)."""
    device = scene.start_B2.device
    t_T = torch.linspace(0, (frames - 1) / (FRAMES - 1), frames, device=device)
    moved = scene.velocity_B2[:, None] * t_T[None, :, None] if scene.path_BT2 is None else scene.path_BT2[:, :frames]
    place_BT2 = scene.start_B2[:, None] + moved
    camera_B3 = torch.tensor(list(CAMERAS.values()), device=device, dtype=torch.float32)[scene.camera_B]
    pan_BT2, zoom_BT = (
        camera_B3[:, None, :2] * PAN * t_T[None, :, None],
        torch.exp(camera_B3[:, None, 2] * ZOOM * t_T[None]),
    )

    u_S = (torch.arange(SIDE, device=device) + 0.5) / SIDE * 2 - 1
    y_SS, x_SS = torch.meshgrid(u_S, u_S, indexing="ij")
    # (B, T, S, S), in the world
    x, y = (u * zoom_BT[..., None, None] + pan_BT2[..., axis, None, None] for axis, u in enumerate((x_SS, y_SS)))

    (wx, wy), (px, py) = (each.T[..., None, None, None] for each in (scene.waves_B2, scene.phases_B2))
    pattern = torch.sin(x * wx + px) * torch.sin(y * wy + py) + 0.6 * torch.sin(x * 4.5 + py) * torch.sin(y * 4.5 + px)
    background = scene.grey_B3[:, :, None, None, None] + scene.contrast_B3[:, :, None, None, None] * pattern[:, None]

    dx, dy = x - place_BT2[..., 0, None, None], y - place_BT2[..., 1, None, None]
    radius = scene.radius_B[:, None, None, None]
    inside = torch.sigmoid(-_distance(scene.shape_B[:, None, None, None], dx, dy, radius) * SIDE * 0.9)[:, None]
    light = (1 - 0.2 * (dx + dy) / radius).clamp(0.7, 1.2)[:, None]
    paint = torch.tensor(list(COLOURS.values()), device=device)[scene.colour_B][:, :, None, None, None]
    film = background * (1 - inside) + paint * light * inside
    return film.clamp(0, 1) * 2 - 1, (place_BT2 - pan_BT2) / zoom_BT[..., None]


def _distance(shape: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """From each pixel to the edge of the shape, about; negative inside."""
    d, angle = torch.hypot(dx, dy), torch.atan2(dy, dx)
    ball, box = d - radius, torch.maximum(dx.abs(), dy.abs()) - radius * 0.85
    star, ring = (
        d - radius * (0.72 + 0.28 * torch.cos(5 * angle + math.pi / 2)),
        (d - radius * 0.75).abs() - radius * 0.28,
    )
    return torch.where(shape == 0, ball, torch.where(shape == 1, box, torch.where(shape == 2, star, ring)))


def likeness(video: torch.Tensor, colour_B: torch.Tensor) -> torch.Tensor:
    """How far each pixel is of its film's colour, 0 to 1 (B, T, S, S). `video` as `render` draws it."""
    rgb = (video + 1) / 2
    paint = torch.tensor(list(COLOURS.values()), device=video.device)[colour_B][:, :, None, None, None]

    def direction(colours: torch.Tensor) -> torch.Tensor:
        return colours / (colours.square().sum(1, keepdim=True).sqrt() + 1e-3)

    # grey is like no colour
    return torch.sigmoid(((direction(rgb) * direction(paint)).sum(1) - 0.93) * 60) * (rgb.amax(1) - rgb.amin(1) > 0.25)


def locate(video: torch.Tensor, colour_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pixels of each film's colour are: their centre (B, T, 2) and their share of the picture (B, T). `video`
    as `render` draws it."""
    like = likeness(video, colour_B)
    u_S = (torch.arange(video.shape[-1], device=video.device) + 0.5) / video.shape[-1] * 2 - 1
    total = like.sum((-1, -2)) + 1e-6
    centre = torch.stack([(like * u_S).sum((-1, -2)) / total, (like * u_S[:, None]).sum((-1, -2)) / total], -1)
    return centre, total / video.shape[-1] ** 2
