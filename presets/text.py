"""Texts that are put together from parts."""

import re

_ENDED = re.compile(r"[.!?:…][\"')\]]*$")
_COMMAND = re.compile(r": (?:wanlora|ssh)\b.*$")  # a full stop behind it would be copied along


def sentences(*parts: str) -> str:
    """The parts as one text, each ended with a full stop unless it has an end mark; empty parts are left out.

    A command to type at the very end (`Start it with: wanlora daemon start`) stays as it is.
    """
    texts = [text for part in parts if (text := part.strip())]
    open_end = bool(texts and _COMMAND.search(texts[-1]))
    return " ".join(
        t if _ENDED.search(t) or (open_end and i == len(texts)) else f"{t}." for i, t in enumerate(texts, 1)
    )


def human(size: float) -> str:
    """Bytes for a person, in three digits or so: `512 B`, `12 KiB`, `1.8 GiB`, `140 GiB`."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.{int(size < 100 and unit[0] in 'MGT')}f} {unit}"
