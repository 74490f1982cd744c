"""95 % intervals of `label_metrics`: whole clusters are resampled, as in `intervals`."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from spectacles.metrics import bootstrap, multilabel
from spectacles.metrics.bootstrap import Scored, ratio
from spectacles.metrics.classification import Float64s


def of_metrics(scored: Scored, seed: int, resamples: int) -> dict[str, list[float]]:
    """Metric -> [low, high] for all scalars of `label_metrics.multi_label_metrics` but the ECE.

    Where resampling cannot tell anything (no error was made, so none is in any resample) the accuracy gets its exact
    binomial interval over clusters, and other metrics are left out.
    """
    measured = multilabel.multi_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    drawn = intervals(scored, seed, resamples)
    found = {name: bootstrap.percentiles(values) for name, values in drawn.items() if measured[name] is not None}
    accuracy = bootstrap.exact_if_unanimous(found["accuracy"], scored.right, scored.clusters)
    if len(np.unique(scored.clusters)) == 1:
        accuracy = [0.0, 1.0]
    told = {name: interval for name, interval in found.items() if interval[0] < interval[1]}
    return {"accuracy": accuracy} | {name: interval for name, interval in told.items() if name != "accuracy"}


def intervals(scored: Scored, seed: int, resamples: int, areas: bool = True) -> dict[str, Float64s]:
    """Metric -> (R,) its value in each resample, NaN where it is undefined; as `intervals.bootstrap`."""
    labels, decided = np.asarray(scored.labels), np.asarray(scored.predicted)
    classes = labels.shape[1]
    parts = [labels * decided, labels, decided, scored.right[:, None], (labels == decided).mean(axis=1)[:, None]]
    parts += [
        values(labels, scored.probabilities)[:, None] for values in (multilabel.log_losses, multilabel.brier_scores)
    ]
    columns = sparse.csr_matrix(np.concatenate([*parts, np.ones((len(labels), 1))], axis=1, dtype=np.float64).T)
    sums = bootstrap.resampled_sums(columns, scored.clusters, seed, resamples)
    values = _from_sums(sums, classes)
    return values | _areas(scored, seed, resamples) if areas else values


def _from_sums(sums: Float64s, classes: int) -> dict[str, Float64s]:
    hits, support, claimed = (sums[start : start + classes] for start in (0, classes, 2 * classes))
    right, label_right, log_loss, brier, images = sums[3 * classes :]
    rejected = images - support - claimed + hits
    both, occurs = (support > 0) & (support < images), support + claimed > 0
    recall, precision = ratio(hits, np.maximum(support, 1)), ratio(hits, np.maximum(claimed, 1))
    specificity = ratio(rejected, np.maximum(images - support, 1))
    return {
        "accuracy": ratio(right, images),
        "label_accuracy": ratio(label_right, images),
        "balanced_accuracy": bootstrap.mean_of((recall + specificity) / 2, both),
        "micro_precision": ratio(hits.sum(axis=0), claimed.sum(axis=0)),
        "micro_recall": ratio(hits.sum(axis=0), support.sum(axis=0)),
        "micro_f1": ratio(2 * hits.sum(axis=0), (support + claimed).sum(axis=0)),
        "macro_precision": bootstrap.mean_of(precision, occurs),
        "macro_recall": bootstrap.mean_of(recall, occurs),
        "macro_f1": bootstrap.mean_of(2 * hits / np.maximum(support + claimed, 1), occurs),
        "log_loss": ratio(log_loss, images),
        "brier": ratio(brier, images),
    }


def _areas(scored: Scored, seed: int, resamples: int) -> dict[str, Float64s]:
    """Means over the labels that a resample can tell."""
    each = [
        bootstrap.areas(has == 1, own, scored.clusters, seed, bootstrap.area_resamples(scored, resamples))
        for has, own in zip(scored.labels.T, scored.probabilities.T, strict=True)
        if has.any() and not has.all()
    ]
    if not each:
        return {}
    stacked = np.stack(each)  # (labels, 2, R)
    defined = ~np.isnan(stacked)
    means = ratio(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))
    return {"roc_auc": means[0], "mean_average_precision": means[1]}
