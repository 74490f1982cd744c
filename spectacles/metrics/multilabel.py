"""Metrics of images that have any number of labels: labels and decisions (N, K) of 0 and 1, probabilities (N, K)."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectacles.metrics.basics import Float64s, Floats, Ints, check_probabilities, mean, mean_of_defined, ratio
from spectacles.metrics.curves import average_precision, roc_auc
from spectacles.metrics.probability_scores import BINS, bin_of, expected_calibration_error


def multi_label_metrics(labels: Ints, probabilities: Floats, decided: Ints) -> dict[str, float | None]:
    """All scalar metrics by name, in the order they are reported; averages follow scikit-learn with `zero_division=0`.

    - `accuracy`: share of images whose labels are all correct (subset accuracy).
    - `label_accuracy`: share of correct decisions among all N * K (1 - Hamming loss).
    - `micro_*`: over all decisions together; `macro_*`: means over the labels that some images have.
    - `balanced_accuracy`, `roc_auc`, `mean_average_precision` (mAP): means over the labels that some images have and
      some lack.
    - `log_loss`, `brier` (squared distance): means over all N * K; `ece`, `classwise_ece`: see `calibration_metrics`.
    """
    check_probabilities(labels, probabilities, labels.shape[1])
    hits, support, claimed = (labels * decided).sum(axis=0), labels.sum(axis=0), decided.sum(axis=0)
    recall, precision = hits / np.maximum(support, 1), hits / np.maximum(claimed, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    occurs = support > 0
    true_negatives = ((1 - labels) * (1 - decided)).sum(axis=0)
    both = (support > 0) & (support < len(labels))
    specificity = true_negatives / np.maximum(len(labels) - support, 1)
    areas = [roc_auc(has == 1, scores) for has, scores in _columns(labels, probabilities)]
    precisions = [average_precision(has == 1, scores) for has, scores in _columns(labels, probabilities)]
    return {
        "accuracy": mean((labels == decided).all(axis=1)),
        "label_accuracy": mean(labels == decided),
        "balanced_accuracy": mean((recall + specificity)[both] / 2),
        "micro_precision": ratio(hits.sum(), claimed.sum()),
        "micro_recall": ratio(hits.sum(), support.sum()),
        "micro_f1": ratio(2 * hits.sum(), support.sum() + claimed.sum()),
        "macro_precision": mean(precision[occurs]),
        "macro_recall": mean(recall[occurs]),
        "macro_f1": mean(f1[occurs]),
        **calibration_metrics(labels, probabilities),
        "roc_auc": mean_of_defined(areas),
        "mean_average_precision": mean_of_defined(precisions),
    }


def calibration_metrics(labels: Ints, probabilities: Floats) -> dict[str, float | None]:
    """The metrics that no decision enters. `ece` is that of all N * K binary decisions; `classwise_ece` the mean over
    the labels of the gap between a label's probability and its share of the images, over bins of the former."""
    return {
        "log_loss": mean(log_losses(labels, probabilities)),
        "brier": mean(brier_scores(labels, probabilities)),
        "ece": expected_calibration_error(*as_binary(labels, probabilities)),
        "classwise_ece": mean(_calibration_gaps(labels, probabilities)),
    }


def as_binary(labels: Ints, probabilities: Floats) -> tuple[Ints, Float64s]:
    """Each label of each image as a separate image with two classes, no and yes: (N * K,) and (N * K, 2)."""
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


def _calibration_gaps(labels: Ints, probabilities: Floats, bins: int = BINS) -> Float64s:
    """(K,): of each label the gap between its probability and its share, weighted over bins; empty without images."""
    if not len(labels):
        return np.empty(0)
    gaps = [
        np.abs(np.bincount(bin_of(scores, bins), weights=scores - has, minlength=bins)).sum() / len(scores)
        for has, scores in _columns(labels, np.asarray(probabilities, dtype=np.float64))
    ]
    return np.array(gaps)


def per_label_metrics(labels: Ints, probabilities: Floats, decided: Ints) -> list[dict[str, Any]]:
    """One dict per label: `precision`, `recall`, `f1`, `average_precision`, `support` (images that have it), and
    `missed` and `added`, the images wrongly without and with it."""
    metrics = []
    for place, (has, scores) in enumerate(_columns(labels, probabilities)):
        given = decided[:, place]
        hits, support, claimed = int((has * given).sum()), int(has.sum()), int(given.sum())
        metrics.append(
            {
                "precision": ratio(hits, claimed) if support else None,
                "recall": ratio(hits, support),
                "f1": ratio(2 * hits, support + claimed) if support else None,
                "average_precision": average_precision(has == 1, scores),
                "support": support,
                "missed": support - hits,
                "added": claimed - hits,
            }
        )
    return metrics


def _columns(labels: Ints, probabilities: Floats) -> list[tuple[Any, Any]]:
    """(which images have it (N,), its probabilities (N,)) of each label."""
    return list(zip(np.asarray(labels).T, np.asarray(probabilities).T, strict=True))
