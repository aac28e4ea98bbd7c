"""Drawn objects followed by their colour: the toy base's films and whatever a LoRA makes of them. How a colour is found
is engine.toy_base.films's.

Places are in widths of the picture from where the object is in the first frame. T frames, S pixels a side.

The drawings need torch, whose start takes longer than all the rest: it is imported where a film may be one of them.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.judge.motion import Frames
from presets.report.measures import Track

LARGEST = 128  # pixels a side: twice what drawn films have
MASKED = 0.5  # of likeness: the object


class Way(NamedTuple):
    """Of one object in one film."""

    does: str  # the caption without the object's look: what it was asked to do
    way_T2: NDArray[np.float64]
    share_T: NDArray[np.float64]  # of the picture that it takes
    seen_T: NDArray[np.bool_]  # whether that is enough to be followed
    shape: float


def follow(frames_THWC: Frames, caption: str) -> Way | None:
    """None where the caption names no drawn object, the picture is no small square, or its first frame does not show
    it."""
    _, height, width, _ = frames_THWC.shape
    if height != width or width > LARGEST:
        return None
    import torch

    from engine.toy_base.films import COLOURS, SHAPES, likeness, locate
    from engine.toy_base.motion import SEEN

    object_of = re.compile(rf"\ba ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
    named = object_of.search(caption)
    if named is None:
        return None
    video = torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    colour_B = torch.tensor([list(COLOURS).index(named[1])])
    found_BT2, share_BT = locate(video, colour_B)
    share_T = share_BT[0].double().numpy()
    if share_T[0] < SEEN:
        return None
    way_T2 = ((found_BT2 - found_BT2[:, :1])[0] / 2).double().numpy()
    mask_TSS = (likeness(video, colour_B)[0] > MASKED).numpy()
    across, down = np.rint(way_T2[-1] * width).astype(int)
    shape = _overlap(mask_TSS[0], np.roll(mask_TSS[-1], (-down, -across), (0, 1)))
    return Way(object_of.sub("", caption).strip(), way_T2, share_T, share_T >= SEEN, shape)


def track(way: Way, clips: list[Way]) -> Track | None:
    """A preview's way against the mean of the clips' that do the same, else of all. None without clips."""
    from engine.toy_base.motion import LOST

    alike = [clip for clip in clips if clip.does == way.does] or clips
    if not alike:
        return None
    length = min(len(way.way_T2), *(len(clip.way_T2) for clip in alike))
    wanted_T2 = np.mean([clip.way_T2[:length] for clip in alike], axis=0)
    away_T = np.where(way.seen_T[:length], np.linalg.norm(way.way_T2[:length] - wanted_T2, axis=-1), LOST)
    return Track(
        path=float(away_T[1:].mean()) if length > 1 else 0.0,
        seen=float(way.seen_T.mean()),
        size=float(way.share_T[-1] / way.share_T[0]),
        shape=way.shape,
    )


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 0.0
