"""What a set of clips has in common: speed, size, captions.

Facts of one clip are presets.clips.clip_facts's; whether they are good, the rules say.
"""

import math
from collections import Counter
from statistics import median

from presets.clips.clip_facts import ClipFacts
from presets.clips.geometry import nearest_frame_counts, uniform_speed

SMALLEST_RESOLUTION = 64  # the least that datasets.resolutions takes
MOST_FRAMES = 81  # 5 seconds at 16 FPS: the longest that Wan 2.2 I2V makes
SPEED_LIMIT = 1.25


def usual_caption(clips: list[ClipFacts]) -> str:
    """The caption that most of the clips share; "" when none has one."""
    counted = Counter(c.caption for c in clips if c.caption).most_common(1)
    return counted[0][0] if counted else ""


def reach(clip: ClipFacts) -> int:
    """The R of `resolutions` that leaves a clip at its own size: the side of the square of its area, rounded up."""
    return math.ceil(math.sqrt(clip.width * clip.height))


def off_speed(speed: float) -> float:
    """How far a speed factor is from true speed, in either direction: 2.0 and 0.5 are equally far."""
    return max(speed, 1 / speed) if speed > 0 else float("inf")


def true_speed_frames(clips: list[ClipFacts], *, low: int = 5, high: int = MOST_FRAMES) -> int:
    """The 4n+1 count in low..high that plays the median clip nearest to its true speed, no more than the shortest clip
    has."""
    high = max(low, min(high, nearest_frame_counts(min(c.frames for c in clips))[0]))
    middle = median(c.duration for c in clips)
    return min(range(low, high + 1, 4), key=lambda n: off_speed(uniform_speed(middle, n)))
