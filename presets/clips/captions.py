"""Captions: one text file per clip, `castle_orbit.txt` beside `castle_orbit.mp4`; which file is whose, what it says."""

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path

from presets.errors import UserError
from presets.findings import Finding

MAX_CHARACTERS = 10_000  # UMT5 reads 512 tokens, about 2,000 characters; more is no caption but a wrong file
TRIGGER_MARK = "[trigger]"
NAMED = 8  # how many files one finding names before it counts the rest
EXTENSIONS = (".txt", ".caption")  # of caption files, where a dataset names none of its own; the first counts


class CaptionError(UserError):
    """A caption file that cannot be used."""


def caption_files(clips: Iterable[Path], texts: Iterable[Path], extensions: tuple[str, ...]) -> dict[Path, list[Path]]:
    """Clip -> its caption files, the one that counts first. `texts` end in one of the `extensions`, in any case.

    Of `castle.mp4` these are `castle.txt`, `castle.caption`, `castle.mp4.txt` and `castle.mp4.caption`. Where several
    clips have the stem `castle`, what bears a clip's full name is that clip's own, and the others share the rest.
    """
    named: dict[Path, list[Path]] = defaultdict(list)  # what is left of a caption's name -> captions
    clips, texts = list(clips), list(texts)
    for extension in extensions:
        for text in sorted(texts, key=lambda t: (not t.name.endswith(extension), t)):  # a.txt before a.TXT
            if text.name.lower().endswith(extension.lower()):
                named[text.with_name(text.name[: -len(extension)])].append(text)
    alike = Counter(clip.with_suffix("") for clip in clips)
    found = {}
    for clip in clips:
        stem, full = clip.with_suffix(""), named.get(clip, [])
        found[clip] = full if full and alike[stem] > 1 else [*named.get(stem, []), *full]
    return found


def read_caption(path: Path) -> str:
    """The caption in a text file, on one line: UTF-8, or UTF-16 with a byte order mark, at most 10,000 characters.
    Raises CaptionError."""
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
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows' PowerShell and Notepad write it
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        if wide:
            raise CaptionError("the caption is damaged UTF-16", where=where, fix="Save it as UTF-8") from None
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


def said(texts: Iterable[Path]) -> str:
    """What the first of a clip's caption files says that says something; "" where none does."""
    return next(iter(_contents(texts).values()), "")


def caption_problems(captions: dict[Path, list[Path]], index: int, root: Path) -> Iterator[Finding]:
    """Captions that contradict each other, and captions that several clips share. One that cannot be read is named
    where it is read."""
    field = f"datasets[{index}].path"
    several = {clip: _contents(texts) for clip, texts in captions.items() if len(texts) > 1}
    if differing := {clip: list(texts) for clip, texts in several.items() if len(set(texts.values())) > 1}:
        shown = [
            f"{clip.relative_to(root)} ({texts[0].name}, which counts, and {', '.join(t.name for t in texts[1:])})"
            for clip, texts in list(differing.items())[:NAMED]
        ]
        counts, other = (t.name.rpartition(".")[2] for t in next(iter(differing.values()))[:2])
        choice = (
            f'; or set datasets[{index}].caption_extension = ".{other}" to take those alone' if other != counts else ""
        )
        yield Finding(
            code="caption-conflict",
            severity="warning",
            field=field,
            message=f"{_count(differing, 'clip')} with captions that differ: {', '.join(shown)}{_more(differing)}",
            fix=f"Keep one caption for each{choice}",
        )
    of_caption: dict[Path, list[Path]] = defaultdict(list)
    for clip, texts in captions.items():
        if texts:
            of_caption[texts[0]].append(clip)
    if shared := {text: clips for text, clips in of_caption.items() if len(clips) > 1}:
        shown = [
            f"{t.relative_to(root)} ({', '.join(c.name for c in clips)})" for t, clips in list(shared.items())[:NAMED]
        ]
        yield Finding(
            code="caption-shared",
            severity="advice",
            field=field,
            message=f"{_count(shared, 'caption')} of more than one clip: {', '.join(shown)}{_more(shared)}",
            fix=f"Nothing to do where it fits all; else give one its own: {next(iter(shared.values()))[1].name}.txt",
        )


def _contents(texts: Iterable[Path]) -> dict[Path, str]:
    """Those captions that say something, and what."""
    found = {}
    for text in texts:
        with suppress(CaptionError):
            found[text] = read_caption(text)
    return {text: caption for text, caption in found.items() if caption}


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _more(things: Sized) -> str:
    return f" and {len(things) - NAMED} more" if len(things) > NAMED else ""
