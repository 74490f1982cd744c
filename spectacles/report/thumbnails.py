"""Small copies of photos: for contact sheets, and as WebP data URIs for pages that hold their pictures."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.core.value_ranges import ValueRanges
from spectacles.data.images import MAX_PIXELS, ImageRejected, decode

SIDE = 128
"""Pixels of the longer side."""


@dataclass(frozen=True)
class Thumbnail:
    uri: str
    missing: str
    """Why there is none; '' where there is one."""


def make(paths: Sequence[str], ranges: ValueRanges) -> dict[str, Thumbnail]:
    """Path -> thumbnail; for a file that has gone or changed since it was indexed, the reason."""
    with ThreadPoolExecutor(max(1, cpu_count())) as pool:
        return dict(zip(paths, pool.map(partial(_thumbnail, ranges=ranges), paths), strict=True))


def load_thumbnail(path: str, side: int, ranges: ValueRanges) -> Image.Image:
    """The photo, its longer side at most `side` pixels, black and white where the model has them. Raises UserError for
    a file that can no longer be read."""
    try:
        return _shrunk(path, side, ranges)
    except ImageRejected as error:
        raise UserError(f"{path} could be read before and cannot be now ({error}): restore the file.") from error


def to_uri(image: Image.Image, quality: int) -> str:
    """Pixels only, without the metadata of the photo (place, camera, colour profile)."""
    buffer = BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnail(path: str, ranges: ValueRanges) -> Thumbnail:
    try:
        return Thumbnail(to_uri(_shrunk(path, SIDE, ranges), quality=72), "")
    except ImageRejected as error:
        return Thumbnail("", str(error))


def _shrunk(path: str, side: int, ranges: ValueRanges) -> Image.Image:
    image = decode(Path(path), MAX_PIXELS, side, ranges).image
    image.thumbnail((side, side), reducing_gap=2.0)
    return image
