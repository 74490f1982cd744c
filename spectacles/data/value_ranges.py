"""Files that hold other values than 0..255: which of them become black and white, one range for a whole data set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spectacles.core.value_ranges import Range, ValueRanges
from spectacles.core.wording import count_of

Kind = Literal["byte", "integer", "real"]
"""Grey of 8 bits, integers of 16 or 32 bits, floating point."""

DEPTHS: Mapping[Kind, tuple[int, ...]] = {
    "byte": (1, 4, 8),
    "integer": (1, 4, 8, 10, 12, 14, 16),
    "real": (8, 10, 12, 14, 16),
}
"""Bits that instruments and formats use; a file often has room for more of them."""
NAMES: Mapping[Kind, str] = {
    "byte": "grey files of 8 bits",
    "integer": "files of 16 or 32 bits",
    "real": "floating-point files",
}
FULL: Range = (0.0, 255.0)
"""That of 8 bits."""
OVERSHOOT = 0.1
"""How far floating-point values that are meant as 0..1 may lie outside, as resampling makes them."""
FEW = 0.01
"""Share of the files on which a range should not depend alone."""


@dataclass(frozen=True)
class Extremes:
    """Lowest and highest stored value of a file."""

    kind: Kind
    low: float
    high: float
    colour: bool = False
    """Whether each colour has 16 bits, of which Pillow reads 8."""


def extremes_of(kind: Kind, values: np.ndarray) -> Extremes:
    """NaN and infinity do not count."""
    finite = values[np.isfinite(values)] if kind == "real" else values
    return Extremes(kind, float(finite.min()), float(finite.max())) if finite.size else Extremes(kind, 0.0, 0.0)


def range_of(extremes: Extremes) -> Range:
    """(black, white): from zero to the top of the bit depth that holds the values; 0..1 for floating point that fits;
    and the values' own extremes where they fit no convention, such as negative ones."""
    low, high, tops = extremes.low, extremes.high, [2.0**depth - 1 for depth in DEPTHS[extremes.kind]]
    if extremes.kind == "real":
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            return 0.0, 1.0
        if high <= tops[0] / 4:
            return min(low, 0.0), high
    if low < 0 or high > tops[-1]:
        return min(low, 0.0), high
    return 0.0, next(top for top in tops if high <= top) if high > 0 else tops[-1]


def measure(files: Iterable[Extremes]) -> ValueRanges:
    """The range of each kind over all of `files`."""
    widest: dict[str, Extremes] = {}
    for file in files:
        seen = widest.get(file.kind, file)
        widest[file.kind] = Extremes(file.kind, min(seen.low, file.low), max(seen.high, file.high))
    return ValueRanges(**{kind: range_of(extremes) for kind, extremes in widest.items()})


def differs(file: Extremes, ranges: ValueRanges) -> bool:
    """Whether the file looks otherwise by `ranges` than by itself."""
    found: Range | None = getattr(ranges, file.kind)
    alone = FULL if file.kind == "byte" else range_of(file)
    return found is not None and found != alone


def to_bytes(values: np.ndarray, black_white: Range) -> np.ndarray:
    """uint8 of the same shape: the range becomes 0..255, values outside are cut off, NaN and infinity are black."""
    black, white = black_white
    scaled = values.astype(np.float32)
    np.nan_to_num(scaled, copy=False, nan=black, posinf=black, neginf=black)
    scaled -= black
    scaled *= 255.0 / (white - black) if white > black else 0.0
    return np.asarray(np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8))


def describe(files: Mapping[str, Extremes], ranges: ValueRanges) -> list[str]:
    """Sentences about every range that is not the ordinary one. `files`: path -> extremes, of those measured."""
    sentences = []
    for kind, name in NAMES.items():
        found: Range | None = getattr(ranges, kind)
        if found is None or (kind == "byte" and found == FULL):
            continue
        black, white = found
        ours = {path: file for path, file in files.items() if file.kind == kind}
        sentences.append(f"{count_of(len(ours), 'image')} in {name}: {black:g} to {white:g} become black to white")
        sentences += _few_beyond(ours, white, kind) + _few_levels(ours, white)
    return sentences


def _few_beyond(files: Mapping[str, Extremes], white: float, kind: Kind) -> list[str]:
    """A sentence where a handful of files alone make all others darker."""
    lower = [2.0**depth - 1 for depth in DEPTHS[kind] if 2.0**depth - 1 < white]
    beyond = [path for path, file in files.items() if lower and file.high > lower[-1]]
    if not beyond or len(beyond) >= FEW * len(files):
        return []
    return [f"only {len(beyond):,} of them, such as {beyond[0]}, {'hold' if len(beyond) > 1 else 'holds'} values above "
            f"{lower[-1]:g}, for which all others become darker: leave out what is broken"]  # fmt: skip


def _few_levels(files: Mapping[str, Extremes], white: float) -> list[str]:
    """A sentence where colours have 16 bits and use only some of them: Pillow reads the upper 8."""
    colours, levels = sum(file.colour for file in files.values()), (int(white) + 1) // 256
    if not colours or levels >= 256:
        return []
    return [f"{count_of(colours, 'image')} in colour: {levels} levels remain, since only the upper 8 of 16 bits are "
            "read: save 8 bits for each colour"]  # fmt: skip
