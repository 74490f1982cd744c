"""Every file read once: what it is, whether it can be used, and the measures that explore and splitting need."""

import hashlib
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.core.value_ranges import PER_FILE, ValueRanges
from spectacles.core.wording import count_of
from spectacles.data import value_ranges
from spectacles.data.images import MAX_PIXELS, ImageRejected, decode, read_file
from spectacles.data.schemas import FILE_FACTS
from spectacles.data.value_ranges import Extremes

MEASURE_SIZE = 256
"""Brightness, contrast and blur are measured on grey copies of at most this side, so that sizes compare."""
LEVELS = np.arange(256)
HASH_SIZE = 32
"""Side of the grey copy that the perceptual hash is computed from."""
MIRROR = np.array([1, -1] * 4)
"""Signs of the columns of a cosine transform after mirroring the picture."""
GRID = 50
"""Colours are measured on a reduced copy of at least so many, and less than twice as many, cells a side."""
BORDER = 0.04
"""Share of each side that counts as border."""
CHANGED = "has changed"
COLOURS = ("red", "green", "blue", "border_red", "border_green", "border_blue", "saturation")


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file after reading it once. A rejected file has a reason and zeros."""

    status: str
    """used, converted or rejected."""
    reason: str
    """How it was converted or why it was rejected."""
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
    """Time of the last change in nanoseconds since 1970: with the size, a cheap test whether the file is the same."""
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
    """Mean over the cells of the largest minus the smallest channel, 0..255."""
    quantisation: float = 0.0
    """Mean of the JPEG luminance quantisation table: larger means more compressed; 0 for other formats."""


def inspect_file(path: Path, ranges: ValueRanges = PER_FILE) -> FileFacts:
    """Reads, decodes and measures one file; never raises for its content."""
    return _inspect(path, ranges)[0]


def _inspect(path: Path, ranges: ValueRanges) -> tuple[FileFacts, Extremes | None]:
    """The extremes of the stored values too, where they may be other ones than 0..255."""
    try:
        modified = _modified(path)  # before reading, so that a write during it is seen as newer
        content = read_file(path)
        decoded = decode(content, MAX_PIXELS, 2 * MEASURE_SIZE, ranges)
    except ImageRejected as error:
        return FileFacts("rejected", str(error)), None
    grey = decoded.image.convert("L")
    phash, phash_mirrored = _hashes(grey)
    facts = FileFacts(
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
    return facts, decoded.extremes


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0  # reading the file gives the reason


def changed_files(rows: pd.DataFrame) -> dict[str, str]:
    """Path -> 'is gone', 'has changed' or why it cannot be read, of files that are no longer what was indexed.

    `rows` have the columns path, sha256, bytes and modified of schemas.SPLIT_ROWS. 100,000 files take less than a
    second: a file is read only where its time changed and its size did not, since copying and restoring change times.
    """
    files = rows.drop_duplicates("path")[["path", "sha256", "bytes", "modified"]]
    changes = {path: _change(path, *recorded) for path, *recorded in files.itertuples(index=False)}
    return {path: change for path, change in changes.items() if change}


def _change(path: str, digest: str, size: int, modified: int) -> str:
    """'' for none."""
    try:
        now = os.stat(path)
        if size != now.st_size:
            return CHANGED
        if modified == now.st_mtime_ns or hashlib.sha256(read_file(Path(path))).hexdigest() == digest:
            return ""
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"can no longer be read ({error.strerror})"
    except ImageRejected as error:
        return f"can no longer be read ({error})"
    return CHANGED


def require_unchanged(rows: pd.DataFrame) -> None:
    """To be called before anything is computed from indexed files: what is cached of the old content would be used for
    the new. See `changed_files`. Raises UserError that names up to three files."""
    changes = changed_files(rows)
    if not changes:
        return
    named = [f"{path} {change}" for path, change in list(changes.items())[:3]]
    more = f" and {len(changes) - 3:,} more" if len(changes) > 3 else ""
    have, them = ("is", "it") if len(changes) == 1 else ("are", "them")
    raise UserError(
        f"{len(changes):,} of {count_of(rows['path'].nunique(), 'file')} {have} no longer what was indexed: "
        f"{', '.join(named)}{more}: restore {them}, or run the dataset stage again."
    )


def _hashes(grey: Image.Image) -> tuple[str, str]:
    """Perceptual hashes of the picture and of its mirror image, bit for bit those of imagehash.phash, in half the time
    of one: mirroring flips the sign of every second column of the cosine transform."""
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
    """Of a JPEG that has been decoded; only its header is read."""
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


def inspect_files(
    paths: Sequence[str], num_workers: int, training: Collection[str] | None = None
) -> tuple[pd.DataFrame, ValueRanges, list[str]]:
    """FileFacts as columns, one row per path, in order, measures to two decimals; the value ranges of the `training`
    files (default: all), by which all are measured; and sentences about those ranges.

    Threads suffice: decoding and hashing release the GIL. Files of other values than 0..255 are read twice, since their
    range is known only after the last of them.
    """
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        inspected = pool.map(partial(_inspect, ranges=PER_FILE), map(Path, paths))
        pairs = dict(zip(paths, progress(inspected, "checking files", len(paths)), strict=True))
        extremes = {path: seen for path, (_, seen) in pairs.items() if seen is not None}
        measured = {path: seen for path, seen in extremes.items() if training is None or path in training}
        ranges = value_ranges.measure(measured.values())
        again = [path for path, seen in extremes.items() if value_ranges.differs(seen, ranges)]
        facts = {path: fact for path, (fact, _) in pairs.items()}
        facts.update(zip(again, pool.map(partial(inspect_file, ranges=ranges), map(Path, again)), strict=True))
    table = pd.DataFrame([vars(facts[path]) for path in paths], columns=list(FILE_FACTS)).round(2)
    return table, ranges, value_ranges.describe(measured, ranges)
