"""95 % intervals of the metrics of `multilabel`, and their values in every resample."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from spectacles.metrics import bootstrap, multilabel
from spectacles.metrics.basics import Float64s
from spectacles.metrics.bootstrap import divide
from spectacles.metrics.decisions import Scored


def metric_intervals(scored: Scored, seed: int, resamples: int) -> dict[str, list[float]]:
    """Metric -> [low, high] for all of `multilabel.multi_label_metrics` but the calibration errors.

    Where all resamples are alike (no error was made, so none is in any of them) the accuracy gets its exact binomial
    interval over clusters, and other metrics are left out.
    """
    measured = multilabel.multi_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    drawn = resampled_metrics(scored, seed, resamples)
    intervals = {
        name: bootstrap.percentile_interval(values) for name, values in drawn.items() if measured[name] is not None
    }
    intervals["accuracy"] = bootstrap.exact_if_unanimous(intervals["accuracy"], scored.correct, scored.clusters)
    if len(np.unique(scored.clusters)) == 1:
        intervals["accuracy"] = [0.0, 1.0]
    return {name: interval for name, interval in intervals.items() if name == "accuracy" or interval[0] < interval[1]}


def resampled_metrics(scored: Scored, seed: int, resamples: int, areas: bool = True) -> dict[str, Float64s]:
    """Metric -> (R,) its value in each resample, NaN where it is undefined; as `classification_bootstrap`."""
    labels, decided = np.asarray(scored.labels), np.asarray(scored.predicted)
    classes = labels.shape[1]
    parts = [labels * decided, labels, decided, scored.correct[:, None], (labels == decided).mean(axis=1)[:, None]]
    parts += [
        values(labels, scored.probabilities)[:, None] for values in (multilabel.log_losses, multilabel.brier_scores)
    ]
    columns = sparse.csr_matrix(np.concatenate([*parts, np.ones((len(labels), 1))], axis=1, dtype=np.float64).T)
    sums = bootstrap.resampled_sums(columns, scored.clusters, seed, resamples)
    values = _from_sums(sums, classes)
    return values | _areas(scored, seed, resamples) if areas else values


def _from_sums(sums: Float64s, classes: int) -> dict[str, Float64s]:
    hits, support, claimed = (sums[start : start + classes] for start in (0, classes, 2 * classes))
    correct, label_correct, log_loss, brier, images = sums[3 * classes :]
    true_negatives = images - support - claimed + hits
    both, occurs = (support > 0) & (support < images), support > 0
    recall, precision = divide(hits, np.maximum(support, 1)), divide(hits, np.maximum(claimed, 1))
    specificity = divide(true_negatives, np.maximum(images - support, 1))
    return {
        "accuracy": divide(correct, images),
        "label_accuracy": divide(label_correct, images),
        "balanced_accuracy": bootstrap.mean_over((recall + specificity) / 2, both),
        "micro_precision": divide(hits.sum(axis=0), claimed.sum(axis=0)),
        "micro_recall": divide(hits.sum(axis=0), support.sum(axis=0)),
        "micro_f1": divide(2 * hits.sum(axis=0), (support + claimed).sum(axis=0)),
        "macro_precision": bootstrap.mean_over(precision, occurs),
        "macro_recall": bootstrap.mean_over(recall, occurs),
        "macro_f1": bootstrap.mean_over(2 * hits / np.maximum(support + claimed, 1), occurs),
        "log_loss": divide(log_loss, images),
        "brier": divide(brier, images),
    }


def _areas(scored: Scored, seed: int, resamples: int) -> dict[str, Float64s]:
    """Means over the labels that some images of a resample have and some lack."""
    each = [
        bootstrap.areas(has == 1, scores, scored.clusters, seed, bootstrap.area_resamples(scored, resamples))
        for has, scores in zip(scored.labels.T, scored.probabilities.T, strict=True)
        if has.any() and not has.all()
    ]
    if not each:
        return {}
    stacked = np.stack(each)  # (labels, 2, R)
    defined = ~np.isnan(stacked)
    means = divide(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))
    return {"roc_auc": means[0], "mean_average_precision": means[1]}
