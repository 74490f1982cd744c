"""Photos as other devices and programs write them: turned, CMYK, 16 bits, palettes, transparent, long and thin."""

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from spectacles.data.images import ORIENTATION_TAG

KINDS = 8


def odd_pictures(pictures: Sequence[Image.Image]) -> list[bytes]:
    """KINDS files of each RGB picture."""
    makers = (_turned, _mirrored, _cmyk, _sixteen_bits, _palette, _transparent, _wide, _tall)
    assert len(makers) == KINDS
    return [make(picture) for picture in pictures for make in makers]


def _encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _with_orientation(orientation: int) -> Callable[[Image.Image], bytes]:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return lambda picture: _encoded(picture, "JPEG", quality=90, exif=exif)


_turned, _mirrored = _with_orientation(6), _with_orientation(2)


def _cmyk(picture: Image.Image) -> bytes:
    return _encoded(picture.convert("CMYK"), "JPEG", quality=90)


def _sixteen_bits(picture: Image.Image) -> bytes:
    return _encoded(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), "PNG")


def _palette(picture: Image.Image) -> bytes:
    return _encoded(picture.quantize(64), "PNG")


def _transparent(picture: Image.Image) -> bytes:
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    return _encoded(clear, "PNG")


def _wide(picture: Image.Image) -> bytes:
    return _encoded(picture.resize((10 * 48, 48)), "PNG")


def _tall(picture: Image.Image) -> bytes:
    return _encoded(picture.resize((48, 10 * 48)), "PNG")
