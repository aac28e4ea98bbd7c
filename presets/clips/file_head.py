"""What a clip's bytes say before anything is decoded: that it is something else than its name says, or not all of it is
there. Matroska's own layout is in `matroska`.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from presets.clips.matroska import missing_bytes
from presets.errors import ClipError

PNG = b"\x89PNG\r\n\x1a\n"
HEIC_BRANDS = (b"heic", b"heix", b"mif1", b"msf1")  # of ISO/IEC 23008-12
JXL = b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"  # in boxes, and bare; ISO/IEC 18181-2
# stills that are read by their names alone, and what they are named
NAMED = {"HEIC": (".heic", ".heif"), "JPEG XL": (".jxl",)}
AGAIN = "Copy or export it again, or take it out of the folder"
CONVERT = "Convert it to mp4, or take it out of the folder"


def unreadable(what: str, where: str, fix: str = AGAIN) -> ClipError:
    return ClipError(what, code="clip-unreadable", where=where, fix=fix)


def read_head(path: Path) -> tuple[bytes, int]:
    """The first 64 KiB and the size of a regular, non-empty file. Raises ClipError."""
    where, out = str(path), "Take it out of the folder"
    try:
        if path.is_dir():
            raise unreadable("is a folder", where, out)
        if path.exists() and not path.is_file():  # a named pipe would block forever
            raise unreadable("is not a file", where, out)
        if not path.exists():
            link = path.is_symlink()
            raise unreadable("is a link to nothing" if link else "does not exist", where, out if link else "")
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(65536)
    except OSError as e:
        raise unreadable(
            f"cannot be opened ({(e.strerror or str(e)).lower()})", where, "Check who may read it"
        ) from None
    if size == 0:
        raise unreadable("is empty (0 bytes)", where)
    return head, size


def animation(head: bytes) -> str:
    """The kind of animated image that begins with `head`, or ""."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "a GIF"
    if head.startswith(PNG) and b"acTL" in head.partition(b"IDAT")[0]:
        return "an animated PNG"
    if _is_webp(head) and head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 0x02:
        return "an animated WebP"
    return ""


def _still(head: bytes) -> str:
    if head.startswith(PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        return "HEIC"
    if head.startswith(JXL):
        return "JPEG XL"
    return "WebP" if _is_webp(head) else ""


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def refuse_foreign(head: bytes, where: str, *, image: bool = False) -> None:
    """Raise ClipError when the first bytes say that this is something else than its name says."""
    wanted = "an image" if image else "a video"
    if kind := animation(head):
        raise ClipError(f"is {kind}, not {wanted}", code="not-a-video", where=where, fix=CONVERT)
    if (still := _still(head)) and not image:
        suffix = {"JPEG": ".jpg"}.get(still) or NAMED.get(still, (f".{still.lower()}",))[0]
        what = f"is a {still} image with a video's name"
        raise ClipError(what, code="not-a-video", where=where, fix=f"Rename it to {suffix}")
    if image and (names := NAMED.get(still)):
        if Path(where).suffix.lower() in names:
            raise unreadable(f"is a damaged {still} image, or cut off before its end", where)
        what = f"is a {still} image with another name"
        raise ClipError(what, code="not-a-video", where=where, fix=f"Rename it to {names[0]}")
    if head.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, the content itself was not fetched"
        raise ClipError(what, code="not-a-video", where=where, fix="Run: git lfs pull")
    if not head.strip(b"\0"):
        raise unreadable("holds only zero bytes: a copy or download that never finished", where)
    text = head[:4096].decode("utf-8", "ignore")
    if text and sum(c.isprintable() or c.isspace() for c in text) == len(text) > len(head[:4096]) - 4:
        what = "is a web page" if "<html" in text.lower() or "<!doctype" in text.lower() else "is a text file"
        fix = "Fetch the real file, or take it out of the folder"
        raise ClipError(f"{what}, not {wanted}", code="not-a-video", where=where, fix=fix)


def refuse_incomplete(path: Path, size: int, where: str) -> None:
    """Raise ClipError when the container promises more than the file holds, or that its index was never
    written."""
    with path.open("rb") as f:
        start = f.read(12)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            missing, has_index = _mp4_missing(f, size)
        elif start[:4] == b"\x1a\x45\xdf\xa3":
            missing, has_index = missing_bytes(f, size), True
        elif start[:4] == b"RIFF":
            promised = 8 + struct.unpack("<I", start[4:8])[0]
            missing, has_index = max(0, promised - size) if promised > 8 else 0, True
        else:
            return
    if missing:
        raise unreadable(f"is truncated: the file ends {missing:,} bytes too early", where)
    if not has_index:
        raise unreadable("has no index (moov): the recording or download was cut off before its end", where)


def _mp4_missing(f: BinaryIO, size: int) -> tuple[int, bool]:
    """(bytes that the outermost boxes promise beyond the end, whether there is a moov or moof box)."""
    has_index = False
    for kind, end in boxes(f, size):
        has_index = has_index or kind in (b"moov", b"moof")
        if end > size and kind in (b"moov", b"moof", b"mdat"):
            return end - size, True
    return 0, has_index


def boxes(f: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """(kind, offset of its end) of each outermost box of an MP4 file of `size` bytes, as its header says (ISO 14496-12,
    4.2): the last one may end beyond the file. Stops at what is no box."""
    at = 0
    while at + 8 <= size:
        f.seek(at)
        header = f.read(16)
        length, kind = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:16])[0]
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < 8:
            return
        at += length
        yield kind, at
