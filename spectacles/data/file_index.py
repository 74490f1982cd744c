"""One look at every file: what it is, whether it can be used, and the numbers that explore and splitting need."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.core.wording import count_of
from spectacles.data.images import ImageRejected, decode, read_file

MEASURE_SIZE = 256
"""Brightness, contrast and blur are measured on grey copies of at most this side, so that sizes compare."""
LEVELS = np.arange(256)
HASH_SIZE = 32
"""Side of the grey copy that the perceptual hash is made of."""
MIRROR = np.array([1, -1] * 4)
GRID = 50
"""Colours are measured on the means of so many cells a side, up to twice as many."""
BORDER = 0.04
"""Share of each side that counts as border."""
CHANGED = "has changed"
COLOURS = ("red", "green", "blue", "border_red", "border_green", "border_blue", "saturation")


@dataclass(frozen=True)
class FileFacts:
    """What one look at a file tells. A rejected file has a reason and zeros."""

    status: str
    """used, converted or rejected."""
    reason: str
    """How it was converted, or why it was rejected."""
    sha256: str = ""
    phash: str = ""
    """64-bit DCT hash in hex (Zauner 2010), insensitive to size, compression and slight changes of light."""
    phash_mirrored: str = ""
    """The hash of the mirrored picture."""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    """Upright, in pixels."""
    bytes: int = 0
    modified: int = 0
    """When the file was last written, in nanoseconds since 1970: with its size, what tells cheaply whether it is still
    the same."""
    brightness: float = 0.0
    """Mean luma, 0..255."""
    contrast: float = 0.0
    """Standard deviation of luma."""
    sharpness: float = 0.0
    """Variance of the Laplacian (Pech-Pacheco et al. 2000); small means blurred."""
    red: float = 0.0
    green: float = 0.0
    blue: float = 0.0
    """Mean of each channel, 0..255."""
    border_red: float = 0.0
    border_green: float = 0.0
    border_blue: float = 0.0
    """Mean colour of the outermost 4 % of each side."""
    saturation: float = 0.0
    """Mean of the largest minus the smallest channel, 0..255, of such means."""
    quantisation: float = 0.0
    """Mean of the JPEG luminance quantisation table, larger means more compressed; 0 where there is none."""


def look_at(path: Path) -> FileFacts:
    """Reads, decodes and measures one file; never raises for what is in it."""
    try:
        modified = _modified(path)  # before reading: what is written meanwhile is then newer
        content = read_file(path)
        decoded = decode(content, least_side=2 * MEASURE_SIZE)
    except ImageRejected as error:
        return FileFacts("rejected", str(error))
    grey = decoded.image.convert("L")
    phash, phash_mirrored = _hashes(grey)
    return FileFacts(
        status="converted" if decoded.conversions else "used",
        reason="; ".join(decoded.conversions),
        sha256=hashlib.sha256(content).hexdigest(),
        phash=phash,
        phash_mirrored=phash_mirrored,
        format=decoded.format,
        mode=decoded.mode,
        width=decoded.width,
        height=decoded.height,
        bytes=len(content),
        modified=modified,
        quantisation=_quantisation(content) if decoded.format in ("JPEG", "MPO") else 0.0,
        **_measure(grey),
        **_measure_colours(decoded.image),
    )


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0  # reading it says why


def changes(rows: pd.DataFrame) -> dict[str, str]:
    """Path -> 'is gone', 'has changed' or why it cannot be told, of files that are no longer what was indexed.

    `rows` have the columns path, sha256, bytes and modified of a dataset stage; of a run that is older than a column
    less is compared. 100,000 files take less than a second: a file is read only where its time moved and its size did
    not, since copying and restoring move times.
    """
    once = rows.drop_duplicates("path")
    sizes, times = (once.get(name, pd.Series(-1, index=once.index)) for name in ("bytes", "modified"))
    found = {}
    for path, digest, size, modified in zip(once["path"], once["sha256"], sizes, times, strict=True):
        what = _change(path, digest, size, modified)
        if what:
            found[path] = what
    return found


def _change(path: str, digest: str, size: int, modified: int) -> str:
    try:
        now = os.stat(path)
        if size not in (-1, now.st_size):
            return CHANGED
        if modified in (-1, now.st_mtime_ns) or hashlib.sha256(read_file(Path(path))).hexdigest() == digest:
            return ""
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read any more ({error.strerror})"
    except ImageRejected as error:
        return f"cannot be read any more ({error})"
    return CHANGED


def reject_changed(rows: pd.DataFrame) -> None:
    """To be called before anything is computed of indexed files: what is cached of them would be used for what is
    there now. See `changes`. Raises UserError that names three of the files."""
    found = changes(rows)
    if not found:
        return
    named = [f"{path} {what}" for path, what in list(found.items())[:3]]
    more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
    are, them = ("is", "it") if len(found) == 1 else ("are", "them")
    raise UserError(
        f"{len(found):,} of {count_of(rows['path'].nunique(), 'file')} {are} not what was indexed any more: "
        f"{', '.join(named)}{more}: restore {them}, or run the dataset stage again."
    )


def _hashes(grey: Image.Image) -> tuple[str, str]:
    """Perceptual hashes of the picture and of its mirror image, bit for bit those of imagehash.phash, in half the time
    of one: mirroring turns the sign of every second column of the cosine transform."""
    small = grey.resize((HASH_SIZE, HASH_SIZE), Image.Resampling.LANCZOS)
    waves = dctn(np.asarray(small, dtype=np.float64))[:8, :8]
    return _above_median(waves), _above_median(waves * MIRROR)


def _above_median(values: np.ndarray) -> str:
    ranked = np.sort(values, axis=None)
    return np.packbits(values > (ranked[31] + ranked[32]) / 2).tobytes().hex()


def _measure_colours(image: Image.Image) -> dict[str, float]:
    factors = (max(1, image.width // GRID), max(1, image.height // GRID))
    cells = np.asarray(image.reduce(factors)).transpose(2, 0, 1).astype(np.float32, order="C")
    rows, columns = (max(1, round(BORDER * side)) for side in cells.shape[1:])
    inner = cells[:, rows:-rows, columns:-columns]
    total, pixels = cells.sum(axis=(1, 2)), cells[0].size
    border = (total - inner.sum(axis=(1, 2))) / (pixels - inner[0].size)
    values = [*total / pixels, *border, (cells.max(axis=0) - cells.min(axis=0)).mean()]
    return dict(zip(COLOURS, map(float, values), strict=True))


def _quantisation(content: bytes) -> float:
    """Of a JPEG that could be decoded; only its header is read."""
    with Image.open(BytesIO(content), formats=("JPEG",)) as opened:
        tables: dict[int, list[int]] = getattr(opened, "quantization", {})
        return sum(tables[min(tables)]) / len(tables[min(tables)]) if tables else 0.0


def _measure(grey: Image.Image) -> dict[str, float]:
    """Shrinks the picture in place."""
    grey.thumbnail((MEASURE_SIZE, MEASURE_SIZE), Image.Resampling.BILINEAR)
    counts = np.array(grey.histogram())
    brightness = counts @ LEVELS / counts.sum()
    contrast = np.sqrt(counts @ (LEVELS - brightness) ** 2 / counts.sum())
    pixels = np.asarray(grey, dtype=np.float32)
    laplacian = pixels[1:-1, 1:-1] * -4
    for neighbours in (pixels[:-2, 1:-1], pixels[2:, 1:-1], pixels[1:-1, :-2], pixels[1:-1, 2:]):
        laplacian += neighbours
    size = max(1, laplacian.size)
    sharpness = np.einsum("ij,ij", laplacian, laplacian) / size - (laplacian.sum() / size) ** 2
    return {"brightness": float(brightness), "contrast": float(contrast), "sharpness": max(0.0, float(sharpness))}


def look_at_all(paths: Sequence[str], num_workers: int) -> pd.DataFrame:
    """FileFacts as columns, one row a path, in order; measures to two digits. Threads suffice: decoding and hashing
    release the GIL."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        looks = pool.map(look_at, map(Path, paths))
        facts = [vars(fact) for fact in progress(looks, "checking files", len(paths))]
    return pd.DataFrame(facts, columns=list(FileFacts.__dataclass_fields__)).round(2)
