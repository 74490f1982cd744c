"""What all metrics share: array types, None for what the data cannot define, and which metrics improve downwards.

None instead of NaN (an AUC with one class present, the mean of nothing), so that a value survives JSON.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Bools = NDArray[np.bool_]

LOWER_IS_BETTER = frozenset(
    {"loss", "log_loss", "brier", "ece", "classwise_ece", "hter", "false_positive_rate", "false_negative_rate"}
)
"""Every other metric improves upwards."""


def mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def mean_of_defined(values: list[float | None]) -> float | None:
    return mean(np.array([value for value in values if value is not None]))


def ratio(numerator: float | np.number[Any], denominator: float | np.number[Any]) -> float | None:
    return float(numerator) / float(denominator) if denominator else None


def check_probabilities(labels: Ints, probabilities: Floats, num_classes: int) -> None:
    """Raises ValueError unless probabilities are finite and of shape (N, `num_classes`) for N labels."""
    if probabilities.shape != (len(labels), num_classes):
        raise ValueError(f"probabilities must be ({len(labels)}, {num_classes}), found {probabilities.shape}")
    broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if broken:
        raise ValueError(f"{broken} of {len(labels)} rows of probabilities hold NaN or infinity")
