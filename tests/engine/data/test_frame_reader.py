"""Which frames come, where a file makes it hard: against all its frames, decoded in order."""

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from engine.data import frames as frames_module
from engine.data.frame_reader import frame_index, identity
from engine.data.frames import DecodeRequest, choose, decode
from engine.data.pictures import picture_of
from presets.clips.clip_facts import probe_clip
from presets.clips.geometry import Bucket, uniform_indices
from presets.clips.scene_cuts import find_cuts
from presets.clips.video_index import open_video, orientation
from presets.errors import ClipError
from tests.helpers import ROOT
from tests.helpers.videos import number_of, numbered, write_clip

MEDIA = ROOT / "tests" / "media"
BUCKET = (96, 160)


def request(path: Path, frames: int, sampling: str = "uniform", start: float = 0.0, **changes) -> DecodeRequest:
    values = {"bucket": Bucket(frames, *BUCKET), "flip_x": False, "flip_y": False} | changes
    return DecodeRequest(path=str(path), kind="video", sampling=sampling, start=start, **values)


def in_order(path: Path) -> list[np.ndarray]:
    """Each frame's picture, as the decoder gives them one after the other."""
    with open_video(path) as (container, stream):
        scaler, pictures = VideoReformatter(), []
        for packet in container.demux(stream):
            pictures += [
                picture_of(f, orientation(f), Fraction(1), Bucket(1, *BUCKET), scaler, str(path), "plain")
                for f in packet.decode()
            ]
        return pictures


@pytest.mark.parametrize("name", ["xvid_packed.avi", "h264_ts.mp4", "h264_intrarefresh.mp4", "zeromatrix.mp4"])
def test_every_window_holds_the_frames_asked_for(name: str) -> None:
    path = MEDIA / name
    pictures, index = in_order(path), frame_index(str(path))
    assert len(index.pts) == len(pictures) == probe_clip(path).frames
    for frames in (1, 5, 9):
        for start in np.linspace(0, 1, 12):
            wanted = choose(index, frames, "realtime", float(start))
            got = decode(request(path, frames, "realtime", float(start)))
            assert all(np.array_equal(a, pictures[place]) for a, place in zip(got, wanted, strict=True)), (
                frames,
                start,
            )


def test_thumbnails_are_not_what_trains() -> None:
    assert decode(request(MEDIA / "thumb_first.mkv", 5)).shape == (5, *BUCKET, 3)


@pytest.mark.parametrize("name", ["dmg_bit_h264.mp4", "dmg_mid_live.mkv"])
def test_nothing_trains_on_a_damaged_frame(name: str) -> None:
    with pytest.raises(ClipError, match="is damaged at"):
        decode(request(MEDIA / name, 49))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "libx264", {}),
        ("b.avi", "mpeg4", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {"bf": "2"}),
        ("b.mpg", "mpeg1video", {"bf": "2"}),
        ("a.ts", "libx264", {}),
        ("b.ts", "mpeg2video", {"bf": "2"}),
        ("a.flv", "libx264", {}),
        ("a.wmv", "wmv2", {}),
        ("a.3gp", "mpeg4", {}),
    ],
)
def test_single_frames_of_every_container(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    size = (176, 144)
    path = write_clip(tmp_path / name, 75, 25, *size, codec, gop=10, options=options)
    index = frame_index(str(path))
    for start in np.linspace(0, 1, 16):
        for frames in (1, 5):
            got = decode(request(path, frames, "realtime", float(start), bucket=Bucket(frames, 144, 176)))
            assert [number_of(f) for f in got] == choose(index, frames, "realtime", float(start))
    got = decode(request(path, 13, bucket=Bucket(13, 144, 176)))
    assert [number_of(f) for f in got] == choose(index, 13, "uniform", 0)


def test_a_clip_with_misleading_times_is_decoded_once_a_visit(tmp_path: Path) -> None:
    """Frames are counted from the first visit on: no seek is tried before."""
    path = write_clip(tmp_path / "a.avi", 75, 25, codec="libx264")
    assert frame_index(str(path)).keyframes == []
    decode(request(path, 5, bucket=Bucket(5, 48, 64)))
    assert identity(str(path)) not in frames_module._ways


def test_a_seek_that_leads_too_far_is_not_tried_again(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", 200, 25, gop=50)
    index = frame_index(str(path))
    wrong = index.keyframes[-1] + 1  # a keyframe that does not exist: nothing comes there
    frames_module._ways.clear()
    asked = request(path, 5, bucket=Bucket(5, 48, 64))
    expected = decode(asked)
    assert [number_of(f) for f in expected] == uniform_indices(200, 5)
    for way in range(len(frames_module.WAYS) + 1):
        frames_module._ways[identity(str(path))] = way
        assert np.array_equal(decode(asked), expected), "each way leads to the same frames"
    assert wrong not in index.pts


def test_hidden_frames_of_vp9_are_not_counted(tmp_path: Path) -> None:
    """As some programs write them: in packets of their own. Here the keyframe comes a second time without being shown,
    which changes nothing for those after it."""
    whole = write_clip(tmp_path / "whole.webm", 96, codec="libvpx-vp9", gop=96)
    path = tmp_path / "hidden.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"fflags": "-autobsf"}) as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in (p for p in source.demux(stream) if p.size):
            key = bytes(packet)
            packet.stream = copy
            out.mux(packet)
            if packet.is_keyframe:
                assert key[0] & ~1 == 0b10000010, "marker, profile, show_existing_frame, frame_type, show_frame, error"
                again = av.Packet(bytes([key[0] & ~2]) + key[1:])
                again.pts = again.dts = 20
                again.time_base, again.stream = Fraction(1, 1000), copy
                out.mux(again)
    with av.open(str(path)) as container:
        assert sum(1 for p in container.demux(video=0) if p.size) == 97, "no test of hidden frames"
    facts = probe_clip(path)
    assert (facts.frames, facts.variable_rate) == (96, False)
    assert [number_of(f) for f in decode(request(path, 33, bucket=Bucket(33, 48, 64)))] == uniform_indices(96, 33)


def moving(i: int, width: int = 160, height: int = 96) -> np.ndarray:
    """A bright bar that walks four pixels a field, over a gradient."""
    picture = np.stack([np.broadcast_to(np.linspace(40, 120, height)[:, None], (height, width))] * 3, -1)
    left = 10 + 4 * i % (width - 40)
    picture = picture.copy()
    picture[:, left : left + 20] = 220
    return picture.astype(np.uint8)


def interlaced(path: Path, frames: int = 30) -> Path:
    """Each frame: the lower field of one moment, then the upper one of the next, as PyAV's encoders mark it."""

    def woven(i: int) -> np.ndarray:
        picture = moving(2 * i)
        picture[::2] = moving(2 * i + 1)[::2]
        return picture

    options = {"x264-params": "bff=1", "crf": "8"} if path.suffix == ".mp4" else {"flags": "+ildct+ilme", "b": "20M"}
    codec = "libx264" if path.suffix == ".mp4" else "mpeg2video"
    return write_clip(path, frames, 25, 160, 96, codec, picture=woven, options=options, gop=5)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_interlaced_video_trains_as_whole_pictures(tmp_path: Path, name: str) -> None:
    path = interlaced(tmp_path / name)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame, "no test of interlaced video"
    assert probe_clip(path).interlaced
    got = decode(request(path, 29)).astype(int)
    places = uniform_indices(30, 29)
    error = [np.abs(f - moving(2 * p)).mean() for f, p in zip(got, places, strict=True)]
    combed = moving(20)
    combed[::2] = moving(21)[::2]
    assert np.abs(combed.astype(int) - moving(20)).mean() > 2 > 4 * np.mean(error)
    # sought or read through, at any place: the same
    for frames in (5, 6):
        alone = decode(request(path, frames))
        for place, picture in zip(uniform_indices(30, frames), alone, strict=True):
            whole = decode(request(path, 30))[place]
            assert np.array_equal(picture, whole), (frames, place)


def test_a_seek_to_the_very_frame_still_knows_the_field_before(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "a.mp4", 120)
    index = frame_index(str(path))
    whole = decode(request(path, 120))
    keys = [index.pts.index(k) for k in index.keyframes]
    for place in keys[-3:]:
        start = (index.pts[place] - index.pts[0]) * index.time_base / Fraction(index.duration).limit_denominator(10**6)
        (wanted,) = choose(index, 1, "realtime", float(start) + 1e-9)
        assert wanted == place
        assert np.array_equal(decode(request(path, 1, "realtime", float(start) + 1e-9))[0], whole[place])


def test_progressive_video_is_not_touched(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 12, picture=lambda i: numbered(i, 64, 48))
    assert not probe_clip(path).interlaced


@pytest.mark.parametrize("rotation", [0, 90])
def test_nothing_of_a_decoded_clip_stays(tmp_path: Path, rotation: int) -> None:
    """Without the cyclic collector: a frame in a circle of references holds all that its decoder took for others."""
    path = write_clip(tmp_path / "a.mp4", 24, rotation=rotation)
    gc.collect()
    gc.disable()
    try:
        decode(request(path, 9, bucket=Bucket(9, 48, 48)))
        probe_clip(path)
        find_cuts(path)
        left = gc.get_objects(generation=0)  # no other test's: what is held at a collection becomes older
        containers = [o for o in left if type(o) is av.container.InputContainer]
        large = [o for o in left if type(o) is av.VideoFrame and o.width > 16]
    finally:
        gc.enable()
    assert not containers and not large
