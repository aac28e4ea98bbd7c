"""Contact sheets to judge previews by: one step's prompts, or one prompt across the steps, as picture and as video;
and the sheet of all frames of a clip.

Which previews they show is engine.training.previews's, which clips engine.preview.clip_sheets's; the videos are
engine.preview.video_files's.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from engine.preview.video_files import Frames
from engine.system.durable_files import atomic_write

COLUMNS = 5  # frames of a preview that a row shows
EARLIEST, LATEST = 1, 8  # steps that a comparison shows
GAP, TEXT = 8, 15  # pixels
INK, PAPER, FAINT, ALARM = (235, 235, 235), (18, 18, 20), (150, 150, 156), (255, 110, 90)
CELL = 128  # pixels in width at the least, for the words above a frame
WIDER = 1.6  # a grid's width over its height


@dataclass(frozen=True)
class Row:
    """One row of a sheet: what it is, something about it, and its small frames."""

    title: str
    about: str
    frames: Frames


def steps_shown(steps: Sequence[int]) -> list[int]:
    """Which of the steps a comparison shows: the first and the last ones."""
    rising = sorted(set(steps))
    return rising if len(rising) <= EARLIEST + LATEST else rising[:EARLIEST] + rising[-LATEST:]


def write_sheet(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Rows of frames spread over each preview, first and last included, with their words. Never half there, see
    engine.system.durable_files."""
    picks = [row.frames[np.unique(np.linspace(0, len(row.frames) - 1, COLUMNS).round().astype(int))] for row in rows]
    width = max(480, *(GAP + len(frames) * (frames.shape[2] + GAP) for frames in picks))
    head, line = _wrapped(title, width - 2 * GAP, most=3), TEXT + 5
    labels = [_wrapped(row.title, width - 2 * GAP, most=2) + ([row.about] if row.about else []) for row in rows]
    height = (
        GAP
        + len(head) * line
        + sum(GAP + len(words) * line + frames.shape[1] for words, frames in zip(labels, picks, strict=True))
        + GAP
    )
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    y = _write(draw, GAP, GAP, head, line, INK)
    for row, words, frames in zip(rows, labels, picks, strict=True):
        y = _write(draw, GAP, y + GAP, words[: len(words) - bool(row.about)], line, INK)
        y = _write(draw, GAP, y, [row.about] if row.about else [], line, FAINT)
        for column, frame in enumerate(frames):
            image.paste(Image.fromarray(frame), (GAP + column * (frames.shape[2] + GAP), y))
        y += frames.shape[1]
    with atomic_write(path) as aside:
        image.save(aside, format="PNG")


def write_grid(
    path: Path,
    lines: Sequence[str],
    frames: Frames,
    words: Sequence[str],
    alarms: Sequence[bool],
    marks: dict[str, str],
) -> None:
    """All frames at their own size, each under its words, which are red where `alarms` says so; `marks` are the PNG's
    texts. Never half there. Raises OSError."""
    count, height, width = frames.shape[:3]
    cell, line = max(CELL, width), TEXT + 5
    columns = min(count, max(1, round(math.sqrt(count * WIDER * (height + line) / cell))))
    full = GAP + max(columns * (cell + GAP), 480)
    head = [wrapped for text in lines for wrapped in _wrapped(text, full - 2 * GAP, most=4)]
    top = GAP + len(head) * line + GAP
    image = Image.new("RGB", (full, top + math.ceil(count / columns) * (height + line + GAP)), PAPER)
    draw = ImageDraw.Draw(image)
    _write(draw, GAP, GAP, head, line, INK)
    for i, (frame, text, alarm) in enumerate(zip(frames, words, alarms, strict=True)):
        x, y = GAP + i % columns * (cell + GAP), top + i // columns * (height + line + GAP)
        _write(draw, x, y, _wrapped(text, cell, most=1), line, ALARM if alarm else FAINT)
        image.paste(Image.fromarray(frame), (x, y + line))
        if alarm:
            draw.line((x - GAP // 2, y, x - GAP // 2, y + line + height), fill=ALARM, width=3)
    info = PngInfo()
    for name, mark in marks.items():
        info.add_text(name, mark)
    with atomic_write(path) as aside:
        image.save(aside, format="PNG", compress_level=1, pnginfo=info)


def side_by_side(tiles: Sequence[tuple[str, Frames]]) -> Frames:
    """Previews playing beside each other in one video, each under its words; a shorter one stays on its last frame."""
    length, bar = max(len(frames) for _, frames in tiles), TEXT + 9  # 24: even
    width, height = (max(frames.shape[axis] for _, frames in tiles) for axis in (2, 1))
    columns = math.ceil(math.sqrt(len(tiles) * (height + bar) / width)) if len(tiles) > 3 else len(tiles)
    rows = math.ceil(len(tiles) / columns)
    out = np.empty((length, rows * (height + bar), columns * width, 3), np.uint8)
    out[:] = PAPER
    for i, (words, frames) in enumerate(tiles):
        y, x = i // columns * (height + bar), i % columns * width
        label = Image.new("RGB", (width, bar), PAPER)
        _write(ImageDraw.Draw(label), 4, 4, _wrapped(words, width - 8, most=1), TEXT, INK)
        out[:, y : y + bar, x : x + width] = np.asarray(label)
        held = frames[np.minimum(np.arange(length), len(frames) - 1)]
        out[:, y + bar : y + bar + frames.shape[1], x : x + frames.shape[2]] = held
    return out


def _font() -> Any:
    return ImageFont.load_default(TEXT)


def _plain(text: str) -> str:
    """What Pillow's own font can write: letters without their accents, a question mark for each of another script."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", " ".join(text.split())) if not unicodedata.combining(c))
    return letters.encode("ascii", "replace").decode()


def _write(
    draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], line: int, colour: tuple[int, int, int]
) -> int:
    """Returns the y below."""
    for text in lines:
        draw.text((x, y), text, fill=colour, font=_font())
        y += line
    return y


def _wrapped(text: str, width: int, *, most: int) -> list[str]:
    """Text in lines no wider than `width` pixels, `most` of them; what does not fit ends in three dots."""
    font, lines, words = _font(), [""], _plain(text).split(" ")
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > most
    lines = lines[:most]
    while lines[-1] and (font.getlength(lines[-1] + ("..." if cut else "")) > width):
        lines[-1], cut = lines[-1][:-1], True
    return [*lines[:-1], lines[-1].rstrip() + ("..." if cut else "")]
