"""One look at every file: what it is, whether it can be used, and the numbers that explore and splitting need."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image

from spectacles.images import ImageRefused, decode, read_file
from spectacles.progress import progress

MEASURE_SIZE = 256
"""Brightness, contrast and blur are measured on grey copies of at most this side, so that sizes compare."""


@dataclass(frozen=True)
class FileFacts:
    """What one look at a file tells. A refused file has a reason and zeros."""

    status: str
    """used, repaired or refused."""
    reason: str
    """How it was repaired, or why it was refused."""
    sha256: str = ""
    phash: str = ""
    """64-bit DCT hash in hex (Zauner 2010), insensitive to size, compression and slight changes of light."""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    """Upright, in pixels."""
    bytes: int = 0
    brightness: float = 0.0
    """Mean luma, 0..255."""
    contrast: float = 0.0
    """Standard deviation of luma."""
    sharpness: float = 0.0
    """Variance of the Laplacian (Pech-Pacheco et al. 2000); small means blurred."""


def look_at(path: Path) -> FileFacts:
    """Reads, decodes and measures one file; never raises for what is in it."""
    try:
        content = read_file(path)
        decoded = decode(content, least_side=2 * MEASURE_SIZE)
    except ImageRefused as error:
        return FileFacts("refused", str(error))
    grey = decoded.image.convert("L")
    return FileFacts(
        status="repaired" if decoded.repairs else "used",
        reason="; ".join(decoded.repairs),
        sha256=hashlib.sha256(content).hexdigest(),
        phash=str(imagehash.phash(grey)),
        format=decoded.format,
        mode=decoded.mode,
        width=decoded.width,
        height=decoded.height,
        bytes=len(content),
        **_measure(grey),
    )


def _measure(grey: Image.Image) -> dict[str, float]:
    small = grey.copy()
    small.thumbnail((MEASURE_SIZE, MEASURE_SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float32)
    middle = pixels[1:-1, 1:-1]
    neighbours = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    sharpness = float(np.var(neighbours - 4 * middle)) if middle.size else 0.0
    return {
        "brightness": round(float(pixels.mean()), 2),
        "contrast": round(float(pixels.std()), 2),
        "sharpness": round(sharpness, 2),
    }


def look_at_all(paths: Sequence[str], num_workers: int) -> pd.DataFrame:
    """FileFacts as columns, one row a path, in order. Threads suffice: decoding and hashing release the GIL."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        looks = pool.map(look_at, map(Path, paths))
        facts = [asdict(fact) for fact in progress(looks, "checking files", len(paths))]
    return pd.DataFrame(facts, columns=list(FileFacts.__dataclass_fields__))
