"""Motion in films of any kind: dense optical flow, the camera's part of it, and what moves by itself.

Flow is that of T. Kroeger, R. Timofte, D. Dai, L. Van Gool, Fast Optical Flow using Dense Inverse Search, ECCV 2016, in
OpenCV. The camera is the similarity (pan, zoom, roll) that most of the picture follows, found by RANSAC (M. Fischler,
R. Bolles, 1981): where a subject fills most of the picture, its motion is taken for the camera's.

T frames, H x W pixels at the size that is worked at, P = T - 1 pairs of frames.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from presets.clips.geometry import WAN_FPS
from presets.errors import UserError
from presets.report.measures import DIRECTIONS, Camera, Motion

Frames = NDArray[np.uint8]  # (T, H, W, 3), RGB
Floats = NDArray[np.float32]

SIDE = 256  # of the longer side that flow is sought at: every film's, so that they can be compared
STILL = 0.4  # pixels of that a frame: less is not told from standing still
GRID = 6  # pixels between the points that the camera is found from
SMALLEST = 0.01  # of the picture: less that moves by itself is an error of the flow
WITHIN = 0.7  # pixels that a point of the background may be off it


def opencv() -> Any:
    """The library that measures. Raises UserError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            "measuring previews needs OpenCV, which is not installed (60 MB to fetch, 150 MB on the disk)",
            fix="Install it with: pip install 'wanlora-tui[judge]'",
        ) from None
    cv2.setNumThreads(1)  # the same numbers on every machine, and the trainer keeps its cores
    return cv2


class Flow(NamedTuple):
    """Of a film with at least two frames."""

    grey_THW: NDArray[np.uint8]
    forward_PHW2: Floats  # pixels from each frame to the next, (x, y)
    backward_PHW2: Floats  # and from the next to it


def flow_of(frames_THWC: Frames) -> Flow:
    """Raises UserError without OpenCV."""
    cv2 = opencv()
    grey = np.stack([cv2.cvtColor(_sized(cv2, frame), cv2.COLOR_RGB2GRAY) for frame in frames_THWC])
    seeker = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    seeker.setFinestScale(0)
    pairs = list(pairwise(grey))
    forward = np.stack([seeker.calc(a, b, None) for a, b in pairs])
    backward = np.stack([seeker.calc(b, a, None) for a, b in pairs])
    return Flow(grey, forward, backward)


def _sized(cv2: Any, frame: NDArray[np.uint8]) -> Any:
    height, width = frame.shape[:2]
    scale = SIDE / max(height, width)
    size = max(16, round(width * scale)), max(16, round(height * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def motion_of(flow: Flow) -> Motion:
    """What moves, and how."""
    height, width = flow.forward_PHW2.shape[1:3]
    a_second = WAN_FPS / width
    cameras, subjects, shares, own_flows = [], [], [], []
    for flow_HW2 in flow.forward_PHW2:
        seen = camera_of(flow_HW2)
        cameras.append(seen)
        by_camera = _moved(seen, height, width)
        own_HW2 = flow_HW2 - by_camera
        own = np.linalg.norm(own_HW2, axis=-1)
        own[~_stays_inside(by_camera)] = 0.0  # what leaves the picture has no place to be found at
        # the edge of what moves has flow between its own and the background's: half of it is inside
        moving = own > max(STILL, float(np.quantile(own, 0.98)) / 2)
        share = float(moving.mean())
        subjects.append(float(own[moving].mean()) if share > SMALLEST else 0.0)
        shares.append(share if share > SMALLEST else 0.0)
        own_flows.append(np.where((moving & (share > SMALLEST))[..., None], own_HW2, 0.0))
    right, down, zoom, roll = np.mean([(-x, -y, math.log(scale), -angle) for x, y, scale, angle in cameras], axis=0)
    return Motion(
        speed=float(np.linalg.norm(flow.forward_PHW2, axis=-1).mean() * a_second),
        directions=directions_of(flow.forward_PHW2),
        camera=Camera(
            right=float(right * a_second),
            down=float(down * a_second),
            zoom=math.expm1(zoom * WAN_FPS),
            roll=float(math.degrees(roll) * WAN_FPS),
        ),
        subject_directions=directions_of(np.stack(own_flows)),
        subject_speed=float(np.mean(subjects)) * a_second,
        subject_share=float(np.mean(shares)),
    )


def directions_of(flow_PHW2: Floats) -> list[float]:
    """What share of the motion goes where, weighted by its length; a direction between two of DIRECTIONS counts for
    both by nearness. Zeros where nothing moves."""
    length = np.linalg.norm(flow_PHW2, axis=-1)
    moving = length > STILL
    count = len(DIRECTIONS)
    place = np.arctan2(flow_PHW2[..., 1], flow_PHW2[..., 0])[moving] / (2 * math.pi) * count
    low = np.floor(place)
    part = place - low
    out = sum(
        np.bincount((low + k).astype(int) % count, weights=length[moving] * share, minlength=count)
        for k, share in ((0, 1 - part), (1, part))
    )
    total = float(np.sum(out))
    return [float(x) / total for x in np.asarray(out)] if total else [0.0] * count


class Seen(NamedTuple):
    """What a picture does under its camera: how far its middle goes in pixels, how it is scaled and turned
    (clockwise, radians)."""

    x: float
    y: float
    scale: float
    angle: float


def camera_of(flow_HW2: Floats) -> Seen:
    """The similarity that most of the picture follows."""
    cv2 = opencv()
    height, width = flow_HW2.shape[:2]
    y, x = np.mgrid[GRID // 2 : height : GRID, GRID // 2 : width : GRID]
    there = flow_HW2[y, x].reshape(-1, 2)
    points = np.stack([x.ravel() - (width - 1) / 2, y.ravel() - (height - 1) / 2], -1).astype(np.float32)
    found, _ = cv2.estimateAffinePartial2D(
        points, points + there, method=cv2.RANSAC, ransacReprojThreshold=WITHIN, maxIters=1000, confidence=0.995
    )
    if found is None:  # nothing of it moves alike
        return Seen(0.0, 0.0, 1.0, 0.0)
    scale = math.hypot(found[0, 0], found[1, 0])
    return Seen(float(found[0, 2]), float(found[1, 2]), scale, math.atan2(found[1, 0], found[0, 0]))


def _moved(seen: Seen, height: int, width: int) -> Floats:
    """The flow that the camera alone makes, (H, W, 2)."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    cos, sin = seen.scale * math.cos(seen.angle), seen.scale * math.sin(seen.angle)
    moved = np.stack([cos * x - sin * y + seen.x - x, sin * x + cos * y + seen.y - y], -1)
    return moved.astype(np.float32)


def _stays_inside(moved_HW2: Floats) -> NDArray[np.bool_]:
    height, width = moved_HW2.shape[:2]
    at_HW2 = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) + moved_HW2
    return np.asarray(((at_HW2 >= 0) & (at_HW2 <= (width - 1, height - 1))).all(-1))
