"""Numbers about images that have any number of labels: labels and decisions (N, K) of 0 and 1, probabilities (N, K).

As in `metrics`, what the data cannot define is None.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spectacles.metrics import classification
from spectacles.metrics.classification import Float64s, Floats, Ints


def multi_label_metrics(labels: Ints, probabilities: Floats, decided: Ints) -> dict[str, float | None]:
    """All scalar metrics by name, in the order they are reported; averages follow scikit-learn with `zero_division=0`.

    - `accuracy`: share of images whose labels are all right (subset accuracy).
    - `label_accuracy`: share of right decisions among all N * K (1 - Hamming loss).
    - `micro_*`: of all decisions together; `macro_*`: means over the labels that occur in `labels` or `decided`.
    - `balanced_accuracy`, `roc_auc`, `mean_average_precision` (mAP): means over the labels that some images have and
      some lack.
    - `log_loss`, `brier` (squared distance): means over all N * K; `ece`, `classwise_ece`: see `calibration_metrics`.
    """
    classification.check_probabilities(labels, probabilities, labels.shape[1])
    hits, support, claimed = (labels * decided).sum(axis=0), labels.sum(axis=0), decided.sum(axis=0)
    recall, precision = hits / np.maximum(support, 1), hits / np.maximum(claimed, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    occurs = support + claimed > 0
    rejected = ((1 - labels) * (1 - decided)).sum(axis=0)
    both = (support > 0) & (support < len(labels))
    specificity = rejected / np.maximum(len(labels) - support, 1)
    areas = [classification.roc_auc(has == 1, own) for has, own in _each(labels, probabilities)]
    precisions = [classification.average_precision(has == 1, own) for has, own in _each(labels, probabilities)]
    return {
        "accuracy": classification.mean((labels == decided).all(axis=1)),
        "label_accuracy": classification.mean(labels == decided),
        "balanced_accuracy": classification.mean((recall + specificity)[both] / 2),
        "micro_precision": classification.ratio(hits.sum(), claimed.sum()),
        "micro_recall": classification.ratio(hits.sum(), support.sum()),
        "micro_f1": classification.ratio(2 * hits.sum(), support.sum() + claimed.sum()),
        "macro_precision": classification.mean(precision[occurs]),
        "macro_recall": classification.mean(recall[occurs]),
        "macro_f1": classification.mean(f1[occurs]),
        **calibration_metrics(labels, probabilities),
        "roc_auc": classification.mean(np.array([area for area in areas if area is not None])),
        "mean_average_precision": classification.mean(np.array([area for area in precisions if area is not None])),
    }


def calibration_metrics(labels: Ints, probabilities: Floats) -> dict[str, float | None]:
    """What the probabilities are worth as such. `ece` is that of all N * K answers, yes or no; `classwise_ece` the mean
    over the labels of the gap between a label's probability and its share of the images, over bins of the former."""
    return {
        "log_loss": classification.mean(log_losses(labels, probabilities)),
        "brier": classification.mean(brier_scores(labels, probabilities)),
        "ece": classification.expected_calibration_error(*as_answers(labels, probabilities)),
        "classwise_ece": classification.mean(_calibration_gaps(labels, probabilities)),
    }


def as_answers(labels: Ints, probabilities: Floats) -> tuple[Ints, Float64s]:
    """Each label of each image as an image of its own with two classes, no and yes: (N * K,) and (N * K, 2)."""
    yes = np.asarray(probabilities, dtype=np.float64).ravel()
    return np.asarray(labels).ravel(), np.stack([1 - yes, yes], axis=1)


def log_losses(labels: Ints, probabilities: Floats) -> Float64s:
    """(N,) of each image: the mean over its labels, in natural logarithms."""
    epsilon = np.finfo(probabilities.dtype).eps
    given = np.where(labels == 1, probabilities, 1 - probabilities)
    losses: Float64s = -np.log(np.clip(given, epsilon, 1 - epsilon).astype(np.float64)).mean(axis=1)
    return losses


def brier_scores(labels: Ints, probabilities: Floats) -> Float64s:
    """(N,) of each image: the mean over its labels of the squared distance, 0..1."""
    scores: Float64s = ((probabilities.astype(np.float64) - labels) ** 2).mean(axis=1)
    return scores


def _calibration_gaps(labels: Ints, probabilities: Floats, bins: int = 15) -> Float64s:
    """(K,): of each label the gap between its probability and its share, weighted over bins; empty without images."""
    if not len(labels):
        return np.empty(0)
    gaps = [
        np.abs(np.bincount(classification.bin_of(own, bins), weights=own - has, minlength=bins)).sum() / len(own)
        for has, own in _each(labels, np.asarray(probabilities, dtype=np.float64))
    ]
    return np.array(gaps)


def per_label_metrics(labels: Ints, probabilities: Floats, decided: Ints) -> list[dict[str, Any]]:
    """One dict a label: `precision`, `recall`, `f1`, `average_precision`, `support` (images that have it), and `missed`
    and `added`, the images wrongly without and with it."""
    found = []
    for place, (has, own) in enumerate(_each(labels, probabilities)):
        said = decided[:, place]
        hits, support, claimed = int((has * said).sum()), int(has.sum()), int(said.sum())
        found.append(
            {
                "precision": classification.ratio(hits, claimed),
                "recall": classification.ratio(hits, support),
                "f1": classification.ratio(2 * hits, support + claimed),
                "average_precision": classification.average_precision(has == 1, own),
                "support": support,
                "missed": support - hits,
                "added": claimed - hits,
            }
        )
    return found


def _each(labels: Ints, probabilities: Floats) -> list[tuple[Any, Any]]:
    return list(zip(np.asarray(labels).T, np.asarray(probabilities).T, strict=True))


def all_right(decided: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: which decisions are wholly right, of classes (N,) or of labels (N, K)."""
    right: Any = np.asarray(decided == labels)
    return np.asarray(right if right.ndim == 1 else right.all(axis=1))
