"""One picture: each mode and orientation that Pillow knows becomes the same upright pixels, or a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from fastgan.data import pixels
from fastgan.data.pixels import PictureError, decode

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(5)
COLOURS = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def saved(image: Any, format: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def test_lossless_colours_come_back() -> None:
    for format in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode(saved(Image.fromarray(COLOURS), format)), COLOURS)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_is_one_channel(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.array_equal(decode(saved(image))[..., 0], np.asarray(image.convert("L")))


def test_sixteen_bits_become_eight() -> None:
    deep = np.array([[0, 257, 128, 129, 65535, 65534]], np.uint16)
    assert decode(saved(Image.fromarray(deep))).ravel().tolist() == [0, 1, 0, 1, 255, 255]
    assert decode(saved(Image.fromarray(deep), "TIFF")).ravel().tolist() == [0, 1, 0, 1, 255, 255]


def test_pixels_without_a_range_are_refused() -> None:
    for dtype in (np.float32, np.int32):
        with pytest.raises(PictureError, match="without a known range"):
            decode(saved(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"))


def test_transparency_lies_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (100, 0, 200, 128))
    assert decode(saved(rgba)).tolist() == [[[255, 255, 255], [177, 127, 227]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(saved(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(saved(palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    grey = Image.fromarray(np.array([[5, 9]], np.uint8))
    assert decode(saved(grey, transparency=9)).ravel().tolist() == [5, 255]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(saved(image, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() < 6


def test_pictures_stand_upright() -> None:
    """Orientation 6: the camera's top row is the picture's right column."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.fromarray(COLOURS), exif=exif)
    assert np.array_equal(decode(turned), np.rot90(COLOURS, -1))


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(file)[0, 0].tolist() == [255, 0, 0]


def test_resized_by_the_short_side_and_cut_at_the_centre() -> None:
    size, wide = 4, Image.fromarray(RNG.integers(0, 256, (8, 20, 3), dtype=np.uint8))
    for image, axis in ((wide, 1), (wide.transpose(Image.Transpose.ROTATE_90), 0)):
        whole = np.asarray(image.resize((image.width * size // 8, image.height * size // 8), Image.Resampling.LANCZOS))
        cut = np.take(whole, np.arange(size) + (20 * size // 8 - size) // 2, axis)
        assert np.array_equal(decode(saved(image), size), cut)


def test_a_strip_takes_no_more_than_its_square() -> None:
    strip = saved(Image.new("L", (1, 10_000), 7))
    assert np.array_equal(decode(strip, 64), np.full((64, 64, 1), 7))


def test_resizing_is_antialiased() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode(saved(Image.fromarray(checks.astype(np.uint8))), 8)
    assert np.abs(small.astype(int) - 127).max() <= 3


def test_a_large_jpeg_is_decoded_coarsely_but_looks_the_same() -> None:
    y, x = np.mgrid[0:512, 0:768] / 60
    smooth = np.stack([127 + 120 * np.sin(x + k) * np.cos(y) for k in range(3)], -1).astype(np.uint8)
    pixel = decode(saved(Image.fromarray(smooth), "JPEG", quality=95), 32).astype(int)
    exact = decode(saved(Image.fromarray(smooth), "PNG"), 32).astype(int)
    assert np.abs(pixel - exact).max() <= 4


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_bombs_are_refused_before_they_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    for limit in (None, Image.MAX_IMAGE_PIXELS):  # ours holds where a program has taken Pillow's away
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(PictureError, match="pixels"):
            decode(io.BytesIO(bomb), 64)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_what_is_cut_short_or_none_has_a_reason(format: str) -> None:
    content = saved(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)), format).getvalue()
    for damaged in (content[: len(content) // 2], b"", b"hello", bytes(100)):
        with pytest.raises(PictureError) as caught:
            decode(io.BytesIO(damaged))
        assert 0 < len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_postscript_is_not_run() -> None:
    with pytest.raises(PictureError):
        decode(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"))
    assert ".eps" not in pixels.endings() and {".jpg", ".png", ".webp", ".gif"} <= pixels.endings()
