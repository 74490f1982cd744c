"""Photos small enough to lie inside a page, as WebP data URIs."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.data.images import ImageRejected, decode

SIDE = 128
"""Pixels of the longer side."""


@dataclass(frozen=True)
class Thumbnail:
    uri: str
    missing: str
    """Why there is none; '' where there is one."""


def make(paths: Sequence[str]) -> dict[str, Thumbnail]:
    """Path -> thumbnail. A file that has gone or changed since it was indexed gets the reason instead."""
    with ThreadPoolExecutor(max(1, cpu_count())) as pool:
        return dict(zip(paths, pool.map(_thumbnail, paths), strict=True))


def to_uri(image: Image.Image, quality: int) -> str:
    """Pixels only: what else the image carries (place, camera, colour profile) stays behind."""
    buffer = BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnail(path: str) -> Thumbnail:
    try:
        image = decode(Path(path), least_side=SIDE).image
    except ImageRejected as error:
        return Thumbnail("", str(error))
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    return Thumbnail(to_uri(image, quality=72), "")
