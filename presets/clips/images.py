"""Opening a still image as it is seen: upright, in sRGB, on white. Whether a file can serve as a clip is `probe`.

Imports Pillow, so it is itself imported only where an image is opened.
"""

import warnings
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from presets.clips.clip_facts import IMAGE_PACKAGES

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
# what can be brought to RGB; the others (floating point, L*a*b*) are refused
MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}) | frozenset(
    {"I", "I;16", "I;16L", "I;16B", "I;16N"}
)
# By EXIF orientation, tag 0x0112: what turns the stored picture upright. EXIF 3.0, 4.6.5.1
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what Pillow's decoders and its plugins raise for damaged files (RuntimeError: JPEG XL)
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, OverflowError, RuntimeError)
# 8 bits: where a profile moves no colour by more, it is sRGB in another form, and the pixels stay as they are
SAME = 2
LARGE = 4_000_000  # pixels from which on a JPEG is read reduced where that is enough
SRGB = ImageCms.createProfile("sRGB")

# Photos of phones have 108 megapixels; Pillow refuses twice what it warns of.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def opened(path: str | Path) -> Image.Image:
    """The image as it is stored, its pixels not read yet; a context manager. Raises what Pillow raises."""
    package = IMAGE_PACKAGES.get(Path(path).suffix.lower())
    return Image.open(path, formats=(*FORMATS, _format_of(package)) if package else FORMATS)


@lru_cache
def _format_of(package: str) -> str:
    """Pillow's name of the format that a package has taught it."""
    if package == "pillow_heif":
        import pillow_heif

        pillow_heif.register_heif_opener()
        return "HEIF"
    import pillow_jxl  # noqa: F401

    return "JXL"


def orientation_of(image: Image.Image) -> tuple[int, str]:
    """(EXIF orientation, what of the file cannot be used for it): 1 where nothing is said, or nothing that can be read.

    JPEG XL says it elsewhere, and its decoder obeys (ISO/IEC 18181-1, annex D); EXIF only repeats it.
    """
    if image.format == "JXL":
        return 1, ""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # of whatever kind: the pixels do not depend on it
        return 1, "EXIF data that cannot be read"
    return (orientation if orientation in UPRIGHT else 1), ""


def open_image(path: str | Path, at_least: tuple[int, int] | None = None) -> Image.Image:
    """A picture as it is seen, in RGB: upright, its colours in sRGB, transparency on white, 16 bits brought to 8.
    Raises OSError, or Image.DecompressionBombError.

    With `at_least` (width, height; upright), a JPEG of 4 megapixels or more is read at 1/2, 1/4 or 1/8 of its sides
    where that still leaves twice as much: up to ten times as fast. Resized to `at_least`, it differs from the whole one
    by rounding, half a step of 255 in the mean.
    """
    try:
        with opened(path) as image:
            orientation, _ = orientation_of(image)
            picture = image
            if at_least is not None and image.width * image.height >= LARGE:
                picture = _reduced(image, at_least if orientation < 5 else at_least[::-1])
            if orientation in UPRIGHT:
                picture = picture.transpose(UPRIGHT[orientation])
            return _rgb(picture, image.info.get("icc_profile"))
    except OSError:
        raise
    except DAMAGED as e:
        raise OSError(str(e)) from e


def _reduced(image: Image.Image, at_least: tuple[int, int]) -> Image.Image:
    """The stored picture at 1/2, 1/4 or 1/8 of its sides where its decoder can do that and twice `at_least` is left;
    a last row or column of it that only part of the picture falls into is cut off."""
    drafted = image.draft(None, (2 * at_least[0], 2 * at_least[1]))
    if drafted is None:
        return image
    _, (_, _, width, height) = drafted
    return image if (width, height) == image.size else image.crop((0, 0, int(width), int(height)))


def profile_problem(image: Image.Image) -> str:
    """What is wrong with the colour profile of an opened image, "" when nothing is or it has none. Its colours are then
    taken for sRGB."""
    profile = image.info.get("icc_profile")
    return "a colour profile that cannot be used" if profile and not _usable(profile, image.mode) else ""


def _rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    if profile and (mode := _usable(profile, image.mode)) and (transform := _to_srgb(profile, mode)) is not None:
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        plain = image if alpha is None else image.convert("RGBA")
        turned = ImageCms.applyTransform(plain.convert(mode), transform)
        assert turned is not None  # it is None where a picture is changed in place
        image = turned
        if alpha is not None:
            image.putalpha(alpha)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _usable(profile: bytes, image_mode: str) -> str:
    """The mode in which pixels of `image_mode` are what the profile describes; "" when it is broken or of another kind
    of image."""
    try:
        space = ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space, "")
        grey = image_mode in ("1", "L", "LA", "La") or image_mode.startswith("I")
        if not mode or (mode == "L" and not grey) or (mode == "CMYK") != (image_mode == "CMYK"):
            return ""
        _to_srgb(profile, mode)
    except (OSError, ImageCms.PyCMSError):
        return ""
    return mode


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from the profile's colours to sRGB, relative colorimetric with black point compensation; None when the
    profile is sRGB. Raises OSError or PyCMSError."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        SRGB,
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    plain = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
    turned = np.asarray(ImageCms.applyTransform(plain, transform)).astype(int)
    return None if np.abs(turned - np.asarray(plain.convert("RGB"))).max() <= SAME else transform
