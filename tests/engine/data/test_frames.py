"""Which frames come out, and how they look: on real files, whose frames say their own number."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine.data.frame_reader import frame_index, visit
from engine.data.frames import DecodeRequest, choose, decode, decode_into
from presets.clips.clip_facts import probe_clip
from presets.clips.geometry import Bucket, uniform_indices
from presets.clips.probe import probe_video
from presets.clips.video_index import open_video
from presets.errors import ClipError
from tests.helpers.videos import number_of, numbered, write_clip


def request(path: Path, frames: int = 9, height: int = 48, width: int = 64, **changes) -> DecodeRequest:
    values = {
        "path": str(path),
        "kind": "video",
        "bucket": Bucket(frames, height, width),
        "sampling": "uniform",
        "start": 0.0,
        "flip_x": False,
        "flip_y": False,
    }
    return DecodeRequest(**(values | changes))


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(f) for f in frames]


@pytest.mark.parametrize("fps", [24000 / 1001, 25, 30, 60])
def test_uniform_picks_are_exact_through_b_frames(tmp_path: Path, fps: float) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=70, fps=fps)
    with av.open(str(clip)) as container:
        kinds = {
            f.pict_type.name if hasattr(f.pict_type, "name") else av.video.frame.PictureType(f.pict_type).name
            for f in container.decode(video=0)
        }
    assert "B" in kinds
    for frames in (5, 41):
        assert numbers(decode(request(clip, frames))) == uniform_indices(70, frames)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.avi", "libx264"),
        ("a.mkv", "libx265"),
        ("a.mov", "prores_ks"),
        ("a.ts", "libx264"),
        ("a.mkv", "ffv1"),
    ],
)
def test_uniform_picks_are_exact_in_other_containers(tmp_path: Path, name: str, codec: str) -> None:
    clip = write_clip(tmp_path / name, frames=60, fps=25, codec=codec)
    assert numbers(decode(request(clip, 13))) == uniform_indices(60, 13)


def test_few_frames_of_a_long_clip_are_reached_by_seeking(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=250, fps=25, gop=10)
    read = 0

    class Counting:
        """The real container, with a count of the packets that are read from it."""

        def __init__(self, container) -> None:
            self.container, self.seek = container, container.seek

        def demux(self, stream):
            nonlocal read
            for packet in self.container.demux(stream):
                read += 1
                yield packet

    index = frame_index(str(clip))
    wanted = uniform_indices(250, 5)
    with open_video(clip) as (container, stream):
        seen = [
            (place, number_of(f.to_ndarray(format="rgb24")))
            for place, f in visit(Counting(container), stream, index, wanted)
        ]
    assert seen == [(w, w) for w in wanted]
    assert read < 60, "a whole decode would be 250 packets"
    assert numbers(decode(request(clip, 81))) == uniform_indices(250, 81)


def test_a_variable_rate_is_sampled_by_time(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=60, fps=24, variable=True)
    shown = np.cumsum([0, *(2 if i % 3 == 2 else 1 for i in range(59))])  # in 1/24 s
    assert frame_index(str(clip)).variable_rate
    expected = [int(np.searchsorted(shown, Fraction(int(shown[-1])) * i / 16, side="right")) - 1 for i in range(17)]
    got = numbers(decode(request(clip, 17)))
    assert got == expected
    assert got != uniform_indices(60, 17)


@pytest.mark.parametrize(("start", "first"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_realtime_takes_16_frames_a_second_from_a_window(tmp_path: Path, start: float, first: float) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=72, fps=24)
    begin = first * (3 - 16 / 16)  # seconds; the clip lasts 3, the window 1
    got = numbers(decode(request(clip, 17, sampling="realtime", start=start)))
    assert got == [min(71, int((begin + k / 16) * 24 + 1e-9)) for k in range(17)]


def test_realtime_at_16_fps_gives_every_frame_once_even_with_rounded_times(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", frames=40, fps=16)  # matroska rounds 62.5 ms to 62 or 63
    assert numbers(decode(request(clip, 33, sampling="realtime"))) == list(range(33))


def test_realtime_of_a_variable_rate_follows_the_clock(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=60, fps=24, variable=True)
    shown = np.cumsum([0, *(2 if i % 3 == 2 else 1 for i in range(59))])
    assert numbers(decode(request(clip, 9, sampling="realtime"))) == [
        int(np.searchsorted(shown, k * 1.5 + 1e-9, side="right")) - 1 for k in range(9)
    ]


def test_a_clip_whose_times_do_not_begin_at_zero(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a.mp4", frames=48, fps=24)
    late = tmp_path / "late.mkv"
    with av.open(str(first)) as source, av.open(str(late), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.pts += 5 * 12288
                packet.dts += 5 * 12288
                packet.stream = stream
                out.mux(packet)
    assert frame_index(str(late)).pts[0] >= 5000
    assert numbers(decode(request(late, 9))) == uniform_indices(48, 9)
    assert numbers(decode(request(late, 9, sampling="realtime"))) == [int(k * 1.5) for k in range(9)]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_clips_come_out_upright(tmp_path: Path, rotation: int) -> None:
    plain = decode(request(write_clip(tmp_path / "plain.mp4", frames=12), 5))
    turned = write_clip(tmp_path / "turned.mp4", frames=12, rotation=rotation)
    height, width = (64, 48) if rotation != 180 else (48, 64)
    difference = decode(request(turned, 5, height, width)).astype(int) - np.rot90(plain, rotation // 90, axes=(1, 2))
    assert np.abs(difference).mean() < 1  # two encodings of the same pictures are not bit-equal


def test_flips_mirror_every_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=12)
    plain = decode(request(clip, 5))
    assert np.array_equal(decode(request(clip, 5, flip_x=True)), plain[:, :, ::-1])
    assert np.array_equal(decode(request(clip, 5, flip_y=True)), plain[:, ::-1])


def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=48, width=320, height=192)
    wanted = request(clip, 9, 96, 160)
    out = np.empty((9, 96, 160, 3), np.uint8)
    decode_into(wanted, out, threads=4)
    assert np.array_equal(out, decode(wanted))


def test_shrinking_antialiases(tmp_path: Path) -> None:
    checkers = (np.indices((480, 640)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    clip = write_clip(tmp_path / "a.mkv", frames=5, width=640, height=480, codec="ffv1", picture=lambda _: checkers)
    flat = decode(request(clip, 5))[:, 4:-4, 4:-4]
    assert abs(float(flat.mean()) - 127.5) < 2
    assert flat.std() < 2


def test_the_crop_is_centred_and_keeps_the_shape(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 320)[None, :, None], (160, 320, 3)).astype(np.uint8)
    clip = write_clip(tmp_path / "a.mkv", frames=5, width=320, height=160, codec="ffv1", picture=lambda _: ramp)
    square = decode(request(clip, 5, 80, 80))[2].astype(float)
    assert np.abs(square[40, :, 0] - np.linspace(255 * 0.25, 255 * 0.75, 80)).max() < 6


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    ramp = np.broadcast_to(np.linspace(0, 255, 160)[:, None, None], (160, 160, 3)).astype(np.uint8)
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"crf": "5"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)  # viewed as 2:1
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(ramp, format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    whole = decode(request(clip, 5, 80, 160))[0].astype(float)
    assert np.abs(whole[:, 80, 0] - np.linspace(0, 255, 80)).max() < 6, "nothing may be cropped away above and below"


@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [(128, 96, "ITU601"), (720, 576, "ITU601"), (960, 720, "ITU709"), (1280, 544, "ITU709"), (768, 578, "ITU709")],
)
def test_untagged_colours_follow_the_convention_for_their_size(
    tmp_path: Path, width: int, height: int, matrix: str
) -> None:
    clip = tmp_path / "a.mkv"
    green = np.broadcast_to(np.array([30, 200, 60], np.uint8), (height, width, 3))
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        yuv = av.VideoFrame.from_ndarray(np.ascontiguousarray(green), format="rgb24").reformat(
            format="yuv444p", dst_colorspace=matrix
        )
        plain = av.VideoFrame.from_ndarray(yuv.to_ndarray(), format="yuv444p")  # the same samples, with no tag
        out.mux(stream.encode(plain))
        out.mux(stream.encode(None))
    assert np.abs(decode(request(clip, 1, 96, 128)).astype(int) - green[0, 0]).max() <= 3
    assert probe_video(clip).untagged_hd == (matrix == "ITU709"), "what is read by convention is told"


def image_request(path: Path, height: int, width: int) -> DecodeRequest:
    return request(path, 1, height, width, kind="image")


def test_images_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(numbered(37, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me clockwise to view me"
    picture.save(tmp_path / "a.png", exif=exif)
    got = decode(image_request(tmp_path / "a.png", 64, 48))
    assert got.shape == (1, 64, 48, 3)
    assert np.array_equal(got[0], np.rot90(numbered(37, 64, 48), -1))


def test_transparency_lies_on_white_and_16_bits_become_8(tmp_path: Path) -> None:
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[:, 16:] = (200, 10, 10, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    got = decode(image_request(tmp_path / "clear.png", 32, 32))[0]
    assert (got[:, :16] == 255).all()
    assert (got[:, 16:] == (200, 10, 10)).all()

    deep = np.broadcast_to((np.arange(32) * 257 * 8).astype(np.uint16), (32, 32))
    Image.fromarray(np.ascontiguousarray(deep)).save(tmp_path / "deep.png")
    assert (decode(image_request(tmp_path / "deep.png", 32, 32))[0, 5, :, 0] == np.arange(32) * 8).all()


def test_large_images_are_antialiased_and_cropped_around_the_centre(tmp_path: Path) -> None:
    checkers = (np.indices((600, 900)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")
    assert decode(image_request(tmp_path / "a.png", 64, 64)).std() < 2
    ramp = np.broadcast_to(np.linspace(0, 255, 900)[None, :], (300, 900)).astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "b.png")
    assert (
        np.abs(
            decode(image_request(tmp_path / "b.png", 96, 96))[0, 48, :, 0].astype(float) - np.linspace(85, 170, 96)
        ).max()
        < 4
    )


def test_errors_name_the_clip(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"gone\.mp4: is missing"):
        decode(request(tmp_path / "gone.mp4"))
    (tmp_path / "text.mp4").write_text("no video at all\n" * 99)
    with pytest.raises(ClipError, match=r"text\.mp4: is not a video"):
        decode(request(tmp_path / "text.mp4"))
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(ClipError, match=r"text\.png: cannot be decoded"):
        decode(image_request(tmp_path / "text.png", 32, 32))
    short = write_clip(tmp_path / "short.mp4", frames=12, fps=24)
    with pytest.raises(ClipError, match=r"short\.mp4: runs 0\.50 s, but 41 frames in real time take 2\.50 s"):
        decode(request(short, 41, sampling="realtime"))
    with pytest.raises(ClipError, match=r"short\.mp4: is 64x48 now, too small"):
        decode(request(short, 5, 96, 128))


def test_a_clip_cut_off_in_the_middle_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", frames=96, fps=24)
    whole = clip.read_bytes()
    decode(request(clip, 9))
    # What the index promised is not there any more: the file is replaced under the run by a damaged copy of equal size.
    clip.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    frames = frame_index(str(clip)).pts
    assert len(frames) < 96
    wanted = choose(frame_index(str(clip)), 9, "uniform", 0.0)
    assert wanted[-1] == len(frames) - 1


def test_a_replaced_clip_is_indexed_again(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=48)
    assert len(frame_index(str(clip)).pts) == 48
    write_clip(clip, frames=24)
    assert len(frame_index(str(clip)).pts) == 24


def garbled(clip: Path, path: Path, bad: int) -> Path:
    """A copy whose packet `bad` holds garbage behind its first third."""
    with av.open(str(clip)) as whole, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(whole.streams.video[0])
        for i, packet in enumerate(p for p in whole.demux(video=0) if p.size):
            content = bytes(packet)
            other = av.Packet(
                content
                if i != bad
                else content[: len(content) // 3] + np.random.default_rng(1).bytes(len(content) - len(content) // 3)
            )
            other.pts, other.dts, other.duration, other.time_base, other.is_keyframe, other.stream = (
                packet.pts,
                packet.dts,
                packet.duration,
                packet.time_base,
                packet.is_keyframe,
                copy,
            )
            out.mux(other)
    return path


def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8)


@pytest.mark.parametrize("wanted", [48, 9], ids=["the frame itself", "frames that show it"])
def test_a_frame_that_the_decoder_marks_as_damaged_is_never_delivered(tmp_path: Path, wanted: int) -> None:
    clip = garbled(
        write_clip(tmp_path / "a.mp4", frames=48, picture=noise, options={"bf": "0"}), tmp_path / "bad.mp4", 26
    )
    with open_video(clip) as (container, stream):
        assert [i for i, f in enumerate(container.decode(stream)) if f.is_corrupt] == [26], "no test of a damaged frame"
    with pytest.raises(ClipError, match=r"bad\.mp4: is damaged at 1\.1 s") as caught:
        decode(request(clip, wanted))
    assert caught.value.fix
    assert len(decode(request(clip, 5, sampling="realtime"))) == 5, "what lies before it trains"


def test_a_packet_that_the_decoder_refuses_is_named_with_its_second(tmp_path: Path) -> None:
    whole, clip = write_clip(tmp_path / "a.mp4", frames=48, codec="libvpx-vp9"), tmp_path / "bad.mp4"
    with av.open(str(whole)) as source, av.open(str(clip), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            other = av.Packet(bytes(packet) if i != 24 else bytes(packet.size))
            other.pts, other.dts, other.duration, other.time_base, other.is_keyframe, other.stream = (
                packet.pts,
                packet.dts,
                packet.duration,
                packet.time_base,
                packet.is_keyframe,
                copy,
            )
            out.mux(other)
    with pytest.raises(ClipError, match=r"bad\.mp4: is damaged at (0\.9|1\.0) s: a frame there does not decode"):
        decode(request(clip, 48))


def test_a_zero_display_matrix_trains_upright(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=12)
    plain = decode(request(clip, 5))
    content = clip.read_bytes()
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    zero = tmp_path / "zero.mp4"
    zero.write_bytes(content.replace(identity, bytes(36)))
    assert probe_clip(zero).rotation == 0
    assert np.array_equal(decode(request(zero, 5)), plain)


@pytest.mark.parametrize("first", [1, 5, 17])
def test_a_copy_that_begins_between_keyframes_trains_from_the_first_that_decodes(tmp_path: Path, first: int) -> None:
    """Before its first keyframe the decoder of VP9 gives an error, not frames."""
    whole = write_clip(tmp_path / "whole.webm", frames=60, codec="libvpx-vp9", gop=12)
    clip = tmp_path / "cut.webm"
    with av.open(str(whole)) as source, av.open(str(clip), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in [p for p in source.demux(video=0) if p.size][first:]:
            packet.stream = copy
            out.mux(packet)
    begin = -(-first // 12) * 12
    assert probe_clip(clip).frames == 60 - begin
    assert numbers(decode(request(clip, 9))) == [begin + i for i in uniform_indices(60 - begin, 9)]


@pytest.mark.parametrize("name", ["a.ts", "a.mpg"])
def test_picks_are_exact_where_seeking_is_guessing(tmp_path: Path, name: str) -> None:
    clip = write_clip(tmp_path / name, frames=100, fps=25, codec="mpeg2video" if name == "a.mpg" else "libx264")
    clip = clip.rename(tmp_path / "a.mp4")
    assert numbers(decode(request(clip, 5))) == uniform_indices(100, 5)
