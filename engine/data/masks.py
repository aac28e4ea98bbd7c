"""Loss masks: what each latent of a clip counts in its loss, from a grey still or video beside the clip. White counts
in full, black as little as the dataset says. Imports no torch.

Which file belongs to which clip is presets.clips.loss_masks's; the loss under a mask, engine.training.objective's.
"""

from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from engine.data.frames import (
    DecodeRequest,
    Frames,
    decode_image,
    decode_into,
    not_decoding,
    pictures_at,
    reading,
    ways_to,
)
from presets.clips.geometry import Bucket
from presets.errors import ClipError

Grid = NDArray[np.float32]  # (latent frames, latent height, latent width): 1 counts in full, 0 not at all
CELL = 8  # pixels a side that make a latent
FIX = "Export the mask again with a frame for each frame of its clip, or take it out of the folder"


class Mask(Struct, frozen=True):
    """The mask of one clip."""

    path: str
    kind: Literal["video", "image"]
    least: float  # 0..1: what black counts


def decode_masked(
    request: DecodeRequest, out: Frames | None, mask: Mask | None, grid: Grid | None, *, threads: int = 1
) -> None:
    """What a batch holds of one draw: its frames into `out`, unless they are not needed, and what its mask says into
    `grid`, where it has one. Raises ClipError."""
    places = [0] if out is None else decode_into(request, out, threads=threads).places
    if mask is not None:
        assert grid is not None
        mask_into(mask, request, places, grid, threads=threads)


def mask_into(mask: Mask, request: DecodeRequest, places: list[int], out: Grid, *, threads: int = 1) -> None:
    """The mask over the clip's frames `places`, at the clip's crop and flips, as mean over each latent's pixels: 8 x 8
    of one frame for latent frame 0, of four frames for the others. A still holds for all frames; of a video, frame n
    is for frame n of the clip. Raises ClipError."""
    bucket = request.bucket
    assert out.shape == bucket.latent and len(places) == bucket.frames, (out.shape, places)
    with reading(mask.path):
        if mask.kind == "image":
            share = np.broadcast_to(_cells(decode_image(mask.path, bucket, grow=True)) / (255 * CELL**2), out.shape)
        else:
            share = _shares(mask.path, places, bucket, threads)
    share = share[:, :, ::-1] if request.flip_x else share
    share = share[:, ::-1] if request.flip_y else share
    out[:] = 1 - (1 - share) * (1 - mask.least)  # 1 where it is white, to the bit


def _shares(path: str, places: list[int], bucket: Bucket, threads: int) -> NDArray[np.float64]:
    """How white each latent's pixels are, 0..1."""
    per_latent = np.array([1] + [4] * (bucket.latent[0] - 1)).reshape(-1, 1, 1)
    for index, back in ways_to(path):
        if places[-1] >= len(index.pts):
            what = f"has {len(index.pts)} frames, and frame {places[-1] + 1} of its clip is trained on"
            raise ClipError(what, code="mask-too-short", where=path, fix=FIX)
        sums, found = np.zeros(bucket.latent, np.int64), 0
        for slot, picture in pictures_at(path, index, places, bucket, back=back, threads=threads, grow=True):
            sums[(slot + 3) // 4] += _cells(picture)
            found = slot + 1
        if found == len(places):
            return sums / (255 * CELL**2 * per_latent)
    raise not_decoding(path)


def _cells(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The sums of the grey values (ITU-R BT.601 luma) of the pixels of each latent."""
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    height, width = grey.shape
    return grey.reshape(height // CELL, CELL, width // CELL, CELL).sum(axis=(1, 3), dtype=np.int64)
