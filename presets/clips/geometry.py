"""Shapes of Wan 2.2 I2V A14B: frame counts, buckets, latents, tokens. One place for this arithmetic.

The VAE compresses 4 x 8 x 8 (frames x height x width) into 16 channels; the transformer's patches are 1 x 2 x 2.
So frame counts are 4n+1 and sides are multiples of 16. Source: diffusers, AutoencoderKLWan and WanTransformer3DModel.
"""

import math
from fractions import Fraction
from functools import lru_cache

from msgspec import Struct

WAN_FPS = 16.0  # the rate Wan was trained at, and the rate "realtime" sampling brings clips to
SIDE_MULTIPLE = 16


class Bucket(Struct, frozen=True, order=True):
    """The pixel size that a clip is brought to."""

    frames: int
    height: int
    width: int

    @property
    def latent(self) -> tuple[int, int, int]:
        """(latent frames, latent height, latent width)."""
        return (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8

    @property
    def tokens(self) -> int:
        return ((self.frames - 1) // 4 + 1) * (self.height // SIDE_MULTIPLE) * (self.width // SIDE_MULTIPLE)


def is_valid_frame_count(frames: int) -> bool:
    return frames >= 1 and frames % 4 == 1


def nearest_frame_counts(frames: int) -> tuple[int, int]:
    """The valid counts (4n+1) just below and just above."""
    below = max(1, (frames - 1) // 4 * 4 + 1)
    return below, below if below == frames else below + 4


@lru_cache(maxsize=4096)  # most clips of a folder have one size
def bucket_for(frames: int, height: int, width: int, resolution: int) -> Bucket:
    """The bucket of a clip of `height` x `width` pixels under one entry of `resolutions`.

    Its area is at most resolution^2, its sides are multiples of 16, and neither side is larger than the clip's
    (a clip under 16 pixels is refused by a rule before it comes here). Of the candidates around the ideal scale the
    largest wins, and among those about as large the one that crops least. One a step further away is taken only where
    it is no smaller and crops less: 1280x544 at 240 is 352x160, and not 384x144.
    """
    assert height >= SIDE_MULTIPLE and width >= SIDE_MULTIPLE, (height, width)
    scale = min(1.0, resolution / math.sqrt(height * width))
    ideal_h, ideal_w = height * scale, width * scale

    def sides(ideal: float, limit: int, further: int = 0) -> set[int]:
        down = max(1, math.floor(ideal / SIDE_MULTIPLE)) * SIDE_MULTIPLE
        up = math.ceil(ideal / SIDE_MULTIPLE) * SIDE_MULTIPLE
        step = further * SIDE_MULTIPLE
        return {s for s in range(down - step, up + step + 1, SIDE_MULTIPLE) if SIDE_MULTIPLE <= s <= limit}

    def around(further: int) -> list[tuple[int, int]]:
        high, wide = sides(ideal_h, height, further), sides(ideal_w, width, further)
        return [(h, w) for h in high for w in wide if h * w <= resolution**2]

    def cropped(h: int, w: int) -> float:
        """Share of the clip's area that a resize-to-cover and centre crop to h x w throws away."""
        cover = max(h / height, w / width)
        return 1 - (h * w) / (height * cover * width * cover)

    candidates = around(0)
    if not candidates:  # a ribbon: its short side cannot shrink below one patch, so its long side is cropped
        longest = min(resolution**2 // SIDE_MULTIPLE, max(height, width)) // SIDE_MULTIPLE * SIDE_MULTIPLE
        candidates = [(SIDE_MULTIPLE, longest) if height < width else (longest, SIDE_MULTIPLE)]
    # Prefer area first in steps of 10%, so that a slightly smaller crop does not cost a much smaller picture.
    best = max(candidates, key=lambda hw: (round(hw[0] * hw[1] / resolution**2, 1), -cropped(*hw), hw[0] * hw[1]))
    better = [hw for hw in around(1) if hw[0] * hw[1] >= best[0] * best[1] and cropped(*hw) < cropped(*best)]
    best = max(better, key=lambda hw: (-cropped(*hw), hw[0] * hw[1]), default=best)
    return Bucket(frames, *best)


def square_pixels(width: int, height: int, aspect: Fraction | float) -> tuple[float, float]:
    """The size of a picture once its pixels are square; one side shrinks, none grows. `aspect` is pixel width / pixel
    height."""
    return (width, height / float(aspect)) if aspect > 1 else (width * float(aspect), height)


def uniform_indices(available: int, frames: int) -> list[int]:
    """Frame numbers spread evenly over a clip of `available` frames, first and last included."""
    assert available >= 1 and frames >= 1
    if frames == 1:
        return [0]
    return [round(i * (available - 1) / (frames - 1)) for i in range(frames)]


def uniform_speed(duration: float, frames: int) -> float:
    """How much faster a clip of `duration` seconds looks when `frames` frames of it play at 16 FPS (1.0: true
    speed)."""
    return duration * WAN_FPS / frames if frames > 1 else 1.0
