"""One picture of whatever kind, from a file that nobody vouches for, as upright uint8 pixels."""

from __future__ import annotations

import functools
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastgan.data.bounded import one_line
from fastgan.errors import UserError, require

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

MOST_PIXELS = 80_000_000  # of one picture: beyond any camera's, and what a few threads can decode at a time
MOST_BYTES = 1 << 30  # of one picture's file
LARGEST_SIDE = 16_384  # of what is made of it
_NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # by Pillow itself: other programs or nobody would
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class PictureError(Exception):
    """Why a file gives no picture, in a few words."""


@functools.cache
def _formats() -> tuple[tuple[str, ...], frozenset[str]]:
    images = require("PIL.Image", why="reading pictures")
    images.init()
    formats = tuple(sorted(set(images.OPEN) - set(_NOT_READ)))
    endings = (ending for ending, format in images.registered_extensions().items() if format in formats)
    return formats, frozenset(endings)


def endings() -> frozenset[str]:
    """Endings of files that Pillow reads here by itself, such as ``.png``, in lower case."""
    return _formats()[1]


def check_size(image_size: int | None) -> None:
    """Raise a UserError for a side that no picture is resized to."""
    if image_size is not None and not 1 <= image_size <= LARGEST_SIDE:
        raise UserError(f"image_size must be from 1 to {LARGEST_SIDE}, not {image_size}")


def decode(file: IO[bytes], image_size: int | None = None) -> Pixels:
    """Read a picture: (H, W, 3) uint8, or (H, W, 1) where the file holds grey.

    Turned upright as its EXIF data say; transparent ones lie on white; of animations the first frame; 16 bits become 8
    (x / 257, rounded); CMYK and the like become RGB. With ``image_size`` its central square, resized with
    antialiasing: the same as to resize the short side and cut the long one.

    Raises:
        PictureError: It is damaged, no picture, too large, or of pixels without a known range.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=_formats()[0]) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise PictureError(f"{width}x{height} are more than {MOST_PIXELS / 1e6:.0f} million pixels")
            if image_size is not None:
                image.draft(image.mode, (2 * image_size, 2 * image_size))  # of a JPEG, only the detail that is needed
            image.load()
            if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                raise PictureError("its pixels are numbers without a known range: save it with 8 or 16 bits")
            upright = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(_resized(_eight_bits(upright), image_size))
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError("no memory for it") from error
    except Exception as error:  # whatever Pillow makes of a foreign file, the file is at fault
        raise PictureError(_reason(error)) from error


def _eight_bits(image: Image) -> Image:
    """The picture as ``L`` or ``RGB``."""
    from PIL import Image as Images

    if image.mode in _DEEP:
        return Images.fromarray(_of_sixteen(image))
    grey = image.mode in _GREY
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Images.new("RGBA", with_alpha.size, "white")
        return Images.alpha_composite(white, with_alpha).convert("L" if grey else "RGB")
    return image.convert("L" if grey else "RGB")


def _of_sixteen(image: Image) -> Pixels:
    values = np.asarray(image).astype(np.int64)
    return ((values.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)


def _resized(image: Image, image_size: int | None) -> Pixels:
    from PIL import Image as Images

    side = min(image.size)
    if image_size is not None and image.size != (image_size, image_size):
        left, top = (image.width - side) / 2, (image.height - side) / 2
        size = (image_size, image_size)
        image = image.resize(size, Images.Resampling.LANCZOS, (left, top, left + side, top + side))
    pixels: npt.NDArray[Any] = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    names = {"UnidentifiedImageError": "no picture that Pillow knows", "DecompressionBombError": "too many pixels"}
    return names.get(type(error).__name__) or one_line(error)[:120]
