"""How far probabilities are from the truth: log loss, Brier score and calibration errors.

Labels are class indices `(N,)`, probabilities floats `(N, K)` whose rows sum to one. Log loss and Brier score equal
scikit-learn's, which has no value for each image: intervals need one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spectacles.metrics.basics import Float64s, Floats, Ints, mean, ratio
from spectacles.metrics.decisions import decide

BINS = 15
"""Bins of confidence in which the calibration error compares it with accuracy."""


def calibration_metrics(labels: Ints, probabilities: Floats) -> dict[str, float | None]:
    """`log_loss`, `brier`, `ece` and `classwise_ece`: the metrics that no decision enters."""
    return {
        "log_loss": mean(log_losses(labels, probabilities)),
        "brier": mean(brier_scores(labels, probabilities)),
        "ece": expected_calibration_error(labels, probabilities),
        "classwise_ece": classwise_calibration_error(labels, probabilities),
    }


def expected_calibration_error(labels: Ints, probabilities: Floats, bins: int = BINS) -> float | None:
    """Mean gap between top-1 confidence and accuracy over equal-width bins, weighted by bin size (Guo et al. 2017)."""
    counts, confidence, accuracy = reliability_bins(labels, probabilities, bins)
    return ratio(float(counts @ np.abs(confidence - accuracy)), counts.sum())


def classwise_calibration_error(labels: Ints, probabilities: Floats, bins: int = BINS) -> float | None:
    """Mean over the classes of what `expected_calibration_error` is for the top one: the gap between a class's
    probability and its share of the images, over bins of that probability (Nixon et al. 2019, Kull et al. 2019)."""
    count, classes = probabilities.shape
    if not count or not classes:
        return None
    gaps = np.asarray(probabilities, dtype=np.float64).copy()
    which = bin_of(gaps, bins) + bins * np.arange(classes)
    gaps[np.arange(count), labels] -= 1.0
    return float(np.abs(np.bincount(which.ravel(), weights=gaps.ravel())).sum() / (count * classes))


def log_losses(labels: Ints, probabilities: Floats) -> Float64s:
    """(N,) of each image: minus the natural logarithm of its class's probability."""
    epsilon = np.finfo(probabilities.dtype).eps
    true = probabilities[np.arange(len(labels)), labels]
    losses: Float64s = -np.log(np.clip(true, epsilon, 1 - epsilon).astype(np.float64))
    return losses


def brier_scores(labels: Ints, probabilities: Floats) -> Float64s:
    """(N,) of each image: squared distance to the one-hot label, 0..2."""
    differences = probabilities.astype(np.float64)  # a copy
    differences[np.arange(len(labels)), labels] -= 1.0
    scores: Float64s = (differences**2).sum(axis=1)
    return scores


def confidence_gaps(labels: Ints, probabilities: Floats, bins: int = BINS) -> tuple[NDArray[np.intp], Float64s]:
    """(N,) each: the bin of the top-1 confidence, and that confidence minus 1 where the top class is right, else 0."""
    confidence = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    return bin_of(confidence, bins), confidence - (decide(probabilities, None) == labels)


def reliability_bins(
    labels: Ints, probabilities: Floats, bins: int = BINS
) -> tuple[NDArray[np.int64], Float64s, Float64s]:
    """Counts, mean top-1 confidence and accuracy of each confidence bin, each `(bins,)`.

    Bin i covers (i / bins, (i + 1) / bins]; confidence and accuracy of an empty bin are 0.
    """
    confidence = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    which, gaps = confidence_gaps(labels, probabilities, bins)
    counts = np.bincount(which, minlength=bins).astype(np.int64)
    sizes = np.maximum(counts, 1)
    mean_confidence = np.bincount(which, weights=confidence, minlength=bins) / sizes
    accuracy = np.bincount(which, weights=(confidence - gaps).round(), minlength=bins) / sizes
    return counts, mean_confidence, accuracy


def bin_of(values: Float64s, bins: int) -> NDArray[np.intp]:
    """Bin i covers (i / bins, (i + 1) / bins]; 0 lies in the first."""
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], values, side="left")
