"""What `wanlora judge` measured of a run's previews, as the file that the page and the table read. How each number is
measured is engine.judge's.

Lengths are widths of the picture, times seconds of the model's own 16 frames a second, so that previews and clips of
any size can be compared, and a preview that plays too fast is too fast. Shares and distances are from 0 to 1.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from presets.errors import UserError
from presets.files import read_regular

FILE = "judge.json"
MOST_BYTES = 64 * 2**20
STANDS = 0.01  # widths a second: what is slower stands still, and is no measure of speed or direction
FROM_MIDDLE = 0.37  # widths, root mean square, that a pixel is from the middle: between a square and 16:9
DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")

Number = Annotated[float, Meta(ge=-1e100, le=1e100)]  # of larger ones no mean can be taken
Directions = Annotated[list[Number], Meta(min_length=len(DIRECTIONS), max_length=len(DIRECTIONS))]


class Camera(Struct, kw_only=True):
    """What the camera does, a mean over the film."""

    right: Number  # widths a second that it pans; the picture goes the other way
    down: Number
    zoom: Number  # per second: 0.1 is 10% nearer
    roll: Number  # degrees a second, clockwise


class Motion(Struct, kw_only=True):
    speed: Number  # widths a second, a mean over all pixels, the camera's part included
    directions: Directions  # what share of the motion goes where, as in DIRECTIONS
    camera: Camera
    subject_directions: Directions  # the same of what moves by itself, beyond the camera
    subject_speed: Number  # widths a second beyond the camera, of what moves by itself
    subject_share: Number  # of the picture that moves by itself


class Look(Struct, kw_only=True):
    colours: Number  # how far the later frames' colours are from the first one's
    sharpness: Number  # of the later frames, the first one's being 1
    flicker: Number  # how much brightness changes that no motion explains, from frame to frame


class Track(Struct, kw_only=True):
    """Of a drawn object that is followed by its colour (engine.toy_base)."""

    path: Number  # widths that it is off the clips' way, a mean over the frames behind the first
    seen: Number  # the share of the frames in which it can be followed
    size: Number  # of its colour's pixels at the end, those of the first frame being 1
    shape: Number  # how much of its outline at the end lies on that of the first frame, moved there


class Film(Struct, kw_only=True):
    """One preview or clip. `motion` is None where there is a single frame."""

    frames: Number
    motion: Motion | None
    look: Look
    track: Track | None = None


class Preview(Struct, kw_only=True):
    step: int
    path: str  # relative to the run folder
    prompt: str
    number: int  # of the prompt in its set, from 0
    has_trigger: bool  # whether the prompt names the trigger word; also where there is none
    film: Film
    speed: Number | None  # times the clips'; None where either stands still or there is no such clip
    direction: Number | None  # how far its directions are the clips': 0 to 1
    changed: Number | None  # from the same prompt's first preview; None of that itself


class Judged(Struct, kw_only=True):
    """All measures of a run."""

    version: int = 1
    name: str
    clips: list[Film] = field(default_factory=list)  # as they train
    previews: list[Preview] = field(default_factory=list)  # by step and number
    notes: list[str] = field(default_factory=list)  # what was left out, and why


def read_measures(run_dir: Path) -> Judged | None:
    """None where nothing was measured. Raises UserError for a file that holds something else."""
    path = run_dir / FILE
    try:
        return msgspec.json.decode(read_regular(path, MOST_BYTES), type=Judged)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"holds no measures ({e})", where=str(path), fix="Remove it, and measure anew") from None


def agreement(one: Motion, wanted: Motion) -> float | None:
    """How far a motion goes where another does: 1 the same way, 0 nowhere it goes, or the opposite way. None where
    either stands still.

    Camera and subject are compared apart, each by the cosine between what they do, and count by how much of the wanted
    motion is theirs: a zoom in and a zoom out go everywhere alike, and a subject may do the same at another place.
    """
    if min(one.speed, wanted.speed) < STANDS:
        return None
    camera, subject = math.hypot(*_flow(wanted.camera)), wanted.subject_speed * wanted.subject_share
    if camera + subject == 0:
        return None
    by_camera = _cosine(_flow(one.camera), _flow(wanted.camera))
    by_subject = _cosine(one.subject_directions, wanted.subject_directions)
    return max(0.0, (camera * by_camera + subject * by_subject) / (camera + subject))


def _flow(camera: Camera) -> list[float]:
    """What a camera moves in the picture, in widths a second: the inner product of two such is that of the flows that
    they make."""
    return [
        camera.right,
        camera.down,
        math.log1p(max(camera.zoom, -0.99)) * FROM_MIDDLE,
        math.radians(camera.roll) * FROM_MIDDLE,
    ]


def _cosine(one: list[float], other: list[float]) -> float:
    length = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


def mean(values: list[float | None]) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def mean_film(films: list[Film]) -> Film | None:
    """Each number's mean over the films that have it."""
    if not films:
        return None
    return msgspec.convert(_mean([msgspec.to_builtins(film) for film in films]), Film, strict=False)


def _mean(values: list[Any]) -> Any:
    there = [value for value in values if value is not None]
    if there and isinstance(there[0], dict):
        return {key: _mean([value.get(key) for value in there]) for key in there[0]}
    if there and isinstance(there[0], list):
        return [_mean(list(items)) for items in zip(*there, strict=True)]
    return math.fsum(there) / len(there) if there else None


def scores(judged: Judged) -> dict[int, float]:
    """How near the previews of each step come to the clips, 0 to 1, a mean over the prompts: how far their directions
    agree, times the smaller of the two speeds over the larger, times the sharpness that they keep. Of drawn objects the
    way counts for direction and speed. Steps whose previews tell nothing of it are left out."""
    found: dict[int, list[float | None]] = {}
    for p in judged.previews:
        moves = None
        if p.film.track is not None:
            moves = max(0.0, 1 - 2 * p.film.track.path)
        elif p.speed is not None and p.direction is not None:
            moves = p.direction * min(p.speed, 1 / p.speed) if p.speed > 0 else 0.0
        found.setdefault(p.step, []).append(None if moves is None else moves * _kept(p.film.look.sharpness))
    return {step: score for step, of_step in found.items() if (score := mean(of_step)) is not None}


def _kept(sharpness: float) -> float:
    """More than the first frame had is noise."""
    return min(sharpness, 1 / sharpness) if sharpness > 0 else 0.0


def summaries(judged: Judged) -> list[str]:
    """What the measures say of each step's previews, in words."""
    out = []
    for step in sorted({p.step for p in judged.previews}):
        made = [p for p in judged.previews if p.step == step]
        words = []
        if (speed := mean([p.speed for p in made])) is not None:
            words.append(f"move {speed:.2f}x as fast as the clips")
        if (agrees := mean([p.direction for p in made])) is not None:
            words.append(f"their directions agree by {agrees:.2f}")
        if (off := mean([p.film.track.path for p in made if p.film.track is not None])) is not None:
            words.append(f"the object is {off:.3f} widths off the clips' way")
        if any(p.film.frames > 1 for p in made):
            words.append(f"keep {mean([p.film.look.sharpness for p in made]):.0%} of their first frames' sharpness")
        if (drift := mean([p.changed for p in made if not p.has_trigger])) is not None:
            words.append(f"without the trigger they are {drift:.3f} off the base's own")
        if words:
            out.append(f"step {step}: previews {', '.join(words)}")
    return out
