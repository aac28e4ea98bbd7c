"""Images as they are seen: colours, transparency, orientation, and how large ones are read."""

import os
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from presets.clips.clip_facts import IMAGE_SUFFIXES, probe_clip
from presets.clips.images import open_image
from presets.errors import ClipError
from tests.helpers.videos import numbered

# Primaries brought to D50, as ICC profiles hold them: Display P3 and Adobe RGB (1998)
P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.4 (ICC.1:2001-04, 6)."""
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = bytearray(128)
    struct.pack_into(">I", head, 0, at + len(body))
    head[8:12] = b"\x02\x40\0\0"
    head[12:16], head[16:20], head[20:24], head[36:40] = (
        b"mntr" if space != b"CMYK" else b"prtr",
        space,
        b"XYZ ",
        b"acsp",
    )
    if space == b"CMYK":
        head[20:24] = b"Lab "
    head[68:80] = s15(0.9642, 1.0, 0.8249)
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    tags = {b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1.0, 0.8249)}
    for letter, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + s15(*primary)
        tags[bytes([letter]) + b"TRC"] = curve(gamma)
    return icc(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    return icc(b"GRAY", {b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1.0, 0.8249), b"kTRC": curve(gamma)})


def cmyk_profile() -> bytes:
    """Inks as they are: a lookup table with two points a side, black where black is."""
    table = b""
    for i in range(16):
        c, m, y, k = (i >> s & 1 for s in (3, 2, 1, 0))
        light = 100 * (1 - k) * (1 - 0.3 * c) * (1 - 0.5 * m) * (1 - 0.1 * y)
        a, b = (60 * (m - c) * (1 - k), 70 * (y - c) * (1 - k))
        table += bytes([round(light * 2.55), round(a + 128), round(b + 128)])
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + table + ramp * 3
    return icc(b"CMYK", {b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1.0, 0.8249), b"A2B0": lut})


def colours(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 255 - x * 255 / (width - 1)], -1).astype(np.uint8)


def converted(image: Image.Image, profile: bytes) -> np.ndarray:
    """The same by littleCMS alone."""
    result = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return np.asarray(result).astype(int)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize(
    "profile",
    [rgb_profile(P3, 2.2), rgb_profile(ADOBE, 2.2), rgb_profile(P3, 1.8)],
    ids=["P3", "Adobe RGB", "P3, gamma 1.8"],
)
def test_colours_come_out_in_srgb(tmp_path: Path, name: str, profile: bytes) -> None:
    image = Image.fromarray(colours())
    image.save(tmp_path / name, icc_profile=profile, **({"lossless": True} if name == "a.webp" else {}))
    got = np.asarray(open_image(tmp_path / name)).astype(int)
    assert np.abs(got - converted(image, profile)).max() == 0
    assert np.abs(got - colours()).mean() > 1.2, "no test of a profile"
    assert probe_clip(tmp_path / name).unused == ""


def test_a_jpeg_of_a_phone(tmp_path: Path) -> None:
    """Display P3, on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = rgb_profile(P3, 2.2)
    Image.fromarray(colours()).save(tmp_path / "a.jpg", icc_profile=profile, exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        expected = np.rot90(converted(stored.convert("RGB"), profile), -1)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.jpg")), expected)
    facts = probe_clip(tmp_path / "a.jpg")
    assert (facts.width, facts.height, facts.rotation) == (48, 64, 270)


def test_pixels_that_are_srgb_already_stay_as_they_are(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colours()).save(tmp_path / "a.png", icc_profile=srgb)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), colours())


def test_grey_pictures_follow_their_profile(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (16, 256))
    profile = grey_profile(1.0)
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png", icc_profile=profile)
    got = np.asarray(open_image(tmp_path / "a.png")).astype(int)
    assert np.abs(got - converted(Image.fromarray(np.ascontiguousarray(ramp)), profile)).max() == 0
    assert got[0, 55, 0] == pytest.approx(128, abs=2), "linear 0.216 is half as light in sRGB"
    # 16 bits of the same
    Image.fromarray(np.ascontiguousarray(ramp.astype(np.uint16) * 257)).save(tmp_path / "b.png", icc_profile=profile)
    assert np.array_equal(np.asarray(open_image(tmp_path / "b.png")), got)
    # grey pixels with a profile of colours
    profile = rgb_profile(P3, 1.8)
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "c.png", icc_profile=profile)
    got = np.asarray(open_image(tmp_path / "c.png")).astype(int)
    assert np.array_equal(got, converted(Image.fromarray(ramp[..., None].repeat(3, -1)), profile))


def test_inks_follow_their_profile(tmp_path: Path) -> None:
    inks = np.stack([colours()[..., 0], colours()[..., 1], colours()[..., 2], colours()[..., 1] // 3], -1)
    image, profile = Image.fromarray(inks, "CMYK"), cmyk_profile()
    image.save(tmp_path / "a.tif", icc_profile=profile)
    got = np.asarray(open_image(tmp_path / "a.tif")).astype(int)
    assert np.abs(got - converted(image, profile)).max() == 0
    assert np.abs(got - np.asarray(image.convert("RGB"))).mean() > 5, "no test of a profile"


def test_transparency_lies_on_white_after_the_profile(tmp_path: Path) -> None:
    clear = np.dstack([colours(), np.where(np.arange(64) < 32, 0, 255)[None].repeat(48, 0)]).astype(np.uint8)
    profile = rgb_profile(ADOBE, 2.2)
    Image.fromarray(clear).save(tmp_path / "a.png", icc_profile=profile)
    got = np.asarray(open_image(tmp_path / "a.png")).astype(int)
    assert (got[:, :32] == 255).all()
    assert np.array_equal(got[:, 32:], converted(Image.fromarray(colours()), profile)[:, 32:])


@pytest.mark.parametrize(
    "profile", [b"no profile at all", rgb_profile(P3, 2.2)[:200], cmyk_profile()], ids=["words", "cut off", "of inks"]
)
def test_a_broken_profile_is_told_and_the_pixels_stay(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), colours())
    assert probe_clip(tmp_path / "a.png").unused == "a colour profile that cannot be used"


def test_broken_exif_costs_the_orientation_and_no_more(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Raw profile type exif", "\nexif\n      12\nthese are no hexadecimal numbers\n")
    Image.fromarray(colours()).save(tmp_path / "a.png", pnginfo=about)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), colours())
    facts = probe_clip(tmp_path / "a.png")
    assert (facts.width, facts.height, facts.unused) == (64, 48, "EXIF data that cannot be read")


def test_each_format_with_a_suffix_is_read(tmp_path: Path) -> None:
    picture = numbered(37, 64, 48)
    for suffix in sorted(IMAGE_SUFFIXES):
        path = tmp_path / f"a{suffix}"
        image = open_image(saved(picture, path))
        facts = probe_clip(path)
        assert (facts.kind, facts.frames, facts.width, facts.height) == ("image", 1, 64, 48), suffix
        assert np.abs(np.asarray(image).astype(int) - picture).mean() < 6, suffix


def saved(picture: np.ndarray, path: Path, **options: object) -> Path:
    if path.suffix in (".heic", ".heif"):
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(Image.fromarray(picture)).save(str(path), quality=90, **options)
    elif path.suffix == ".jxl":
        pytest.importorskip("pillow_jxl")
        Image.fromarray(picture).save(path, quality=95, **options)
    else:
        Image.fromarray(picture).save(path, **options)
    return path


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("suffix", [".avif", ".heic"])
def test_turned_pictures_of_phones_are_upright(tmp_path: Path, suffix: str) -> None:
    picture = numbered(37, 64, 48)
    path = saved(picture, tmp_path / f"a{suffix}", exif=turned(6))
    assert np.abs(np.asarray(open_image(path)).astype(int) - np.rot90(picture, -1)).mean() < 6
    facts = probe_clip(path)
    assert (facts.width, facts.height) == (48, 64)


def test_a_picture_of_a_phone_with_another_s_name(tmp_path: Path) -> None:
    path = saved(numbered(37, 64, 48), tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    with pytest.raises(ClipError, match="is a HEIC image with another name") as caught:
        probe_clip(path)
    assert caught.value.fix == "Rename it to .heic"
    path = saved(numbered(37, 64, 48), tmp_path / "a.jxl").rename(tmp_path / "a.png")
    with pytest.raises(ClipError, match="is a JPEG XL image with another name") as caught:
        probe_clip(path)
    assert caught.value.fix == "Rename it to .jxl"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".heic", ".jxl", ".avif", ".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_a_cut_off_picture_is_refused_as_what_it_is(tmp_path: Path, suffix: str) -> None:
    path = saved(photo(256, 256), tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    for size in (len(whole) // 2, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ClipError) as caught:
            probe_clip(path)
        assert "name" not in caught.value.what and "build" not in caught.value.what, caught.value
        with pytest.raises(OSError):
            open_image(path)


def test_what_cannot_train_as_one_picture_is_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(numbered(i, 64, 48)) for i in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "film.avif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.zeros((48, 64), np.float32)).save(tmp_path / "depth.tif")
    for name, words in (
        ("pages.tif", "holds 3 pictures"),
        ("film.avif", "holds 3 pictures"),
        ("depth.tif", r"no plain colours \(mode F\)"),
    ):
        with pytest.raises(ClipError, match=words) as caught:
            probe_clip(tmp_path / name)
        assert caught.value.fix


def photo(height: int, width: int) -> np.ndarray:
    """Detail of every size, in light more than in colour, as a photo has it."""
    random = np.random.default_rng(1)
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 16, 64, 256):
        shape = (side * 3 // 4, side, 1 if side > 16 else 3)
        small = np.broadcast_to(random.integers(0, 256, shape, np.uint8), (*shape[:2], 3))
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return (total / 4).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_read_reduced(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(photo(1808, 2401)).save(tmp_path / "a.jpg", quality=92, exif=turned(orientation))
    size = (320, 240) if orientation == 1 else (240, 320)
    whole, reduced = open_image(tmp_path / "a.jpg"), open_image(tmp_path / "a.jpg", at_least=size)
    assert reduced.size == ((1200, 904) if orientation == 1 else (904, 1200)), "half: a quarter would be under 2 x 320"
    assert open_image(tmp_path / "a.jpg", at_least=(size[0] * 2, size[1] * 2)).size == whole.size
    small = tmp_path / "small.jpg"
    Image.fromarray(photo(1200, 1600)).save(small)
    assert open_image(small, at_least=(16, 16)).size == (1600, 1200), "what is not large stays bit for bit the same"
    same = (0, 0, reduced.width * 2, reduced.height * 2)  # all but the last column or row
    a = np.asarray(whole.resize(size, Image.Resampling.LANCZOS, box=same)).astype(int)
    b = np.asarray(reduced.resize(size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(a - b).mean() < 0.6 and np.abs(a - b).max() < 12
    assert np.array_equal(np.asarray(reduced), np.asarray(open_image(tmp_path / "a.jpg", at_least=size)))


def test_a_picture_of_108_megapixels_is_probed_in_little_memory(tmp_path: Path) -> None:
    Image.new("RGB", (12000, 9000), (200, 120, 40)).save(tmp_path / "a.jpg", exif=turned(6))
    code = (
        "import sys; from pathlib import Path; from presets.clips.clip_facts import probe_clip\n"
        "facts = probe_clip(Path(sys.argv[1]))\n"
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "print(facts.width, facts.height, peak)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "a.jpg"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    width, height, peak = map(int, done.stdout.split())
    assert (width, height) == (9000, 12000)
    assert peak < 200 * 1024, "kB; its pixels are 324 MB"
