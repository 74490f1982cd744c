"""Resizing with both passes in a fixed order, so that the pixels do not depend on the version of Pillow."""

import math

from PIL import Image

SUPPORT = {Image.Resampling.BILINEAR: 1.0, Image.Resampling.BICUBIC: 2.0}
"""Radius of each filter in pixels of the result."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels; may be fractions."""


def resize(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling, box: Box | None = None
) -> Image.Image:
    """The part of `image` inside `box` (default: all of it) at `size`, rows first, then columns, rounded in between.

    Pillow 12 does it in this order too. Pillow 13 begins with the columns of tall pictures, which moved 14 % of the
    values of 178 x 218 photos, and probabilities by up to 0.03. A call that changes one side has no order to choose.
    """
    left, top, right, bottom = box or (0.0, 0.0, float(image.width), float(image.height))
    margin = SUPPORT[resampling] * max(1.0, (bottom - top) / size[1]) + 1
    first, last = max(0, math.floor(top - margin)), min(image.height, math.ceil(bottom + margin))
    if last - first < image.height:  # the second pass reads no other rows
        image = image.crop((0, first, image.width, last))
    narrow = image.resize((size[0], image.height), resampling, (left, 0, right, image.height))
    return narrow.resize(size, resampling, (0, top - first, size[0], bottom - first))
