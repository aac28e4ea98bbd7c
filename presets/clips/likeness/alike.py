"""Clips that are there twice: the same bytes under another name, or nearly the same pictures, as of another export."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from presets.clips.clip_facts import ClipFacts
from presets.clips.likeness.small_pictures import Picture, image_picture, pictures_at
from presets.look import Look, never_ends
from presets.machine.limits import cores

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 2**20  # bytes
PLACES = (0.1, 0.5, 0.9)  # of a clip's time, where its pictures are compared
SIDE = 8  # a picture has so many rows and columns of bits, once for steps to the right and once for steps down
BITS = 2 * SIDE * SIDE  # of one picture
FIELDS = 4  # rows and columns of a picture whose colours are compared
WORDS = (BITS + 8 * 3 * FIELDS * FIELDS) // 64  # of one picture: its bits, then the colours of its fields
MOST_APART = 0.1  # of the bits; another size or compression changes 1 to 9%, and unrelated pictures differ in half
MOST_TINTED = 10.0  # of 255, between the colours of two pictures; another export changes 1 or 2
LEAST_CONTRAST = 4.0  # of 255; a flatter picture has bits of noise alone
SAME_LENGTH = 0.1  # the longer of two alike clips lasts no more than this share longer

Print = list[int]  # of 64 bits each, WORDS a picture; [] of a clip whose pictures tell nothing

_digests: dict[tuple[int, int, int, int], bytes] = {}  # (device, inode, size, mtime) -> of all bytes


class Twin(NamedTuple):
    """What a clip is like: those before it in a group of clips that are all alike."""

    how: str  # `same bytes as`, `looks like`
    group: Sequence[str]  # names in the folder, as `exclude` names clips

    def said(self, own: str, left_out: Set[str]) -> str:
        """`same bytes as a.mp4`: the first of them that trains; "" when the clip itself is that one."""
        before = takewhile(lambda name: name != own, self.group)
        other = next((name for name in before if name not in left_out), "")
        return f"{self.how} {Path(other).name}" if other else ""


def copies(clips: Iterable[ClipFacts], look: Look) -> list[list[str]]:
    """Groups of paths, each of files that hold the same bytes, in the order of `clips`. Only files of one size are
    read, and a file with several names is read once. One that vanishes meanwhile is in no group; raises LookEnded."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for clip in clips:
        by_size[clip.size_bytes].append(clip.path)
    wanted = [path for paths in by_size.values() if len(set(paths)) > 1 for path in dict.fromkeys(paths)]
    groups: dict[bytes, list[str]] = defaultdict(list)
    threads = min(4, cores())
    for path, digest in zip(wanted, look.at_all(wanted, lambda p: _digest(p, look), threads=threads), strict=True):
        if digest:
            groups[digest].append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _digest(path: str, look: Look) -> bytes:
    try:
        status = Path(path).stat()
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if key not in _digests:
            made = hashlib.blake2b(digest_size=16)
            with Path(path).open("rb") as f:
                while chunk := f.read(CHUNK):
                    look.raise_if_ended()
                    made.update(chunk)
            _digests[key] = made.digest()
        return _digests[key]
    except OSError:
        return b""


def print_of(
    path: Path, kind: Literal["video", "image"], duration: float, raise_if_ended: Callable[[], None] = never_ends
) -> Print:
    """What a clip's pictures look like, in few bytes: difference hashes of three of them, and their colours. Raises
    ClipError."""
    pictures = (
        [image_picture(path, 64)]
        if kind == "image"
        else pictures_at(path, [share * duration for share in PLACES], 64, raise_if_ended)
    )
    bits = [_difference_bits(p) for p in pictures]
    if any(b is None for b in bits):
        return []
    hashes = [np.packbits(b) for b in bits if b is not None]
    colours = [np.asarray(_shrunk(p, FIELDS)).ravel() for p in pictures]
    return [int(word) for word in np.concatenate([*hashes, *colours]).view(np.uint64)]


def _shrunk(picture: Picture, side: int) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)


def _difference_bits(picture: Picture) -> NDArray[np.bool_] | None:
    """Whether it gets brighter from field to field, to the right and down; None for a flat picture."""
    grey = np.asarray(_shrunk(picture, SIDE + 1).convert("L"), np.float32)
    if grey.std() < LEAST_CONTRAST:
        return None
    right, down = grey[:SIDE, 1:] > grey[:SIDE, :-1], grey[1:, :SIDE] > grey[:-1, :SIDE]
    return np.concatenate([right.ravel(), down.ravel()])


def look_alike(prints: Sequence[Print], durations: Sequence[float]) -> list[list[int]]:
    """Groups of places whose prints are nearly the same and whose clips are of about one length: each place with the
    first one that it is like, in at most one group. Compared by rows of numpy, so 5000 of them take a second."""
    found: list[list[int]] = []
    lengths: dict[int, list[int]] = defaultdict(list)
    for place, own in enumerate(prints):
        if own:
            lengths[len(own)].append(place)
    for words, places in lengths.items():
        table = np.array([prints[p] for p in places], np.uint64)
        bits = words // WORDS * BITS
        hashes, colours = table[:, : bits // 64], table[:, bits // 64 :].copy().view(np.uint8).astype(np.int16)
        seconds = np.array([durations[p] for p in places])
        free = np.ones(len(places), bool)
        for row in range(len(places)):
            if not free[row]:
                continue
            rest = np.flatnonzero(free[row + 1 :]) + row + 1
            apart = np.bitwise_count(hashes[rest] ^ hashes[row]).sum(axis=1)
            longer, shorter = np.maximum(seconds[rest], seconds[row]), np.minimum(seconds[rest], seconds[row])
            like = rest[(apart <= MOST_APART * bits) & (longer <= shorter * (1 + SAME_LENGTH))]
            like = like[np.abs(colours[like] - colours[row]).mean(axis=1) <= MOST_TINTED]
            if len(like):
                free[like] = False
                found.append([places[row], *(places[i] for i in like)])
    return sorted(found)
