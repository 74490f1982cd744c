"""ROC and precision-recall curves of positives against the others: scikit-learn's, None where they are undefined."""

from __future__ import annotations

import numpy as np
from sklearn import metrics

from spectacles.metrics.basics import Bools, Float64s, Floats


def roc_auc(positive: Bools, scores: Floats) -> float | None:
    """Area under the ROC curve; None unless both positives and negatives are present."""
    return float(metrics.auc(*roc_curve(positive, scores)[:2])) if _both(positive) else None


def average_precision(positive: Bools, scores: Floats) -> float | None:
    """Mean precision over the steps in recall; None unless both positives and negatives are present, although without
    negatives it would be an empty 1."""
    if not _both(positive):
        return None
    return float(metrics.average_precision_score(positive, np.asarray(scores, dtype=np.float64)))


def roc_curve(positive: Bools, scores: Floats) -> tuple[Float64s, Float64s, Float64s]:
    """False-positive rates, true-positive rates and thresholds, each `(T + 1,)` with T distinct scores.

    Thresholds fall from +inf, where nothing is called positive. Raises ValueError where `roc_auc` is None.
    """
    if not _both(positive):
        raise ValueError("a ROC curve needs both positive and negative samples")
    # As float64, or the thresholds would have the precision of the scores.
    false_positive_rates, true_positive_rates, thresholds = metrics.roc_curve(
        positive, np.asarray(scores, dtype=np.float64), drop_intermediate=False
    )
    return false_positive_rates, true_positive_rates, thresholds


def _both(positive: Bools) -> bool:
    return bool(positive.any() and not positive.all())
