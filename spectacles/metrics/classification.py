"""Metrics of images that have one class each.

Labels and predictions are class indices `(N,)`; probabilities are floats `(N, K)` whose rows sum to one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spectacles.metrics.basics import Bools, Floats, Ints, check_probabilities, mean, mean_of_defined, ratio
from spectacles.metrics.curves import average_precision, roc_auc
from spectacles.metrics.probability_scores import calibration_metrics


def classification_metrics(
    labels: Ints, probabilities: Floats, predicted: Ints, num_classes: int
) -> dict[str, float | None]:
    """All scalar metrics by name, in the order they are reported.

    `predicted` comes from `decide`, so a threshold moves accuracy, precision, recall, F1 and the error rates; the ECE,
    the AUCs and the top-k accuracies look at the probabilities alone. Metrics of a class without images are undefined:
    macro averages and balanced accuracy are over the classes that have images (as scikit-learn's with `labels` of these
    and `zero_division=0`: the precision of a class that is never predicted is 0).

    - `log_loss`: natural logarithm, probabilities clipped by the machine epsilon of their own dtype.
    - `brier`: mean squared distance to the one-hot label, summed over the classes, 0..2 (Brier 1950).
    - `ece`, `classwise_ece`: see `expected_calibration_error` and `classwise_calibration_error`.
    - `roc_auc`, `pr_auc` (average precision): class 1 of two; with more classes the mean of one-vs-rest over the
      classes that have positives and negatives.
    - two classes, class 1 positive: `precision` and `recall` of class 1, `false_positive_rate`, `false_negative_rate`
      and their mean `hter`.
    - `top_3_accuracy` from four classes on, `top_5_accuracy` from six.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities)
    check_probabilities(labels, probabilities, num_classes)
    hits, support, claimed = class_counts(labels, predicted, num_classes)
    recall = hits / np.maximum(support, 1)
    precision = hits / np.maximum(claimed, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    occurs = support > 0
    values = {
        "accuracy": ratio(hits.sum(), support.sum()),
        "balanced_accuracy": mean(recall[occurs]),
        "macro_precision": mean(precision[occurs]),
        "macro_recall": mean(recall[occurs]),
        "macro_f1": mean(f1[occurs]),
        **calibration_metrics(labels, probabilities),
        "roc_auc": _one_vs_rest(roc_auc, labels, probabilities),
        "pr_auc": _one_vs_rest(average_precision, labels, probabilities),
    }
    if num_classes == 2:
        values |= {"precision": ratio(hits[1], claimed[1]) if occurs[1] else None, "recall": ratio(hits[1], support[1])}
        values |= _binary_error_rates(hits, support)
    if num_classes >= 4:
        values["top_3_accuracy"] = top_k_accuracy(labels, probabilities, 3)
    if num_classes >= 6:
        values["top_5_accuracy"] = top_k_accuracy(labels, probabilities, 5)
    return values


def per_class_metrics(labels: Ints, predicted: Ints, num_classes: int) -> list[dict[str, float | None]]:
    """One dict per class, in class order: `precision`, `recall`, `f1` and `support` (an int, the true count).

    There is no accuracy per class because recall is it: the share of the class's images that were recognised. Unlike
    in the macro averages, an undefined value is None: all of a class without images, precision of one never predicted.
    """
    return [
        {
            "precision": ratio(hits, claimed) if support else None,
            "recall": ratio(hits, support),
            "f1": ratio(2 * hits, support + claimed) if support else None,
            "support": int(support),
        }
        for hits, support, claimed in zip(*class_counts(labels, predicted, num_classes), strict=True)
    ]


def confusion_matrix(labels: Ints, predicted: Ints, num_classes: int) -> NDArray[np.int64]:
    """Counts `(K, K)`: rows are the true class, columns the predicted one."""
    labels, predicted = _checked(labels, predicted, num_classes)
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)


def class_counts(labels: Ints, predicted: Ints, num_classes: int) -> tuple[NDArray[np.int64], ...]:
    """`(K,)` each: true positives, images and predictions of every class. These are the diagonal and the sums of the
    confusion matrix without the matrix itself, which takes 800 MB for 10,000 classes."""
    labels, predicted = _checked(labels, predicted, num_classes)
    counted = labels[labels == predicted], labels, predicted
    return tuple(np.bincount(each, minlength=num_classes).astype(np.int64) for each in counted)


def _checked(labels: Ints, predicted: Ints, num_classes: int) -> list[NDArray[np.int64]]:
    both = [np.asarray(indices, dtype=np.int64) for indices in (labels, predicted)]
    for name, indices in zip(("labels", "predictions"), both, strict=True):
        if indices.size and not 0 <= indices.min() <= indices.max() < num_classes:
            raise ValueError(f"{name} must lie in 0..{num_classes - 1}, found {indices.min()}..{indices.max()}")
    return both


def top_k_accuracy(labels: Ints, probabilities: Floats, k: int) -> float | None:
    """Share of samples whose class is among the k most probable, ties to the lowest index as in `decide`."""
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities)
    true = probabilities[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > true) | ((probabilities == true) & lower_index)
    return mean(ahead.sum(axis=1) < k)


def _one_vs_rest(score: Callable[[Bools, Floats], float | None], labels: Ints, probabilities: Floats) -> float | None:
    num_classes = probabilities.shape[1]
    if num_classes == 2:
        return score(labels == 1, probabilities[:, 1])
    values = [score(labels == index, probabilities[:, index]) for index in range(num_classes)]
    return mean_of_defined(values)


def _binary_error_rates(hits: NDArray[np.int64], support: NDArray[np.int64]) -> dict[str, float | None]:
    false_positive, false_negative = (ratio(*counts) for counts in zip(support - hits, support, strict=True))
    defined = [rate for rate in (false_positive, false_negative) if rate is not None]
    return {
        "hter": sum(defined) / 2 if len(defined) == 2 else None,
        "false_positive_rate": false_positive,
        "false_negative_rate": false_negative,
    }
