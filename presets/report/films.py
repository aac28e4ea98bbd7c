"""Previews as a page holds them: small posters, and the films themselves while there is room."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from presets.files import read_regular
from presets.report.run_reader import StoredRun, inside
from presets.runs.run_view import PreviewSet

MOST_STEPS, MOST_PROMPTS = 12, 12  # that are shown; the others lie in the run folder
MOST_BYTES = 19_000_000  # of films and posters, as text in the page: it is to go through the mail
POSTER_SIDE = 320  # pixels
MOST_POSTER = 64 * 2**20  # bytes of a PNG that is read
BASE64 = 4 / 3


class Shown(Struct, kw_only=True):
    """One preview."""

    sample: PreviewSet
    path: str  # of the film, relative to the run folder; "" where it is not there
    poster: str = ""  # a data address; "" where it cannot be read
    film: str = ""  # a data address; "" where there was no room


class Reel(Struct, kw_only=True):
    """All previews that the page shows."""

    prompts: list[list[Shown]]  # of each prompt its steps, in order
    steps_of: int  # how many there are in all
    prompts_of: int
    linked: int  # films that had no room


def reel(run: StoredRun, best: int | None) -> Reel:
    """The previews of a run that a page shows, `best` and the newest first to have their films in it."""
    by_prompt: dict[str, list[PreviewSet]] = {}
    for sample in run.view.samples:
        by_prompt.setdefault(Path(sample.path).name, []).append(sample)
    steps = sorted({sample.step for sample in run.view.samples})
    kept = chosen(steps, best)
    prompts = [
        [_shown(run, sample) for sample in sorted(of_prompt, key=lambda s: s.step) if sample.step in kept]
        for _, of_prompt in sorted(by_prompt.items())[:MOST_PROMPTS]
    ]
    everything = [shown for of_prompt in prompts for shown in of_prompt]
    left = MOST_BYTES - sum(len(shown.poster) for shown in everything)
    linked = 0
    order = [best, steps[-1], steps[0], *reversed(steps)] if steps else []
    for shown in sorted((s for s in everything if s.path), key=lambda s: order.index(s.sample.step)):
        film = run.folder / shown.path
        if (data := _read(film, int(left / BASE64))) is not None:
            shown.film = _address("video/mp4", data)
            left -= len(shown.film)
        else:
            linked += 1
    return Reel(prompts=[p for p in prompts if p], steps_of=len(steps), prompts_of=len(by_prompt), linked=linked)


def chosen(steps: Sequence[int], best: int | None) -> set[int]:
    """The first, the last and the best step, and others evenly between them, MOST_STEPS in all."""
    if len(steps) <= MOST_STEPS:
        return set(steps)
    kept = {steps[0], steps[-1], *({best} & set(steps) if best is not None else ())}
    for i in range(MOST_STEPS):
        if len(kept) < MOST_STEPS:
            kept.add(steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))])
    return kept


def _shown(run: StoredRun, sample: PreviewSet) -> Shown:
    there = inside(run.folder, sample.path)
    return Shown(sample=sample, path=sample.path if there is not None else "", poster=_poster(run, sample))


def _poster(run: StoredRun, sample: PreviewSet) -> str:
    from PIL import Image

    path = inside(run.folder, sample.poster)
    if path is None:
        return ""
    try:
        with Image.open(io.BytesIO(read_regular(path, MOST_POSTER)), formats=["PNG"]) as image:
            small = image.convert("RGB")
        small.thumbnail((POSTER_SIDE, POSTER_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, "WEBP", quality=80, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all that Pillow says of a broken file
        return ""
    return _address("image/webp", out.getvalue())


def _read(path: Path, limit: int) -> bytes | None:
    """None of a file that is too large, or cannot be read."""
    try:
        return read_regular(path, max(0, limit))
    except OSError:
        return None


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
