"""Every number the project reports about predictions, in plain numpy.

Labels and predictions are class indices `(N,)`; probabilities are floats `(N, K)` whose rows sum to one. A value the
data cannot define (an AUC with one class present, the mean of nothing) is None, never NaN, so that it survives JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Every other metric improves upwards.
LOWER_IS_BETTER = frozenset(
    {"loss", "log_loss", "brier", "ece", "classwise_ece", "hter", "false_positive_rate", "false_negative_rate"}
)


def decide(probabilities: Floats, threshold: float | None) -> NDArray[np.int64]:
    """The project's one decision rule: `(N, K)` probabilities to `(N,)` class indices.

    With two classes and a threshold, class 1 if and only if its probability is at least the threshold; otherwise the
    most probable class, ties to the lowest index. A threshold is ignored unless there are exactly two classes.
    """
    # Compared as float64, or the same probability could fall on either side depending on the dtype it arrived in.
    probabilities = np.asarray(probabilities, dtype=np.float64)
    predicted: NDArray[np.int64] = probabilities.argmax(axis=1)
    if threshold is not None and probabilities.shape[1] == 2:
        predicted = (probabilities[:, 1] >= threshold).astype(np.int64)
    return predicted


def decide_labels(probabilities: Floats, thresholds: Sequence[float] = ()) -> NDArray[np.int64]:
    """The decision rule where an image has any number of labels: `(N, K)` probabilities to `(N, K)` of 0 and 1, each
    label from its threshold on, 0.5 without one."""
    at_least = np.asarray(thresholds or 0.5, dtype=np.float64)
    return (np.asarray(probabilities, dtype=np.float64) >= at_least).astype(np.int64)


def confusion_matrix(labels: Ints, predicted: Ints, num_classes: int) -> NDArray[np.int64]:
    """Counts `(K, K)`: rows are the true class, columns the predicted one."""
    labels, predicted = _checked(labels, predicted, num_classes)
    pairs = labels * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def class_counts(labels: Ints, predicted: Ints, num_classes: int) -> tuple[NDArray[np.int64], ...]:
    """`(K,)` each: how often a class was recognised, how often it was there and how often it was predicted. These are
    diagonal and sums of the confusion matrix without the matrix, which of 10,000 classes takes 800 MB."""
    labels, predicted = _checked(labels, predicted, num_classes)
    chosen = labels[labels == predicted], labels, predicted
    return tuple(np.bincount(each, minlength=num_classes).astype(np.int64) for each in chosen)


def _checked(labels: Ints, predicted: Ints, num_classes: int) -> list[NDArray[np.int64]]:
    both = [np.asarray(indices, dtype=np.int64) for indices in (labels, predicted)]
    for name, indices in zip(("labels", "predictions"), both, strict=True):
        if indices.size and not 0 <= indices.min() <= indices.max() < num_classes:
            raise ValueError(f"{name} must lie in 0..{num_classes - 1}, found {indices.min()}..{indices.max()}")
    return both


def classification_metrics(
    labels: Ints, probabilities: Floats, predicted: Ints, num_classes: int
) -> dict[str, float | None]:
    """All scalar metrics by name, in the order they are reported.

    `predicted` comes from `decide`, so a threshold moves accuracy, precision, recall, F1 and the error rates; the ECE,
    the AUCs and the top-k accuracies look at the probabilities alone. Macro averages follow scikit-learn with
    `zero_division=0`: over the classes that occur in the labels or the predictions (balanced accuracy: in the labels).

    - `log_loss`: natural logarithm, probabilities clipped by the machine epsilon of their own dtype.
    - `brier`: mean squared distance to the one-hot label, summed over the classes, 0..2 (Brier 1950).
    - `ece`, `classwise_ece`: see `expected_calibration_error` and `classwise_calibration_error`.
    - `roc_auc`, `pr_auc` (average precision): class 1 of two; with more classes the mean of one-vs-rest over the
      classes that have positives and negatives.
    - two classes, class 1 positive: `false_positive_rate`, `false_negative_rate` and their mean `hter`.
    - `top_3_accuracy` from four classes on, `top_5_accuracy` from six.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities)
    check_probabilities(labels, probabilities, num_classes)
    hits, support, claimed = class_counts(labels, predicted, num_classes)
    recall = hits / np.maximum(support, 1)
    precision = hits / np.maximum(claimed, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    occurs = support + claimed > 0
    metrics = {
        "accuracy": ratio(hits.sum(), support.sum()),
        "balanced_accuracy": mean(recall[support > 0]),
        "macro_precision": mean(precision[occurs]),
        "macro_recall": mean(recall[occurs]),
        "macro_f1": mean(f1[occurs]),
        **calibration_metrics(labels, probabilities),
        "roc_auc": _one_vs_rest(roc_auc, labels, probabilities),
        "pr_auc": _one_vs_rest(average_precision, labels, probabilities),
    }
    if num_classes == 2:
        metrics |= _binary_error_rates(hits, support)
    if num_classes >= 4:
        metrics["top_3_accuracy"] = top_k_accuracy(labels, probabilities, 3)
    if num_classes >= 6:
        metrics["top_5_accuracy"] = top_k_accuracy(labels, probabilities, 5)
    return metrics


def calibration_metrics(labels: Ints, probabilities: Floats) -> dict[str, float | None]:
    """What the probabilities `(N, K)` are worth as such: `log_loss`, `brier`, `ece` and `classwise_ece`."""
    return {
        "log_loss": mean(log_losses(labels, probabilities)),
        "brier": mean(brier_scores(labels, probabilities)),
        "ece": expected_calibration_error(labels, probabilities),
        "classwise_ece": classwise_calibration_error(labels, probabilities),
    }


def per_class_metrics(labels: Ints, predicted: Ints, num_classes: int) -> list[dict[str, float | None]]:
    """One dict per class, in class order: `precision`, `recall`, `f1` and `support` (an int, the true count).

    There is no accuracy per class because recall is it: the share of the class's images that were recognised. Unlike
    in the macro averages, an undefined value is None: recall of a class without images, precision of one never
    predicted, F1 of one that is neither.
    """
    return [
        {
            "precision": ratio(hits, claimed),
            "recall": ratio(hits, support),
            "f1": ratio(2 * hits, support + claimed),
            "support": int(support),
        }
        for hits, support, claimed in zip(*class_counts(labels, predicted, num_classes), strict=True)
    ]


def roc_auc(positive: Bools, scores: Floats) -> float | None:
    """Chance that a random positive outscores a random negative, ties counting half (Mann-Whitney U / (P * N)).

    None unless both positives and negatives are present.
    """
    true_positives, false_positives, _ = _cumulative_counts(positive, scores)
    if not true_positives[-1] or not false_positives[-1]:
        return None
    # The trapezoid under the ROC steps is the Mann-Whitney statistic; in integers it is exact.
    doubled = np.diff(false_positives) @ (true_positives[1:] + true_positives[:-1])
    return float(doubled / (2 * true_positives[-1] * false_positives[-1]))


def average_precision(positive: Bools, scores: Floats) -> float | None:
    """Mean of the precision over the steps in recall, without interpolation (as scikit-learn).

    None unless both positives and negatives are present, although one without negatives would be a hollow 1.
    """
    true_positives, false_positives, _ = _cumulative_counts(positive, scores)
    if not true_positives[-1] or not false_positives[-1]:
        return None
    precision = true_positives[1:] / (true_positives[1:] + false_positives[1:])
    return float(np.diff(true_positives) @ precision / true_positives[-1])


def roc_curve(positive: Bools, scores: Floats) -> tuple[Float64s, Float64s, Float64s]:
    """False-positive rates, true-positive rates and thresholds, each `(T + 1,)` with T distinct scores.

    Thresholds fall and the first is +inf (nothing called positive, the point (0, 0)); a sample is called positive when
    its score is at least the threshold. Raises ValueError where `roc_auc` is None.
    """
    true_positives, false_positives, thresholds = _cumulative_counts(positive, scores)
    if not true_positives[-1] or not false_positives[-1]:
        raise ValueError("a ROC curve needs both positive and negative samples")
    return false_positives / false_positives[-1], true_positives / true_positives[-1], thresholds


def precision_recall_curve(positive: Bools, scores: Floats) -> tuple[Float64s, Float64s, Float64s]:
    """Precision `(T + 1,)`, recall `(T + 1,)` and rising thresholds `(T,)`, T distinct scores, as scikit-learn.

    The closing point (precision 1, recall 0) has no threshold. Raises ValueError without a positive sample.
    """
    true_positives, false_positives, thresholds = _cumulative_counts(positive, scores)
    if not true_positives[-1]:
        raise ValueError("a precision-recall curve needs positive samples")
    precision = true_positives[1:] / (true_positives[1:] + false_positives[1:])
    recall = true_positives[1:] / true_positives[-1]
    return np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0), thresholds[:0:-1]


def top_k_accuracy(labels: Ints, probabilities: Floats, k: int) -> float | None:
    """Share of samples whose class is among the k most probable, ties to the lowest index as in `decide`."""
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities)
    true = probabilities[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > true) | ((probabilities == true) & lower_index)
    return mean(ahead.sum(axis=1) < k)


def expected_calibration_error(labels: Ints, probabilities: Floats, bins: int = 15) -> float | None:
    """Mean gap between top-1 confidence and accuracy over equal-width bins, weighted by bin size (Guo et al. 2017)."""
    counts, confidence, accuracy = reliability_bins(labels, probabilities, bins)
    return ratio(float(counts @ np.abs(confidence - accuracy)), counts.sum())


def classwise_calibration_error(labels: Ints, probabilities: Floats, bins: int = 15) -> float | None:
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


def confidence_gaps(labels: Ints, probabilities: Floats, bins: int = 15) -> tuple[NDArray[np.intp], Float64s]:
    """(N,) each: the bin of the top-1 confidence, and that confidence minus 1 where the top class is right, else 0."""
    confidence = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    return bin_of(confidence, bins), confidence - (decide(probabilities, None) == labels)


def reliability_bins(
    labels: Ints, probabilities: Floats, bins: int = 15
) -> tuple[NDArray[np.int64], Float64s, Float64s]:
    """Counts, mean top-1 confidence and accuracy of each confidence bin, each `(bins,)`.

    Bin i covers (i / bins, (i + 1) / bins]; confidence and accuracy of an empty bin are 0, its count says so.
    """
    confidence = np.asarray(probabilities, dtype=np.float64).max(axis=1)
    which, gaps = confidence_gaps(labels, probabilities, bins)
    counts = np.bincount(which, minlength=bins).astype(np.int64)
    sizes = np.maximum(counts, 1)
    mean_confidence = np.bincount(which, weights=confidence, minlength=bins) / sizes
    accuracy = np.bincount(which, weights=(confidence - gaps).round(), minlength=bins) / sizes
    return counts, mean_confidence, accuracy


def bootstrap_interval(
    values: NDArray[Any],
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    groups: Ints | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-sample values `(N,)`, such as 0/1 correctness.

    With `groups` `(N,)` (the person a photo shows) whole groups are drawn, as photos of one person are not independent
    evidence (cluster bootstrap, Davison & Hinkley 1997, 3.8). Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, found {confidence}")
    sums, sizes = _resampling_units(np.asarray(values, dtype=np.float64), groups)
    rng = np.random.default_rng(seed)
    rows = max(1, 2**20 // len(sums))  # resamples drawn at once: bounds a chunk to about 24 MB
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(sums), size=(min(rows, resamples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def check_probabilities(labels: Ints, probabilities: Floats, num_classes: int) -> None:
    if probabilities.shape != (len(labels), num_classes):
        raise ValueError(f"probabilities must be ({len(labels)}, {num_classes}), found {probabilities.shape}")
    broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if broken:
        raise ValueError(f"{broken} of {len(labels)} rows of probabilities hold NaN or infinity")


def mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def ratio(numerator: float | np.number[Any], denominator: float | np.number[Any]) -> float | None:
    return float(numerator) / float(denominator) if denominator else None


def bin_of(values: Float64s, bins: int) -> NDArray[np.intp]:
    """Bin i covers (i / bins, (i + 1) / bins]; 0 lies in the first."""
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], values, side="left")


def _one_vs_rest(score: Callable[[Bools, Floats], float | None], labels: Ints, probabilities: Floats) -> float | None:
    num_classes = probabilities.shape[1]
    if num_classes == 2:
        return score(labels == 1, probabilities[:, 1])
    values = [score(labels == index, probabilities[:, index]) for index in range(num_classes)]
    return mean(np.array([value for value in values if value is not None]))


def _binary_error_rates(hits: NDArray[np.int64], support: NDArray[np.int64]) -> dict[str, float | None]:
    rates = ratio(support[0] - hits[0], support[0]), ratio(support[1] - hits[1], support[1])
    defined = [rate for rate in rates if rate is not None]
    return {
        "hter": sum(defined) / 2 if len(defined) == 2 else None,
        "false_positive_rate": rates[0],
        "false_negative_rate": rates[1],
    }


def _cumulative_counts(positive: Bools, scores: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64s]:
    """True and false positives `(T + 1,)` at each of the T distinct scores, falling, after a first point of nothing."""
    positive, scores = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(scores) != 0, True)[: len(scores)])
    true_positives = np.cumsum(positive[order], dtype=np.int64)[last_of_tie]
    false_positives = last_of_tie + 1 - true_positives
    return (
        np.insert(true_positives, 0, 0),
        np.insert(false_positives, 0, 0),
        np.insert(scores[last_of_tie], 0, np.inf),
    )


def _resampling_units(values: Float64s, groups: Ints | None) -> tuple[Float64s, Float64s]:
    """What is drawn, samples or whole groups: the sum of each one's values, and how many they are."""
    if groups is None:
        return values, np.ones(len(values))
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(which, weights=values).astype(np.float64), np.bincount(which).astype(np.float64)
