"""Loss masks: the clip's own frames, crop and flips; means over what a latent covers; what does not fit is named."""

from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine.data.frames import DecodeRequest, decode_into
from engine.data.masks import Mask, decode_masked, mask_into
from presets.clips.geometry import Bucket
from presets.errors import ClipError
from tests.helpers.videos import write_clip

BUCKET = Bucket(9, 48, 64)


def request(path: Path, bucket: Bucket = BUCKET, **changes) -> DecodeRequest:
    values = {
        "path": str(path),
        "kind": "video",
        "bucket": bucket,
        "sampling": "uniform",
        "start": 0.0,
        "flip_x": False,
        "flip_y": False,
    }
    return DecodeRequest(**(values | changes))


def grid(path: Path, wanted: DecodeRequest, places: list[int], *, least: float = 0.0) -> np.ndarray:
    out = np.full(wanted.bucket.latent, -1.0, np.float32)
    mask_into(Mask(str(path), "image" if path.suffix == ".png" else "video", least), wanted, places, out)
    return out


def still(path: Path, grey: np.ndarray) -> Path:
    Image.fromarray(grey).save(path)
    return path


def film(path: Path, levels: list[int], width: int = 64, height: int = 48) -> Path:
    """One grey level per frame, without loss."""
    return write_clip(
        path,
        frames=len(levels),
        codec="ffv1",
        width=width,
        height=height,
        picture=lambda i: np.full((height, width, 3), levels[i], np.uint8),
        options={},
    )


def level(path: Path) -> list[float]:
    """What each frame of a film decodes to, 0..1."""
    with av.open(str(path)) as container:
        return [float(f.to_ndarray(format="rgb24").mean()) / 255 for f in container.decode(video=0)]


def test_a_still_holds_for_all_frames_as_mean_over_each_latents_pixels(tmp_path: Path) -> None:
    grey = np.zeros((48, 64), np.uint8)
    grey[:, :20] = 255  # two and a half latents wide
    out = grid(still(tmp_path / "m.png", grey), request(tmp_path / "c.mp4"), list(range(9)))
    assert out.shape == (3, 6, 8)
    assert (out[:, :, :2] == 1).all() and (out[:, :, 3:] == 0).all()
    assert np.allclose(out[:, :, 2], 0.5)


@pytest.mark.parametrize("least", [0.0, 0.1, 0.7, 1.0])
def test_white_counts_in_full_to_the_bit_and_black_as_little_as_is_said(tmp_path: Path, least: float) -> None:
    grey = np.zeros((48, 64), np.uint8)
    grey[:24] = 255
    grey[40:] = 51  # a fifth
    out = grid(still(tmp_path / "m.png", grey), request(tmp_path / "c.mp4"), list(range(9)), least=least)
    assert (out[:, :3] == 1).all()
    assert np.allclose(out[:, 3:5], least, atol=1e-6)
    assert np.allclose(out[:, 5], least + 0.2 * (1 - least), atol=1e-6)


def test_latent_frame_0_is_frame_0_and_the_others_the_mean_of_their_four(tmp_path: Path) -> None:
    path = film(tmp_path / "m.mkv", [0, 20, 60, 100, 140, 255, 255, 0, 128])
    seen = level(path)
    out = grid(path, request(tmp_path / "c.mp4"), list(range(9)))
    assert np.allclose(out[0], seen[0], atol=0.006)
    assert np.allclose(out[1], np.mean(seen[1:5]), atol=0.006)
    assert np.allclose(out[2], np.mean(seen[5:9]), atol=0.006)
    assert abs(seen[5] - seen[4]) > 0.3


@pytest.mark.parametrize("sampling", ["uniform", "realtime"])
def test_frame_n_of_a_video_masks_the_frame_n_that_trains(tmp_path: Path, sampling: str) -> None:
    """Whatever their rates: numbers count, not times."""
    clip = write_clip(tmp_path / "c.mp4", frames=40, fps=30)
    mask = film(tmp_path / "m.mkv", [6 * i for i in range(40)])
    wanted = request(clip, Bucket(5, 48, 64), sampling=sampling, start=0.5)
    frames = np.empty((5, 48, 64, 3), np.uint8)
    places = decode_into(wanted, frames).places
    assert places != list(range(5)) and len(places) == 5
    out = np.empty((2, 6, 8), np.float32)
    decode_masked(wanted, frames, Mask(str(mask), "video", 0.0), out)
    seen = level(mask)
    assert np.allclose(out[0], seen[places[0]], atol=0.006)
    assert np.allclose(out[1], np.mean([seen[p] for p in places[1:]]), atol=0.006)


@pytest.mark.parametrize(("flip_x", "flip_y"), product((False, True), repeat=2))
@pytest.mark.parametrize("moving", [False, True])
def test_a_mask_lies_on_its_clip_through_crop_and_flips(
    tmp_path: Path, flip_x: bool, flip_y: bool, moving: bool
) -> None:
    """The clip is white exactly where its mask, of half the size, is: so what the mask says is the clip's own grey."""
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[16:64, 96:144] = 255
    clip = write_clip(tmp_path / "c.mkv", frames=9, width=160, height=96, codec="ffv1", picture=lambda _: picture)
    small = picture[::2, ::2]
    if moving:
        mask = write_clip(tmp_path / "m.mkv", frames=9, width=80, height=48, codec="ffv1", picture=lambda _: small)
    else:
        mask = still(tmp_path / "m.png", small)
    wanted = request(clip, Bucket(9, 80, 96), flip_x=flip_x, flip_y=flip_y)  # the sides are cropped; the mask grows
    frames = np.empty((9, 80, 96, 3), np.uint8)
    out = np.empty((3, 10, 12), np.float32)
    decode_masked(wanted, frames, Mask(str(mask), "video" if moving else "image", 0.0), out)
    own = frames[0].mean(-1).reshape(10, 8, 12, 8).mean((1, 3)) / 255
    assert np.abs(out - own).max() < 0.1 and np.corrcoef(out[1].ravel(), own.ravel())[0, 1] > 0.995
    assert 0.1 < own.mean() < 0.5


def test_a_clip_turned_by_its_matrix_takes_an_upright_mask(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = 255
    clip = write_clip(tmp_path / "c.mp4", frames=9, rotation=90, picture=lambda _: picture)
    wanted = request(clip, Bucket(9, 64, 48))
    frames = np.empty((9, 64, 48, 3), np.uint8)
    decode_into(wanted, frames)
    out = np.empty((3, 8, 6), np.float32)
    mask_into(Mask(str(still(tmp_path / "m.png", frames[0])), "image", 0.0), wanted, list(range(9)), out)
    assert {round(float(v)) for v in out[0, :, 0]} == {0, 1}
    assert np.abs(out[0] - frames[0].mean(-1).reshape(8, 8, 6, 8).mean((1, 3)) / 255).max() < 0.02


def test_images_that_need_no_pixels_still_give_their_mask(tmp_path: Path) -> None:
    wanted = request(tmp_path / "c.png", Bucket(1, 48, 64), kind="image")
    out = np.empty((1, 6, 8), np.float32)
    grey = np.full((48, 64), 102, np.uint8)
    decode_masked(wanted, None, Mask(str(still(tmp_path / "m.png", grey)), "image", 0.0), out)
    assert np.allclose(out, 0.4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_stills_of_every_kind_are_read_as_grey(tmp_path: Path, mode: str) -> None:
    grey = np.zeros((48, 64), np.uint8)
    grey[:, 32:] = 255
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "m.png")
    out = grid(tmp_path / "m.png", request(tmp_path / "c.mp4"), list(range(9)))
    assert (out[:, :, :4] == 0).all() and (out[:, :, 4:] == 1).all()


def test_what_cannot_be_read_names_the_mask(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mp4", frames=12)
    wanted, out = request(clip), np.empty((3, 6, 8), np.float32)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    film(tmp_path / "short.mkv", [255] * 6)
    for name, kind, code, what in (
        ("gone.png", "image", "clip-unreadable", "is missing"),
        ("torn.png", "image", "clip-unreadable", "cannot be decoded"),
        ("short.mkv", "video", "mask-too-short", "has 6 frames, and frame 12 of its clip"),
    ):
        with pytest.raises(ClipError, match=what) as caught:
            mask_into(Mask(str(tmp_path / name), kind, 0.0), wanted, [0, 1, 2, 3, 4, 5, 8, 9, 11], out)
        assert (caught.value.where, caught.value.code) == (str(tmp_path / name), code)
