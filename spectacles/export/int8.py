"""The model in int8: a network that a format has quantised, with calibration and thresholds fitted to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.export.formats.base import Format
from spectacles.export.gate import Compared, batches
from spectacles.export.shipped import Shipped
from spectacles.models import engines, quantization
from spectacles.training import finalize

ENOUGH = 100
"""Validation photos needed at least: calibration and thresholds are fitted on them, and labels compared."""


@dataclass(frozen=True)
class Quantizing:
    """What int8 takes besides the model."""

    training: np.ndarray
    """Pixels, uint8 (N, S, S, C), on which ranges are measured."""
    compared: Compared
    trained: TrainConfig


def require(images: int) -> None:
    """Raises UserError where int8 cannot be checked on so many validation photos, or nncf is not installed."""
    quantization.require_nncf()
    if images < ENOUGH:
        raise UserError(
            f"--precision int8 is compared on {ENOUGH} validation photos or more, and there are {images}: use fp32 or "
            "fp16, or make splits with a larger --val_fraction."
        )


def in_int8(shipped: Shipped, file: Format, photos: Quantizing) -> Shipped:
    """What `file` writes for int8. Raises UserError."""
    compared = photos.compared
    assert file.quantize is not None
    with engines.explained("--precision int8", "--precision fp32"):
        network, run = file.quantize(shipped, photos.training)
        logits = np.concatenate([run(part) for part in batches(compared.pixels[: len(compared.labels)])])
    info = finalize.decide(photos.trained, shipped.info, logits, compared.labels, None).info
    return replace(shipped, info=info, quantized=network)
