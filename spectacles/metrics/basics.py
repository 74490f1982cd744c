"""What all metrics share: array types, None for what the data cannot define, and which metrics improve downwards.

None instead of NaN (an AUC with one class present, the mean of nothing), so that a value survives JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectacles.core.wording import count_of, noun_of

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Bools = NDArray[np.bool_]

NAMED = 5
"""Classes that a sentence names, at most."""
LOWER_IS_BETTER = frozenset(
    {"loss", "log_loss", "brier", "ece", "classwise_ece", "hter", "false_positive_rate", "false_negative_rate"}
)
"""Every other metric improves upwards."""


MEANS_OVER_CLASSES = frozenset(
    {"balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "roc_auc", "pr_auc", "mean_average_precision"}
)
"""Metrics that are means over classes, or labels, with images: `over_classes` says over how many."""


def over_classes(metric: str, scores: Mapping[str, Any]) -> str:
    """'over 3 of 5 classes' for a mean of a split's scores, as metrics.json holds them, to which not all classes
    contribute; else ''."""
    classes = scores.get("per_class", {})
    scored = sum(row["support"] > 0 for row in classes.values())
    if metric not in MEANS_OVER_CLASSES or scored == len(classes):
        return ""
    return f"over {scored:,} of {count_of(len(classes), noun_of('label_accuracy' in scores))}"


def absent_classes(scores: Mapping[str, Any]) -> str:
    """'no image of 2 of 5 classes ('cat', 'dog')' of a split's scores, as metrics.json holds them; '' where each class
    has images."""
    absent = [name for name, row in scores.get("per_class", {}).items() if not row["support"]]
    if not absent:
        return ""
    named = ", ".join(map(repr, absent[:NAMED])) + (", ..." if len(absent) > NAMED else "")
    noun = noun_of("label_accuracy" in scores)
    return f"no image of {len(absent):,} of {count_of(len(scores['per_class']), noun)} ({named})"


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
