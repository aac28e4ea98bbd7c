"""Captions: one text file per clip, `castle_orbit.txt` beside `castle_orbit.mp4`."""

import re
from pathlib import Path

from presets.errors import UserError

MAX_CHARACTERS = 10_000  # UMT5 reads 512 tokens, about 2,000 characters; more is no caption but a wrong file
TRIGGER_MARK = "[trigger]"


class CaptionError(UserError):
    """A caption file that cannot be used."""


def read_caption(path: Path) -> str:
    """The caption in a text file, on one line: UTF-8 (a byte order mark is accepted), at most 10,000 characters. Raises
    CaptionError."""
    where = str(path)
    try:
        with path.open("rb") as f:
            # four bytes are the longest UTF-8 character; no need to read on behind the limit
            raw = f.read(4 * MAX_CHARACTERS + 4)
            size = path.stat().st_size
    except OSError as e:
        raise CaptionError(
            f"the caption cannot be read ({(e.strerror or str(e)).lower()})", where=where, fix="Check who may read it"
        ) from None
    too_long = CaptionError(
        f"the caption is too long ({size:,} bytes; at most {MAX_CHARACTERS:,} characters)",
        where=where,
        fix="Shorten it to a few sentences",
    )
    if size > len(raw):
        raise too_long
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CaptionError("the caption is UTF-16, not UTF-8", where=where, fix="Save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        raise CaptionError(
            f"the caption is not UTF-8 (byte {e.start}, line {line})", where=where, fix="Save it as UTF-8"
        ) from None
    if len(text) > MAX_CHARACTERS:
        raise too_long
    if "\0" in text:
        raise CaptionError(
            "the caption holds zero bytes, so it is no text file", where=where, fix="Write the caption again"
        )
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def fill_trigger(text: str, trigger: str) -> str:
    """A caption or prompt with `[trigger]` replaced by the trigger word. With no trigger word the mark goes away,
    together with the comma or space that followed it."""
    if trigger:
        return text.replace(TRIGGER_MARK, trigger)
    for tail in (", ", ",", " ", ""):
        text = text.replace(TRIGGER_MARK + tail, "")
    return text.strip()


def replace_word(text: str, word: str, by: str) -> tuple[str, int]:
    """(`text` with the whole word `word` replaced, in any case, how often it was there). `man` is not found in
    `woman`."""
    return re.subn(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: by, text, flags=re.IGNORECASE)
