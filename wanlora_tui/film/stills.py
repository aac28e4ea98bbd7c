"""Posters: read at once, for one is small, and kept for the next drawing. Words where there is none."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from wanlora_tui.film.decoding import FORMATS, Frame, fitted, shrunk
from wanlora_tui.output.far_words import shown_path


def read_picture(found: Path | str, where: Path, *, poster: bool = False) -> tuple[Image.Image | None, str]:
    """A picture (None when it cannot be read, or is not here and `found` says why) and the words under it: `where` it,
    or what it is a `poster` of, lies."""
    shown = shown_path(str(where), short=False)
    if isinstance(found, str):
        return None, f"{found}\n{shown}"
    try:
        return _read(found, found.stat().st_mtime_ns), shown
    except (OSError, ValueError, Image.DecompressionBombError) as e:
        what = "poster" if poster else "picture"
        why = e.strerror if isinstance(e, OSError) and e.strerror else e
        return None, f"The {what} cannot be shown ({why}).\n{shown}"


@lru_cache(16)
def _read(path: Path, mtime_ns: int) -> Image.Image:
    with Image.open(path, formats=FORMATS) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((2000, 2000))  # more than a terminal shows, and much less than a picture can be
    return picture


def still(picture: Image.Image, box: tuple[int, int], aspect: float = 1.0) -> Frame:
    """A picture at the size it is drawn."""
    return shrunk(picture, fitted(*picture.size, box, aspect))
