"""What a film keeps of its first frame, and how quiet it is, whatever moves in it.

- Colours: the earth mover's distance between two frames' colours, which for one channel is the mean difference of its
  sorted values (Y. Rubner, C. Tomasi, L. Guibas, 2000), a mean over the channels. Where things are does not count.
- Sharpness: the variance of the Laplacian of the brightness (J. Pech-Pacheco et al., ICPR 2000).
- Flicker: the root mean square of what a frame differs from the next one brought back along the flow, where both see
  the same (W.-S. Lai et al., Learning Blind Video Temporal Consistency, ECCV 2018), which is where flow there and back
  cancel (N. Sundaram, T. Brox, K. Keutzer, ECCV 2010).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.judge.motion import Flow, Frames, opencv
from presets.report.measures import Look

QUANTILES = np.linspace(0, 1, 257)
LEAST_SHARP = 1.0  # variance of a first frame that has nothing sharp: of it no share can be taken


def look_of(frames_THWC: Frames, flow: Flow | None) -> Look:
    """`flow` is None of a single frame. Raises UserError without OpenCV."""
    first, later = frames_THWC[0], frames_THWC[1:]
    sharp = sharpness(first)
    return Look(
        colours=float(np.mean([colour_distance(first, frame) for frame in later])) if len(later) else 0.0,
        sharpness=float(np.mean([sharpness(f) for f in later])) / sharp if len(later) and sharp > LEAST_SHARP else 1.0,
        flicker=0.0 if flow is None else flicker(flow),
    )


def colour_distance(one_HWC: NDArray[np.uint8], other_HWC: NDArray[np.uint8]) -> float:
    """0 to 1; pictures of any size."""
    one, other = (np.quantile(picture.reshape(-1, 3), QUANTILES, axis=0) for picture in (one_HWC, other_HWC))
    return float(np.abs(one - other).mean() / 255)


def sharpness(frame_HWC: NDArray[np.uint8]) -> float:
    """In squared levels of brightness."""
    cv2 = opencv()
    return float(cv2.Laplacian(cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def flicker(flow: Flow) -> float:
    """0 to 1, a mean over the pairs of frames."""
    cv2 = opencv()
    height, width = flow.grey_THW.shape[1:]
    at_HW2 = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    found = []
    for i, (there, back) in enumerate(zip(flow.forward_PHW2, flow.backward_PHW2, strict=True)):
        target = at_HW2 + there
        brought = _read(cv2, flow.grey_THW[i + 1].astype(np.float32), target)
        home = _read(cv2, back, target)
        tolerance = 0.01 * (np.square(there).sum(-1) + np.square(home).sum(-1)) + 0.5
        inside = ((target >= 0) & (target <= (width - 1, height - 1))).all(-1)
        same = inside & (np.square(there + home).sum(-1) < tolerance)
        if same.any():
            found.append(float(np.sqrt(np.square(brought - flow.grey_THW[i])[same].mean()) / 255))
    return float(np.mean(found)) if found else 0.0


def _read(cv2: Any, picture: Any, at_HW2: Any) -> Any:
    """A picture's values at places between its pixels."""
    return cv2.remap(picture, at_HW2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
