"""Which stored values become black and white, where a data set says so."""

from dataclasses import dataclass

Range = tuple[float, float]
"""Stored values that become black and white."""


@dataclass(frozen=True, kw_only=True)
class ValueRanges:
    """Of files that hold other values than 0..255, measured over the training data. None: they hold no such file, and
    one that comes later is measured by itself."""

    byte: Range | None = None
    """Grey of 8 bits."""
    integer: Range | None = None
    """16 or 32 bits, and colours of 16 bits."""
    real: Range | None = None
    """Floating point."""


PER_FILE = ValueRanges()
"""Where no data set says what is black and white."""
