"""HDR and transparency of video, from real files."""

from pathlib import Path

import av
import numpy as np
import pytest

from engine.data.frames import DecodeRequest, decode
from engine.data.hdr import WHITE, pq_code
from presets.clips.clip_facts import probe_clip
from presets.clips.geometry import Bucket
from presets.clips.scene_cuts import find_cuts
from presets.clips.video_index import BT2020, HLG, PQ

TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087-0
COLOUR = (150, 60, 30)


def request(path: Path, frames: int = 5, **changes) -> DecodeRequest:
    return DecodeRequest(str(path), "video", Bucket(frames, 96, 128), "uniform", 0.0, False, False, **changes)


def write_hdr(path: Path, transfer: int, *, tagged: bool = True) -> Path:
    """COLOUR, as a picture of BT.2020."""
    code = pq_code(WHITE * TO_2020 @ (np.array(COLOUR) / 255) ** 2.4)
    rgb = np.broadcast_to(np.rint(65535 * code).astype(np.uint16), (96, 128, 3))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=24, options={"preset": "ultrafast", "x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, 9
        if tagged:
            context.colorspace = BT2020
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=BT2020)
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "matrix untagged"])
def test_hdr_is_tone_mapped_by_choice(tmp_path: Path, tagged: bool) -> None:
    path = write_hdr(tmp_path / "a.mp4", PQ, tagged=tagged)
    assert probe_clip(path).hdr
    mapped = decode(request(path, hdr="tonemap"))
    assert np.abs(mapped.astype(int) - COLOUR).max() <= 4
    assert np.abs(decode(request(path)).astype(int) - COLOUR).max() > 30, "washed out"


def test_hlg_too(tmp_path: Path) -> None:
    path = write_hdr(tmp_path / "a.mkv", HLG)
    plain, mapped = decode(request(path)).astype(int), decode(request(path, hdr="tonemap")).astype(int)
    assert probe_clip(path).hdr and np.abs(plain - mapped).mean() > 5


def test_ordinary_video_does_not_care(tmp_path: Path) -> None:
    path = write_alpha(tmp_path / "a.mov", "prores_ks", "yuv422p10le")
    assert np.array_equal(decode(request(path)), decode(request(path, hdr="tonemap")))


def write_alpha(path: Path, codec: str, pix_fmt: str, alpha: int | None = None) -> Path:
    """Left half opaque red, right half clear (or of `alpha`) green."""
    rgba = np.zeros((96, 128, 4), np.uint8)
    rgba[:, :64], rgba[:, 64:] = (200, 20, 20, 255), (10, 220, 10, 0 if alpha is None else alpha)
    options = {"auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "8", "crf": "4"} if "vp" in codec else {}
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pix_fmt)
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mkv", "ffv1", "yuva444p"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
    ],
)
def test_what_is_transparent_lies_on_white(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = write_alpha(tmp_path / name, codec, pix_fmt)
    find_cuts(path)
    got = decode(request(path, probe_clip(path).frames - 1)).astype(int)
    assert np.abs(got[:, 8:-8, 72:-8] - 255).max() <= 3
    assert np.abs(got[:, 8:-8, 8:56] - (200, 20, 20)).max() <= 12
    half = write_alpha(tmp_path / f"half_{name}", codec, pix_fmt, alpha=128)
    laid = 255 - (255 - np.array([10, 220, 10])) * 128 / 255
    assert np.abs(decode(request(half))[:, 8:-8, 72:-8] - laid).max() <= 12


def test_an_opaque_picture_is_read_as_before(tmp_path: Path) -> None:
    opaque = decode(request(write_alpha(tmp_path / "a.mkv", "ffv1", "bgra", alpha=255)))
    plain = decode(request(write_alpha(tmp_path / "b.mkv", "ffv1", "bgr0", alpha=255)))
    assert np.array_equal(opaque, plain)
