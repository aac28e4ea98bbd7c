"""Opening a video file, and when each of its frames is shown. Whether a file can serve as a clip is `probe`, whether
all of it decodes `damage`."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import dropwhile, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
import av.container
from msgspec import Struct

from presets.clips.file_head import unreadable
from presets.errors import ClipError
from presets.look import never_ends

# Only containers that hold one video each: FFmpeg would follow a playlist (HLS, concat) named .mp4 to other files and
# hosts.
JOINABLE = ("mpegts", "mpeg")  # streams without an index: one behind the other is a stream again
BACK = Fraction(1, 2)  # seconds by which times go back where another begins
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf"
UNSPECIFIED, BT2020 = 2, 9  # matrix coefficients, ITU-T H.273 table 4
PQ, HLG = HDR_TRANSFERS = 16, 18  # transfer characteristics, ITU-T H.273 table 3
# Old files carry tags that are not UTF-8. PyAV 19 reads them without being asked to, and no longer takes the word.
TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


class FrameIndex(Struct, frozen=True):
    """When each frame of a video is shown, in display order, without having decoded any."""

    pts: list[int]  # rising, in units of time_base; one per frame that the decoder will give
    time_base: Fraction
    last_duration: int  # how long the last frame stays, in units of time_base
    keyframes: list[int]  # pts, rising; decoding can begin at each of them. None: frames are counted from the start
    joined: bool = False  # times in the file begin anew on the way; here they go on, and frames have others

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
                what = "holds no picture" + (", only sound" if container.streams.audio else "")
                raise ClipError(what, code="not-a-video", where=where, fix="Take it out of the folder")
            stream = next((s for s in streams if s.disposition & av.stream.Disposition.default), streams[0])
            if stream.codec_context is None:
                what = "its video is in a format that cannot be decoded here"
                raise unreadable(what, where, "Convert it to H.264 mp4")
            stream.thread_count = 1  # several clips are read at once, so threads inside one gain nothing
            yield container, stream
    except av.error.FFmpegError as e:
        raise unreadable(f"is not a video that can be read ({reason_of(e)})", where) from None


def from_keyframe(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets of `stream` from the next keyframe on. What lies before it does not decode: copies without re-encoding
    begin anywhere."""
    return dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))


def time_of(packet: av.Packet) -> int | None:
    """When the packet's picture is shown, in units of its time base, as far as its container tells."""
    return packet.pts if packet.pts is not None else packet.dts


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames from the next keyframe on, but for those shown before it: they need what lies before it too."""
    begin, begun = None, False
    context = _with_alpha(stream)
    for packet in from_keyframe(container, stream):
        begin = time_of(packet) if begin is None else begin
        for frame in packet.decode() if context is None else context.decode(packet if packet.size else None):
            assert isinstance(frame, av.VideoFrame)
            # later ones are of another recording behind this one, whose times begin anew
            begun = begun or begin is None or frame.pts is None or frame.pts >= begin
            if begun:
                yield frame


def _with_alpha(stream: av.VideoStream) -> av.VideoCodecContext | None:
    """The decoder for a WebM with transparency, which FFmpeg's own decoders of VP8 and VP9 leave out; None for all
    others. https://wiki.webmproject.org/alpha-channel"""
    if "1" not in (stream.metadata.get("alpha_mode"), stream.metadata.get("ALPHA_MODE")):
        return None
    codec = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if codec is None:
        return None
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, av.VideoCodecContext)
    return context


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(swap rows and columns, then flip left-right, then flip upside down): what a frame's display matrix asks for, to
    the nearest right angle.

    The matrix takes stored (x, y) to shown (a x + c y, b x + d y); one that would leave no picture (all zero) asks for
    nothing. Source: FFmpeg, libavutil/display.h.
    """
    # PyAV ties a frame whose side data was read into a circle of references, and its pixels are held until that is
    # collected, with all that the decoder has taken for others: so it is read from a tiny copy.
    matrix = frame.reformat(16, 16, "gray").side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # PyAV calls it an object; it is a buffer
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))  # type: ignore[call-overload]
    if a * d == b * c:
        return False, False, False
    return (True, c < 0, b < 0) if abs(b) + abs(c) > abs(a) + abs(d) else (False, a < 0, d < 0)


class Orientations:
    """The orientation of one frame of a video after the other: read again only where the angle in it is another."""

    def __init__(self) -> None:
        self._angle: int | None = None
        self._known = False, False, False

    def of(self, frame: av.VideoFrame) -> tuple[bool, bool, bool]:
        if frame.rotation != self._angle:
            self._angle, self._known = frame.rotation, orientation(frame)
        return self._known


def is_untagged_hd(frame: av.VideoFrame) -> bool:
    """Whether a frame is to be read as BT.709 although neither file nor codec says so: by convention it is from this
    size on, where players draw the line too. What is smaller and says nothing is BT.601, as FFmpeg reads it by itself.
    """
    return frame.colorspace == UNSPECIFIED and not frame.format.is_rgb and (frame.width >= 1280 or frame.height > 576)


def size_as_viewed(frame: av.VideoFrame, stream: av.VideoStream, turned: bool) -> tuple[float, float]:
    """(width, height) of a frame that `stream` has just given: upright (`turned`: rows and columns are swapped for
    it), in pixels as high as the stored ones."""
    width, height = float(frame.width * Fraction(stream.codec_context.sample_aspect_ratio or 1)), float(frame.height)
    return (height, width) if turned else (width, height)


def changed_size(path: Path, before: tuple[float, float], now: tuple[float, float], seconds: float) -> ClipError:
    what = (
        f"changes its size from {before[0]:.0f}x{before[1]:.0f} to {now[0]:.0f}x{now[1]:.0f} pixels at {seconds:.1f} s"
    )
    fix = "Cut it there into two clips, or export it again at one size"
    return ClipError(what, code="clip-size-changes", where=str(path), fix=fix)


def reason_of(error: av.error.FFmpegError) -> str:
    return (error.strerror or "no reason given").lower()


def read_index(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    *,
    where: str,
    raise_if_ended: Callable[[], None] = never_ends,
) -> FrameIndex:
    """Times of all frames, by reading the packets of `stream` from where `container` stands (its beginning) to its end.

    Headers of webm and of cut recordings hold no frame count, and some hold a wrong one; the packets do not lie. Where
    times begin anew, in MPEG streams that were put together of several (cat a.ts b.ts), what follows is taken to go on
    where the other ended. Raises ClipError when there is no frame.
    """
    shown: list[tuple[int, int]] = []
    keyframes: list[int] = []
    timed = False  # raw streams have no times at all
    assert stream.time_base
    time_base = Fraction(stream.time_base)  # PyAV 19 has a type of its own
    tick = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25)) / time_base
    last_dts, later, joined = None, 0, False
    for number, packet in enumerate(container.demux(stream)):
        raise_if_ended()
        if packet.size == 0:
            continue  # the end mark, or AVI's way to say "once more the same"
        pts = time_of(packet)
        if packet.dts is not None:
            if last_dts is not None and container.format.name in JOINABLE and packet.dts < last_dts - BACK / time_base:
                later, joined = later + last_dts - packet.dts + (packet.duration or round(tick)), True
            last_dts = packet.dts
        pts = pts if pts is None else pts + later
        if pts is None and timed:
            continue  # shown before the file begins: it was cut there
        timed = timed or pts is not None
        pts = round(number * tick) if pts is None else pts
        if packet.is_keyframe:
            keyframes.append(pts)
        # Not shown: what an edit list cuts away (trimmed in a phone), and mere references.
        if not packet.is_discard and not _is_hidden(stream.codec_context.name, packet):
            shown.append((pts, packet.duration or 0))
    if keyframes:
        # what comes before the first keyframe cannot be decoded
        shown = sorted(s for s in shown if s[0] >= keyframes[0])
    if not keyframes or not shown:
        raise unreadable("holds no frame that can be decoded", where)
    pts_list = [pts for pts, _ in shown]
    gaps = _gaps(pts_list)
    last = shown[-1][1] or (round(median(gaps)) if gaps else round(tick))
    counted = joined or _misleads(container, stream)
    return FrameIndex(pts_list, time_base, max(1, last), [] if counted else sorted(keyframes), joined)


def _is_hidden(codec: str, packet: av.Packet) -> bool:
    """Whether a packet holds a mere reference for others, and no picture to show: RFC 6386, 9.1, for VP8; for VP9 its
    bitstream specification, 6.2 (frame header) and annex B (superframes, which hold hidden ones beside one to show)."""
    if codec not in ("vp8", "vp9"):
        return False
    head, last = memoryview(packet)[0], memoryview(packet)[-1]
    if codec == "vp8":
        return not head & 0x10
    bits = f"{head:08b}"
    if bits[:2] != "10" or last & 0xE0 == 0xC0:
        return False
    at = 5 if bits[2:4] == "11" else 4  # profile 3 has a bit more
    return bits[at] == "0" and bits[at + 2] == "0"  # show_existing_frame, frame_type, show_frame


def _misleads(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Whether a decoded frame cannot be known by its time. AVI tells when a picture is decoded, not when it is shown,
    and an MPEG program stream has times for some pictures only: what lies between them is a guess."""
    return container.format.name == "mpeg" or (
        container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
    )


def _gaps(pts: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(pts)]
