"""What every format can do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectacles.export.shipped import Shipped

Run = Callable[[np.ndarray], np.ndarray]
"""pixels, uint8 (B, S, S, C), or a photo, uint8 (H, W, 3) -> probabilities (B, K), or (1, K), float32."""


@dataclass(frozen=True)
class Format:
    files: tuple[str, ...]
    """Suffixes of what it writes, the first of the file to open; '' for a folder."""
    write: Callable[[Shipped, str, Path], None]
    """(model, precision, path with the first suffix)."""
    load: Callable[[Path], Run] | None
    """By the format's own runtime; None where that does not exist for this machine."""
    precisions: tuple[str, ...] = ("fp32",)
    quantize: Callable[[Shipped, np.ndarray], tuple[Any, Run]] | None = None
    """For int8: (model, training photos' pixels) -> (`Shipped.quantized`, what computes its logits)."""
    takes_photos: bool = False
    """Whether the file holds the whole preprocessing, and takes a photo instead of pixels."""
    needs: tuple[str, ...] = ()
    """Packages of requirements-export.txt, by what is imported."""
    inspect: Callable[[Path, Shipped], str] | None = None
    """What is wrong with a file that cannot be loaded here; '' for nothing."""

    def paths(self, path: Path) -> list[Path]:
        """Every file below `path`, which `write` has written."""
        written = [path.with_suffix(suffix) for suffix in self.files]
        return [
            file
            for each in written
            for file in (sorted(each.rglob("*")) if each.is_dir() else [each])
            if file.is_file()
        ]
