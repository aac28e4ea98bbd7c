"""Damage inside clips is found, with its second, and sound clips of every make are not taken for damaged."""

import random
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from presets.clips.clip_facts import probe_clip
from presets.clips.scene_cuts import find_cuts
from presets.clips.transport_stream import hole_in
from presets.clips.video_index import decoded, open_video
from presets.errors import ClipError
from presets.facts.gather import gather
from presets.job.schema import DatasetPanel, Job, JobPanel
from tests.helpers import ROOT
from tests.helpers.facts import gpu, machine
from tests.helpers.videos import Picture, number_of, write_clip

HERE = ROOT / "tests" / "media"
Change = Callable[[int, bytes], bytes | None]


def busy(i: int) -> Picture:
    """Something moving everywhere, so that a packet has content to damage, over few colours, so that it is one shot."""
    y, x = np.mgrid[0:96, 0:128]
    wave = np.sin((x + 3 * i) / 9) + np.cos((y + 2 * i) / 7)
    return np.stack([128 + 40 * wave, 128 + 30 * np.roll(wave, i, 1), np.full(wave.shape, 90.0)], axis=-1).astype(
        np.uint8
    )


def clip(path: Path, **more) -> Path:
    return write_clip(path, width=128, height=96, picture=busy, **more)


def remuxed(
    source: Path, path: Path, change: Change = lambda i, content: content, *, muxing: dict[str, str] | None = None
) -> Path:
    """A copy without re-encoding in which `change` gave packet i other content, or None to leave it out."""
    with av.open(str(source)) as whole, av.open(str(path), "w", options=muxing or {}) as out:
        stream = whole.streams.video[0]
        copy = out.add_stream_from_template(stream)
        start = None
        for i, packet in enumerate(p for p in whole.demux(stream) if p.size):
            if (content := change(i, bytes(packet))) is None:
                continue
            start = packet.dts if start is None else start
            other = av.Packet(content)
            other.pts, other.dts, other.duration = packet.pts - start, packet.dts - start, packet.duration
            other.time_base, other.is_keyframe, other.stream = packet.time_base, packet.is_keyframe, copy
            out.mux(other)
    return path


def garbage(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def damaged(path: Path) -> ClipError:
    """The error of the whole look at a clip that the quick one takes for sound: names the file and is no riddle."""
    probe_clip(path)
    with pytest.raises(ClipError) as caught:
        find_cuts(path)
    error = caught.value
    assert error.where == str(path) and error.fix and error.code == "clip-unreadable" and "\n" not in str(error)
    return error


def test_a_packet_of_garbage_in_h264(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", frames=72)
    path = remuxed(
        whole,
        tmp_path / "bad.mp4",
        lambda i, packet: (
            packet if i != 30 else packet[: len(packet) // 3] + garbage(1, len(packet) - len(packet) // 3)
        ),
    )
    assert "is damaged from 1.2 s on" in damaged(path).what or "is damaged from 1.3 s on" in damaged(path).what


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("bad.mkv", "libx265"),
        ("bad.avi", "mjpeg"),
        ("bad.mov", "mjpeg"),
        ("bad.avi", "mpeg4"),
        ("bad.webm", "libvpx-vp9"),
        ("bad.mov", "prores_ks"),
    ],
)
def test_a_picture_that_is_missing_or_garbage_in_other_codecs(tmp_path: Path, name: str, codec: str) -> None:
    whole = clip(tmp_path / f"whole{Path(name).suffix.replace('mkv', 'mp4')}", frames=72, codec=codec)
    path = remuxed(whole, tmp_path / name, lambda i, packet: packet if i != 30 else packet[:3] + bytes(len(packet) - 3))
    assert "is damaged from 1.2 s on" in damaged(path).what or "is damaged from 1.3 s on" in damaged(path).what


def test_check_lists_every_damaged_clip_beside_the_sound_ones(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", frames=72)
    for name in ("bad_1.mp4", "bad_2.mp4"):
        remuxed(whole, tmp_path / name, lambda i, packet: packet if i != 30 else packet[:3] + bytes(len(packet) - 3))
    job = Job(job=JobPanel(name="a"), datasets=[DatasetPanel(path=".")])
    (found,) = gather(job, tmp_path, out=tmp_path / "runs", machine=machine(gpu())).datasets
    assert [(Path(f.field).name, f.code) for f in found.problems if f.severity == "error"] == [
        ("bad_1.mp4", "clip-unreadable"),
        ("bad_2.mp4", "clip-unreadable"),
    ]
    assert [Path(c.path).name for c in found.clips] == ["whole.mp4"]


def hole(path: Path, into: Path, *, at: float, size: int, zeros: bool) -> Path:
    """A copy with `size` bytes from the share `at` of the file on cut out, or zeroed."""
    content = path.read_bytes()
    begin = int(len(content) * at)
    into.write_bytes(content[:begin] + (bytes(size) if zeros else b"") + content[begin + size :])
    return into


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(("name", "codec"), [("live.mkv", "libx264"), ("live.webm", "libvpx-vp9")])
def test_the_middle_of_a_live_recording_is_missing(tmp_path: Path, name: str, codec: str, zeros: bool) -> None:
    whole = clip(tmp_path / f"whole_{name}", frames=96, codec=codec, muxing={"live": "1"})
    find_cuts(whole)
    path = hole(whole, tmp_path / name, at=0.4, size=whole.stat().st_size // 5, zeros=zeros)
    with pytest.raises(ClipError, match=r"damaged from \d\.\d s on|last frame does not decode"):
        probe_clip(path)
        find_cuts(path)


def test_ffmpeg_passes_over_half_a_webm_in_silence(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.webm", frames=120, codec="libvpx-vp9")
    path = hole(whole, tmp_path / "half.webm", at=0.5, size=2000, zeros=True)
    assert probe_clip(path).frames < 120, "no test of what FFmpeg drops"
    seconds = probe_clip(path).duration
    error = damaged(path)
    told = float(error.what.split("from ")[1].split(" s")[0])
    assert 1.5 < told < 3.5 and told <= seconds + 0.1


def test_a_byte_that_changed_in_a_matroska_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mkv", frames=48, codec="ffv1")
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "bit.mkv"
    path.write_bytes(content)
    assert "is damaged" in damaged(path).what


TS = 188  # bytes of a packet of a transport stream
VIDEO = 256  # the picture's stream in what FFmpeg writes


def picture_packet(content: bytes, *, after: float) -> int:
    """Where the first packet of the picture begins that no picture begins with, behind this share of the file."""
    places = range(int(len(content) * after) // TS * TS, len(content), TS)
    return next(i for i in places if content[i + 1] == VIDEO >> 8 and content[i + 2] == VIDEO & 255)


def lose_packet(content: bytes, at: int) -> bytes:
    return content[:at] + content[at + TS :]


def lose_bytes(content: bytes, at: int) -> bytes:
    return content[: at + 50] + content[at + 50 + 777 :]


def garble(content: bytes, at: int) -> bytes:
    return content[: at + 50] + garbage(3, 1000) + content[at + 1050 :]


def mark_as_faulty(content: bytes, at: int) -> bytes:
    """As a receiver does that could not repair the packet."""
    return content[: at + 1] + bytes([content[at + 1] | 0x80]) + content[at + 2 :]


HARMS = [lose_packet, lose_bytes, garble, mark_as_faulty]


@pytest.mark.parametrize(
    ("codec", "harm"),
    [  # each harm, and each codec; the other pairs are for make thorough
        *(("libx264", harm) for harm in HARMS),
        ("libx265", garble),
        ("mpeg2video", lose_packet),
        *(pytest.param("libx265", harm, marks=pytest.mark.thorough) for harm in HARMS if harm != garble),
        *(pytest.param("mpeg2video", harm, marks=pytest.mark.thorough) for harm in HARMS if harm != lose_packet),
    ],
)
def test_a_transport_stream_lacks_packets(tmp_path: Path, codec: str, harm: Callable[[bytes, int], bytes]) -> None:
    whole = clip(tmp_path / "whole.ts", frames=96, codec=codec)
    find_cuts(whole)
    content = whole.read_bytes()
    path = tmp_path / "bad.ts"
    path.write_bytes(harm(content, picture_packet(content, after=0.5)))
    with pytest.raises(ClipError, match=r"is damaged from [123]\.\d s on|last .* do(es)? not decode") as caught:
        probe_clip(path)
        find_cuts(path)
    assert caught.value.code == "clip-unreadable" and caught.value.fix


def test_a_transport_stream_ends_in_the_middle_of_a_packet(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.ts", frames=96, codec="mpeg2video")
    path = tmp_path / "bad.ts"
    path.write_bytes(whole.read_bytes()[: -TS // 2])
    assert "is truncated: it ends in the middle of a packet" in damaged(path).what


def with_times(content: bytes) -> bytes:
    """Packets as Blu-ray and cameras write them, each behind a time of 4 bytes."""
    return b"".join(bytes(4) + content[i : i + TS] for i in range(0, len(content), TS))


def test_sound_transport_streams_of_every_make_are_sound(tmp_path: Path) -> None:
    one, other = (clip(tmp_path / f"{n}.ts", frames=48, codec="libx264") for n in "ab")
    packets = [one.read_bytes()[i : i + TS] for i in range(0, one.stat().st_size, TS)]
    made = {
        "begins in a packet": one.read_bytes()[100:],
        "each packet twice": b"".join(2 * packet for packet in packets),
        "m2ts": with_times(one.read_bytes()),
        "parity": b"".join(packet + bytes(16) for packet in packets),
        "put together": one.read_bytes() + other.read_bytes() + one.read_bytes(),
    }
    for name, content in made.items():
        (path := tmp_path / f"{name}.ts").write_bytes(content)
        assert hole_in(path, VIDEO) is None, name
    half = made["m2ts"][: len(made["m2ts"]) // 2 // 192 * 192]
    (path := tmp_path / "hole.m2ts").write_bytes(half[: -20 * 192] + half[-19 * 192 :])
    assert hole_in(path, VIDEO) is not None, "nothing is looked at behind a time"
    assert hole_in(clip(tmp_path / "a.mp4", frames=8), VIDEO) is None


def test_frames_that_an_avi_promises_are_missing(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.avi", frames=72, codec="wmv2", gop=1)
    content = whole.read_bytes()
    chunks = [i for i in range(len(content) - 4) if content[i : i + 4] == b"00dc"][:72]
    path = tmp_path / "few.avi"
    path.write_bytes(
        content[: chunks[30]] + bytes(chunks[40] - chunks[30]) + content[chunks[40] :].replace(b"idx1", b"JUNK")
    )
    assert "its header promises 3.0 s, and only 2." in damaged(path).what


def promising(path: Path, seconds: float) -> Path:
    """Write another duration into the header of a webm that was written without tags."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", seconds * 1000)
    path.write_bytes(content)
    return path


def test_a_webm_whose_header_promises_more_than_it_holds(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.webm", frames=60, codec="libvpx-vp9", muxing={"fflags": "+bitexact"})
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOM"))
    find_cuts(promising(path, 3.3))  # its last frame may stay on for a while
    assert "its header promises 5.0 s, and only 2.5 s are there" in damaged(promising(path, 5)).what


def raw_h264(path: Path, frames: int, width: int, height: int, aspect: Fraction | None = None) -> bytes:
    with av.open(str(path), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=24, options={"preset": "veryfast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.resize(busy(i), (height, width, 3))), format="rgb24"
            )
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def joined(tmp_path: Path, *parts: bytes) -> Path:
    raw, path = tmp_path / "joined.h264", tmp_path / "joined.mkv"
    raw.write_bytes(b"".join(parts))
    with av.open(str(raw), options={"framerate": "24"}) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.pts = packet.dts = i
            packet.time_base, packet.stream = Fraction(1, 24), copy
            out.mux(packet)
    return path


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ((64, 48, None), "from 128x96 to 64x48 pixels at 1.5 s"),
        ((128, 96, Fraction(2)), "from 128x96 to 256x96 pixels at 1.5 s"),
        ((96, 128, None), "from 128x96 to 96x128 pixels at 1.5 s"),
    ],
    ids=["size", "shape of the pixels", "turned"],
)
def test_a_clip_that_changes_its_size_on_the_way(
    tmp_path: Path, second: tuple[int, int, Fraction | None], text: str
) -> None:
    path = joined(
        tmp_path,
        raw_h264(tmp_path / "a.h264", 36, 128, 96, Fraction(1)),
        raw_h264(tmp_path / "b.h264", 36, *second[:2], second[2] or Fraction(1)),
    )
    assert probe_clip(path).frames == 72
    with pytest.raises(ClipError) as caught:
        find_cuts(path)
    assert text in caught.value.what and caught.value.code == "clip-size-changes" and caught.value.fix


def test_joined_clips_of_one_size_are_sound(tmp_path: Path) -> None:
    path = joined(tmp_path, raw_h264(tmp_path / "a.h264", 36, 128, 96), raw_h264(tmp_path / "b.h264", 36, 128, 96))
    find_cuts(path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "libx264"),
        ("a.mp4", "libx265"),
        ("a.mkv", "libx265"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.mp4", "libvpx-vp9"),
        ("a.mp4", "libsvtav1"),
        ("a.mkv", "libsvtav1"),
        ("a.avi", "mpeg4"),
        ("a.mp4", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.mov", "mjpeg"),
        ("a.mov", "prores_ks"),
        ("a.mkv", "ffv1"),
        ("a.mkv", "mpeg2video"),
        ("a.avi", "msmpeg4"),
        ("a.avi", "wmv2"),
    ],
)
def test_sound_clips_are_sound(tmp_path: Path, name: str, codec: str) -> None:
    path = clip(
        tmp_path / name,
        frames=60,
        codec=codec,
        sound=name.endswith("mp4"),
        options={"bf": "2"} if codec in ("mpeg4", "mpeg2video") else None,
    )
    assert probe_clip(path).frames == 60
    find_cuts(path)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vfr.mp4", {"variable": True}),
        ("vfr.mkv", {"variable": True}),
        ("vfr.webm", {"variable": True, "codec": "libvpx-vp9"}),
        ("turned.mp4", {"rotation": 90}),
        ("odd.mkv", {"codec": "ffv1"}),
        ("parts.mp4", {"muxing": {"movflags": "frag_keyframe+empty_moov"}}),
        ("parts2.mp4", {"muxing": {"movflags": "frag_keyframe"}}),
        ("fast.mp4", {"muxing": {"movflags": "faststart"}}),
        ("live.mkv", {"muxing": {"live": "1"}}),
        ("live.webm", {"muxing": {"live": "1"}, "codec": "libvpx-vp9"}),
        ("space.mkv", {"muxing": {"reserve_index_space": "5000"}}),
        ("clusters.mkv", {"muxing": {"cluster_time_limit": "300"}}),
        ("open.mp4", {"options": {"x264-params": "open-gop=1:bframes=3"}}),
        ("open.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:bframes=3"}}),
        ("slices.mp4", {"options": {"x264-params": "slices=4"}}),
        ("one.mp4", {"frames": 1}),
        ("two.mkv", {"frames": 2}),
        ("refresh.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=30"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusual_clips_are_sound(tmp_path: Path, name: str, more: dict) -> None:
    path = clip(tmp_path / name, **({"frames": 72} | more))
    assert probe_clip(path).frames == more.get("frames", 72)
    find_cuts(path)


@pytest.mark.parametrize("first", [1, 5, 17])
@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", ".mkv", {}),
        ("libx264", ".mp4", {"x264-params": "open-gop=1:bframes=3"}),
        ("libx264", ".mkv", {"x264-params": "open-gop=1:bframes=3"}),
        ("libx265", ".mp4", {"x265-params": "log-level=none:open-gop=1:bframes=3"}),
        ("libvpx-vp9", ".webm", {}),
        ("libvpx-vp9", ".mp4", {}),
        ("libvpx", ".webm", {}),
        ("mpeg4", ".mp4", {"bf": "2"}),
    ],
)
def test_a_copy_that_begins_between_keyframes_is_sound(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str], first: int
) -> None:
    whole = clip(tmp_path / f"whole{'.mp4' if suffix != '.webm' else suffix}", frames=72, codec=codec, options=options)
    path = remuxed(whole, tmp_path / f"cut{suffix}", lambda i, packet: packet if i >= first else None)
    frames = probe_clip(path).frames
    assert 0 < frames < 72
    with open_video(path) as (container, stream):
        assert len(list(decoded(container, stream))) == frames
    find_cuts(path)


def test_a_copy_that_begins_in_an_open_group_holds_what_decodes() -> None:
    facts = probe_clip(HERE / "cut_hevc_cra.mkv")
    assert (facts.frames, facts.variable_rate, facts.duration) == (96, False, pytest.approx(4, abs=0.01))
    find_cuts(HERE / "cut_hevc_cra.mkv")


def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path: Path) -> None:
    for name, codec, voice in (
        ("a.mkv", "libx264", "aac"),
        ("a.webm", "libvpx-vp9", "libopus"),
        ("a.avi", "mpeg4", "mp3"),
    ):
        with av.open(str(tmp_path / name), "w") as out:
            stream, sound = out.add_stream(codec, rate=24), out.add_stream(voice, rate=48000, layout="mono")
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for i in range(24):
                frame = av.VideoFrame.from_ndarray(busy(i), format="rgb24")
                frame.pts = i
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 48000 * 5), np.float32), format="flt" if voice == "libopus" else "fltp", layout="mono"
            )
            silence.sample_rate, silence.pts = 48000, 0
            out.mux(sound.encode(silence))
            out.mux(sound.encode(None))
        assert probe_clip(tmp_path / name).duration == pytest.approx(1, abs=0.1)
        find_cuts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("stream.ts", "libx264"),
        ("stream.ts", "libx265"),
        ("stream.ts", "mpeg2video"),
        ("stream.mpg", "mpeg1video"),
        ("stream.mpg", "mpeg2video"),
    ],
)
def test_mpeg_streams_named_mp4_are_read(tmp_path: Path, name: str, codec: str) -> None:
    """Sought by guessing: a seek to the last keyframe may find nothing behind it."""
    path = write_clip(
        tmp_path / name,
        frames=75,
        fps=25,
        codec=codec,
        width=128,
        height=96,
        picture=busy,
        options={"bf": "2"} if "mpeg" in codec else None,
    )
    path = path.rename(tmp_path / "clip.mp4")
    assert (probe_clip(path).frames, probe_clip(path).duration) == (75, pytest.approx(3, abs=0.05))
    find_cuts(path)


def test_a_picture_refreshed_bit_by_bit_is_read(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "refresh.mp4",
        frames=120,
        width=128,
        height=96,
        gop=250,
        options={"x264-params": "intra-refresh=1:keyint=50"},
    )
    assert probe_clip(path).frames == 120
    with open_video(path) as (container, stream):
        assert [number_of(f.to_ndarray(format="rgb24")) for f in decoded(container, stream)] == list(range(120))
    find_cuts(path)


def test_the_default_stream_is_read_and_not_the_cover_picture(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as out:
        cover, film = (out.add_stream("libx264", rate=rate) for rate in (1, 24))
        for stream, (width, height) in ((cover, (64, 64)), (film, (128, 96))):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        cover.disposition, film.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for stream, frames in ((cover, 1), (film, 48)):
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(
                        busy(i)[: stream.height, : stream.width] if stream is film else np.resize(busy(i), (64, 64, 3))
                    ),
                    format="rgb24",
                )
                frame.pts = i
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    facts = probe_clip(path)
    assert (facts.frames, facts.width, facts.height) == (48, 128, 96)


def test_a_display_matrix_of_zeros_asks_for_nothing(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", frames=24)
    content = bytearray(path.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(identity, content.index(b"tkhd"))
    content[at : at + 36] = bytes(36)
    path.write_bytes(content)
    facts = probe_clip(path)
    assert (facts.width, facts.height, facts.rotation) == (128, 96, 0)
