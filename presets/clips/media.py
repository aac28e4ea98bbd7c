"""What one media file really holds: opening, indexing and proving it. Only this and `presets.clips.damage` decode in
the presets.

A clip is trusted only when its container is complete, every picture has a time, and its first and last frames decode:
what fails here would otherwise fail hours into a training.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import dropwhile, pairwise
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import av
import av.container
import msgspec
from msgspec import Struct

from presets.clips.matroska import missing_bytes
from presets.errors import ClipError
from presets.look import never_ends

# Only containers that hold one video each: FFmpeg would follow a playlist (HLS, concat) named .mp4 to other files and
# hosts.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv"
AGAIN = "Copy or export it again, or take it out of the folder"
CONVERT = "Convert it to mp4, or take it out of the folder"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# by orientation()
ROTATIONS = {
    (False, False, False): 0,
    (False, True, False): 0,
    (False, False, True): 0,
    (False, True, True): 180,
    (True, False, False): 90,
    (True, False, True): 90,
    (True, True, True): 270,
    (True, True, False): 270,
}
UNSPECIFIED = 2  # matrix: AVCOL_SPC_UNSPECIFIED, ITU-T H.273 table 4
HDR_TRANSFERS = (16, 18)  # PQ and HLG, ITU-T H.273 table 3
# Old files carry tags that are not UTF-8. PyAV 19 reads them without being asked to, and no longer takes the word.
TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


class VideoFile(Struct, frozen=True, kw_only=True):
    """One video. Sizes are those of the stored frames, before rotation."""

    frames: int
    fps: float
    duration: float
    variable_rate: bool
    width: int
    height: int
    # degrees to turn a stored frame counterclockwise: numpy.rot90(frame, rotation // 90); a mirrored one is turned, not
    # mirrored
    rotation: int
    codec: str
    pixel_aspect: float  # width of a pixel divided by its height
    hdr: bool
    untagged_hd: bool  # read as BT.709 although the file does not say so


class FrameIndex(Struct, frozen=True):
    """When each frame of a video is shown, in display order, without having decoded any."""

    pts: list[int]  # rising, in units of time_base; one per frame that the decoder will give
    time_base: Fraction
    last_duration: int  # how long the last frame stays, in units of time_base
    keyframes: list[int]  # pts, rising; decoding can begin at each of them

    @property
    def times(self) -> list[float]:
        """Seconds from the first frame to each frame."""
        return [float((p - self.pts[0]) * self.time_base) for p in self.pts]

    @property
    def duration(self) -> float:
        """Seconds, the last frame's time on screen included."""
        return float((self.pts[-1] - self.pts[0] + self.last_duration) * self.time_base)

    @property
    def variable_rate(self) -> bool:
        """True when some frame stays a quarter longer or shorter than the average (beyond the clock's rounding)."""
        gaps = _gaps(self.pts)
        if not gaps:
            return False
        mean = sum(gaps) / len(gaps)
        return max(abs(g - mean) for g in gaps) > max(mean / 4, min(1, mean / 2))


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video and its picture stream: the one marked as default, else the first (cover art is no picture).

    Raises ClipError, also for FFmpeg's errors inside the block.
    """
    where = str(path)
    try:
        # An absolute path, so that no name is taken for a protocol ("concat:...").
        with av.open(
            str(path.absolute()), options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}, **TAGS
        ) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise ClipError(
                    "holds no picture" + (", only sound" if container.streams.audio else ""),
                    code="not-a-video",
                    where=where,
                    fix="Take it out of the folder",
                )
            stream = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
            if stream.codec_context is None:
                raise ClipError(
                    "its video is in a format that cannot be decoded here",
                    code="clip-unreadable",
                    where=where,
                    fix="Convert it to H.264 mp4",
                )
            stream.thread_count = 1  # several clips are read at once, so threads inside one gain nothing
            yield container, stream
    except av.error.FFmpegError as e:
        raise ClipError(
            f"is not a video that can be read ({_reason(e)})", code="clip-unreadable", where=where, fix=AGAIN
        ) from None


def from_keyframe(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets of `stream` from the next keyframe on. What lies before it does not decode: copies without re-encoding
    begin anywhere."""
    return dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))


def time_of(packet: av.Packet) -> int | None:
    """When the packet's picture is shown, in units of its time base, as far as its container tells."""
    return packet.pts if packet.pts is not None else packet.dts


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames from the next keyframe on, but for those shown before it: they need what lies before it too."""
    begin = None
    for packet in from_keyframe(container, stream):
        begin = time_of(packet) if begin is None else begin
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            if begin is None or frame.pts is None or frame.pts >= begin:
                yield frame


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(swap rows and columns, then flip left-right, then flip upside down): what a frame's display matrix asks for, to
    the nearest right angle.

    The matrix takes stored (x, y) to shown (a x + c y, b x + d y); one that would leave no picture (all zero) asks for
    nothing. Source: FFmpeg, libavutil/display.h.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # PyAV calls it an object; it is a buffer
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))  # type: ignore[call-overload]
    if a * d == b * c:
        return False, False, False
    return (True, c < 0, b < 0) if abs(b) + abs(c) > abs(a) + abs(d) else (False, a < 0, d < 0)


def is_untagged_hd(frame: av.VideoFrame) -> bool:
    """Whether a frame is to be read as BT.709 although neither file nor codec says so: by convention it is from this
    size on, where players draw the line too. What is smaller and says nothing is BT.601, as FFmpeg reads it by itself.
    """
    return frame.colorspace == UNSPECIFIED and not frame.format.is_rgb and (frame.width >= 1280 or frame.height > 576)


def size_as_viewed(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[float, float]:
    """(width, height) of a frame that `stream` has just given: turned upright, in pixels as high as the stored ones."""
    width, height = float(frame.width * Fraction(stream.codec_context.sample_aspect_ratio or 1)), float(frame.height)
    return (height, width) if orientation(frame)[0] else (width, height)


def changed_size(path: Path, before: tuple[float, float], now: tuple[float, float], seconds: float) -> ClipError:
    what = (
        f"changes its size from {before[0]:.0f}x{before[1]:.0f} to {now[0]:.0f}x{now[1]:.0f} pixels at {seconds:.1f} s"
    )
    return ClipError(
        what,
        code="clip-size-changes",
        where=str(path),
        fix="Cut it there into two clips, or export it again at one size",
    )


def _reason(error: av.error.FFmpegError) -> str:
    return (error.strerror or "no reason given").lower()


def read_index(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    *,
    where: str,
    go_on: Callable[[], None] = never_ends,
) -> FrameIndex:
    """Times of all frames, by reading the packets of `stream` from where `container` stands (its beginning) to its end.

    Headers of webm and of cut recordings hold no frame count, and some hold a wrong one; the packets do not lie.
    Raises ClipError when there is no frame.
    """
    shown: list[tuple[int, int]] = []
    keyframes: list[int] = []
    timed = False  # raw streams have no times at all
    assert stream.time_base
    time_base = Fraction(stream.time_base)  # PyAV 19 has a type of its own
    tick = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25)) / time_base
    for number, packet in enumerate(container.demux(stream)):
        go_on()
        if packet.size == 0:
            continue  # the end mark, or AVI's way to say "once more the same"
        pts = time_of(packet)
        if pts is None and timed:
            continue  # shown before the file begins: it was cut there
        timed = timed or pts is not None
        pts = round(number * tick) if pts is None else pts
        if packet.is_keyframe:
            keyframes.append(pts)
        # Not shown: what an edit list cuts away (trimmed in a phone), and VP8's mere references (RFC 6386, 9.1).
        if not packet.is_discard and (stream.codec_context.name != "vp8" or bytes(packet)[0] & 0x10):
            shown.append((pts, packet.duration or 0))
    if keyframes:
        # what comes before the first keyframe cannot be decoded
        shown = sorted(s for s in shown if s[0] >= keyframes[0])
    if not keyframes or not shown:
        raise ClipError("holds no frame that can be decoded", code="clip-unreadable", where=where, fix=AGAIN)
    pts_list = [pts for pts, _ in shown]
    gaps = _gaps(pts_list)
    last = shown[-1][1] or (round(median(gaps)) if gaps else round(tick))
    return FrameIndex(pts_list, time_base, max(1, last), sorted(keyframes))


def _gaps(pts: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(pts)]


def probe_video(path: Path, go_on: Callable[[], None] = never_ends) -> VideoFile:
    """Facts of a video file whose first and last frames decode. Raises ClipError for everything else.

    `go_on` is called between packets and between frames; what it raises ends the reading.
    """
    where = str(path)
    head, size = _read_head(path)
    _refuse_foreign(head, where)
    _refuse_incomplete(path, size, where)
    with open_video(path) as (container, stream):
        index = read_index(container, stream, where=where, go_on=go_on)
        first, last = _decode_first(path, go_on), _decode_last(path, index.keyframes, go_on)
        # it was cut where the picture was being refreshed bit by bit
        if first.pts is not None and first.pts > index.pts[0]:
            index = msgspec.structs.replace(index, pts=[p for p in index.pts if p >= first.pts])
        frame_time = index.duration / len(index.pts)
        missing = (index.pts[-1] - (last.pts if last.pts is not None else index.pts[-1])) * float(index.time_base)
        if missing > 1.5 * frame_time:
            raise ClipError(
                f"the last {missing:.1f} s of its {index.duration:.1f} s do not decode",
                code="clip-unreadable",
                where=where,
                fix=AGAIN,
            )
        context = stream.codec_context
        measured = 1 / frame_time
        nominal = float(stream.average_rate or 0)
        return VideoFile(
            frames=len(index.pts),
            fps=nominal if abs(nominal / measured - 1) < 0.01 else measured,
            duration=index.duration,
            variable_rate=index.variable_rate,
            width=first.width,
            height=first.height,
            rotation=ROTATIONS[orientation(first)],
            codec=context.codec.canonical_name,
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            hdr=context.color_trc in HDR_TRANSFERS,
            untagged_hd=is_untagged_hd(first),
        )


def _decode_first(path: Path, go_on: Callable[[], None]) -> av.VideoFrame:
    """The first frame that is shown. Raises ClipError."""
    with open_video(path) as (container, stream):
        try:
            go_on()
            first = next(decoded(container, stream), None)
        except av.error.FFmpegError as e:
            raise _undecodable(path, "first", f" ({_reason(e)})") from None
    if first is None or first.is_corrupt:
        raise _undecodable(path, "first")
    return first


def _decode_last(path: Path, keyframes: list[int], go_on: Callable[[], None]) -> av.VideoFrame:
    """The last frame, decoded from the last keyframe; where that fails, from the one before, and then from the start.
    Raises ClipError.

    In MPEG streams a seek is a guess that may lead too far, and with intra refresh no frame after a seek is whole for a
    while.
    """
    reason = ""
    for start in (*keyframes[:-3:-1], None):
        with open_video(path) as (container, stream):
            last = None
            try:
                if start is not None:
                    container.seek(start, stream=stream, backward=True)
                for frame in decoded(container, stream):
                    go_on()
                    # AVI with B-frames: not always rising
                    if last is None or frame.pts is None or last.pts is None or frame.pts >= last.pts:
                        last = frame
            except av.error.FFmpegError as e:
                reason = f" ({_reason(e)})"
                continue
        if last is not None and not last.is_corrupt:
            return last
    raise _undecodable(path, "last", reason)


def _undecodable(path: Path, which: str, reason: str = "") -> ClipError:
    return ClipError(f"its {which} frame does not decode{reason}", code="clip-unreadable", where=str(path), fix=AGAIN)


def probe_image(path: Path) -> tuple[int, int, int, str]:
    """(width, height, rotation, format) of a still image that decodes whole; width and height are those for viewing.
    Raises ClipError.

    The rotation is the one of its EXIF orientation, counterclockwise; PIL.ImageOps.exif_transpose applies it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    where = str(path)
    head, _ = _read_head(path)
    if _animation(head):
        _refuse_foreign(head, where)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            rotation = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}.get(image.getexif().get(0x0112, 1), 0)
            return *upright.size, rotation, (image.format or "").lower()
    except UnidentifiedImageError:
        _refuse_foreign(head, where, image=True)
        raise ClipError(
            "is not an image that can be read",
            code="clip-unreadable",
            where=where,
            fix="Save it again as png or jpg, or take it out of the folder",
        ) from None
    except Image.DecompressionBombError:
        raise ClipError(
            "is too large an image",
            code="clip-unreadable",
            where=where,
            fix="Scale it down: a few megapixels are plenty",
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as e:  # Pillow's decoders raise all of these for damaged files
        what = (
            "is truncated" if "truncated" in str(e) else f"is a damaged image ({str(e).lower() or 'no reason given'})"
        )
        raise ClipError(what, code="clip-unreadable", where=where, fix=AGAIN) from None


def _read_head(path: Path) -> tuple[bytes, int]:
    """The first 64 KiB and the size of a regular, non-empty file. Raises ClipError."""
    where = str(path)
    try:
        if not path.is_file():  # a named pipe would block forever
            what = (
                "is a folder"
                if path.is_dir()
                else (
                    "is a link to nothing"
                    if path.is_symlink()
                    else "is not a file"
                    if path.exists()
                    else "does not exist"
                )
            )
            raise ClipError(
                what,
                code="clip-unreadable",
                where=where,
                fix="Take it out of the folder" if path.exists() or path.is_symlink() else "",
            )
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(65536)
    except OSError as e:
        raise ClipError(
            f"cannot be opened ({(e.strerror or str(e)).lower()})",
            code="clip-unreadable",
            where=where,
            fix="Check who may read it",
        ) from None
    if size == 0:
        raise ClipError("is empty (0 bytes)", code="clip-unreadable", where=where, fix=AGAIN)
    return head, size


def _animation(head: bytes) -> str:
    """The kind of animated image that begins with `head`, or ""."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "a GIF"
    if head.startswith(b"\x89PNG\r\n\x1a\n") and b"acTL" in head.partition(b"IDAT")[0]:
        return "an animated PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 0x02:
        return "an animated WebP"
    return ""


def _refuse_foreign(head: bytes, where: str, *, image: bool = False) -> None:
    """Raise ClipError when the first bytes say that this is something else than its name says."""
    wanted = "an image" if image else "a video"
    if kind := _animation(head):
        raise ClipError(f"is {kind}, not {wanted}", code="not-a-video", where=where, fix=CONVERT)
    still = (
        "PNG"
        if head.startswith(b"\x89PNG\r\n\x1a\n")
        else (
            "JPEG"
            if head.startswith(b"\xff\xd8\xff")
            else "WebP"
            if head[:4] == b"RIFF" and head[8:12] == b"WEBP"
            else ""
        )
    )
    if still and not image:
        raise ClipError(
            f"is a {still} image with a video's name",
            code="not-a-video",
            where=where,
            fix=f"Rename it to .{'jpg' if still == 'JPEG' else still.lower()}",
        )
    if head.startswith(b"version https://git-lfs"):
        raise ClipError(
            "is a Git LFS pointer, the content itself was not fetched",
            code="not-a-video",
            where=where,
            fix="Run: git lfs pull",
        )
    if not head.strip(b"\0"):
        raise ClipError(
            "holds only zero bytes: a copy or download that never finished",
            code="clip-unreadable",
            where=where,
            fix=AGAIN,
        )
    if (printable := head[:4096].decode("utf-8", "ignore")) and sum(
        c.isprintable() or c.isspace() for c in printable
    ) == len(printable) > len(head[:4096]) - 4:
        what = "is a web page" if "<html" in printable.lower() or "<!doctype" in printable.lower() else "is a text file"
        raise ClipError(
            f"{what}, not {wanted}",
            code="not-a-video",
            where=where,
            fix="Fetch the real file, or take it out of the folder",
        )


def _refuse_incomplete(path: Path, size: int, where: str) -> None:
    """Raise ClipError when the container says that it goes on behind the end of the file, or that its index was never
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
        raise ClipError(
            f"is truncated: the file ends {missing:,} bytes too early", code="clip-unreadable", where=where, fix=AGAIN
        )
    if not has_index:
        raise ClipError(
            "has no index (moov): the recording or download was cut off before its end",
            code="clip-unreadable",
            where=where,
            fix=AGAIN,
        )


def _mp4_missing(f: BinaryIO, size: int) -> tuple[int, bool]:
    """(bytes that the outermost boxes promise beyond the end, whether there is a moov or moof box). ISO 14496-12,
    4.2."""
    at, has_index = 0, False
    while at + 8 <= size:
        f.seek(at)
        header = f.read(16)
        length, kind = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:16])[0]
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < 8:
            break
        has_index = has_index or kind in (b"moov", b"moof")
        if at + length > size and kind in (b"moov", b"moof", b"mdat"):
            return at + length - size, True
        at += length
    return 0, has_index
