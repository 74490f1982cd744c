"""95 % intervals: whole clusters are resampled, the same resamples for every number, as weights instead of copies.

Near duplicates and photos of one person are not independent evidence, so clusters are drawn, not images (cluster
bootstrap, Davison & Hinkley 1997, 3.8); an interval holds the middle 95 % of what the resamples give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from spectacles.metrics import classification
from spectacles.metrics.classification import Bools, Float64s, Floats, Ints
from spectacles.metrics.multilabel import all_right

TAIL = 0.025
BLOCK = 2**22
"""Weights held at once, of clusters times resamples: 32 MB."""
BINS = 15
MOST_ADDITIONS, FEWEST = 5_000_000_000, 200
"""An area under a curve costs images x classes x resamples additions: beyond this many (some seconds) it gets fewer
resamples than the other metrics, but not fewer than 200."""


@dataclass(frozen=True)
class Scored:
    """Labelled images and what a model says of them."""

    labels: Ints
    """(N,) class indices, or (N, K) of 0 and 1 where an image has any number of labels."""
    probabilities: Floats
    """(N, K)."""
    predicted: Ints
    """As `labels`; what `metrics.decide` or `metrics.decide_labels` gives."""
    clusters: Ints
    """(N,) any numbers: images with the same one are drawn together."""

    @property
    def num_classes(self) -> int:
        return int(self.probabilities.shape[1])

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def right(self) -> Bools:
        """(N,): where the decision is wholly right."""
        return all_right(self.predicted, self.labels)


def of_metrics(scored: Scored, seed: int, resamples: int) -> dict[str, list[float]]:
    """Metric -> [low, high] for all scalars of `metrics.classification_metrics` but top-k accuracies, class-wise ECE.

    Resamples in which a metric is undefined do not count. Where resampling cannot tell anything (no error was made, so
    none is in any resample) a rate gets its exact binomial interval over clusters, HTER and the balanced accuracy of
    two classes follow from those of their two rates, and other metrics are left out. For the ECE see
    `of_calibration_error`.
    """
    drawn = intervals(scored, seed, resamples)
    measured = classification.classification_metrics(
        scored.labels, scored.probabilities, scored.predicted, scored.num_classes
    )
    found = {name: percentiles(values) for name, values in drawn.items() if measured[name] is not None}
    if (ece := measured["ece"]) is not None:
        by_chance = _calibration_error_by_chance(scored, seed, resamples)
        found["ece"] = of_calibration_error(drawn["ece"], by_chance, ece)
    found["accuracy"] = exact_if_unanimous(found["accuracy"], scored.right, scored.clusters)
    if scored.num_classes == 2:
        found |= _error_rates(found, scored)
    one_cluster = len(np.unique(scored.clusters)) == 1
    return {name: interval for name, interval in found.items() if name == "accuracy" or interval[0] < interval[1]} | (
        {"accuracy": [0.0, 1.0]} if one_cluster else {}
    )


def of_share(right: Bools, clusters: Ints, seed: int, resamples: int) -> list[float]:
    """[low, high] of the mean of `right` (N,), N at least 1."""
    interval = classification.bootstrap_interval(right, seed, resamples, groups=clusters)
    return exact_if_unanimous(list(interval), right, clusters)


def intervals(scored: Scored, seed: int, resamples: int, areas: bool = True) -> dict[str, Float64s]:
    """Metric -> (R,) its value in each resample, NaN where it is undefined; `areas` under curves may have fewer.

    The same seed, clusters and number give the same resamples, so two models on the same images can be paired.
    """
    cluster = np.unique(scored.clusters, return_inverse=True)[1]
    columns = _by_cluster(_additive(scored), cluster)
    areas_for = area_resamples(scored, resamples)
    parts: dict[str, list[Float64s]] = {}
    done = 0
    for weights in draw(cluster.max(initial=-1) + 1, seed, resamples, columns.shape[0]):
        values = _from_sums(columns @ weights, scored.num_classes)
        if areas and done < areas_for:
            values |= _areas(scored, cluster, weights[:, : areas_for - done])
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
        done += weights.shape[1]
    return {name: np.concatenate(values) for name, values in parts.items()}


def area_resamples(scored: Scored, resamples: int) -> int:
    """How many of the resamples the areas under curves get."""
    return int(np.clip(MOST_ADDITIONS // max(1, scored.probabilities.size), min(FEWEST, resamples), resamples))


def areas(positive: Bools, scores: Floats, clusters: Ints, seed: int, resamples: int) -> Float64s:
    """(2, R): ROC-AUC and average precision of positives against the others, both (N,), NaN where undefined."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    blocks = draw(cluster.max(initial=-1) + 1, seed, resamples)
    return np.concatenate([_class_areas(positive, scores, cluster, weights) for weights in blocks], axis=1)


def resampled_sums(values: Any, clusters: Ints, seed: int, resamples: int) -> Float64s:
    """Sums of M quantities, a sparse (M, N) matrix with a number for each image, in each resample: (M, R)."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    columns = _by_cluster(values, cluster)
    blocks = draw(cluster.max(initial=-1) + 1, seed, resamples, columns.shape[0])
    sums: Float64s = np.concatenate([columns @ weights for weights in blocks], axis=1)
    return sums


def draw(clusters: int, seed: int, resamples: int, height: int = 1) -> Iterator[Float64s]:
    """Blocks (G, R) of how often each of G clusters is drawn in each resample, G draws a resample.

    `height`: rows of what is computed from a block, so that this stays small too.
    """
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(1, clusters, height))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(clusters, size=(count, clusters)) * count + np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=clusters * count).reshape(clusters, count).astype(np.float64)


def percentiles(values: Float64s) -> list[float]:
    """[low, high] of what is defined; values (R,) hold NaN where it is not."""
    defined = values[~np.isnan(values)]
    low, high = np.quantile(defined, [TAIL, 1 - TAIL]) if len(defined) else (0.0, 0.0)
    return [float(low), float(high)]


def of_calibration_error(values: Float64s, by_chance: Float64s, measured: float) -> list[float]:
    """[low, high] of the ECE, from its values in resamples and under perfect calibration (R,) each.

    Chance makes a mean of absolute values larger in a sample than in truth, and larger again in resamples of the
    sample, so percentiles of these hardly ever hold the truth. The basic bootstrap (Davison & Hinkley 1997, 5.2.1)
    reflects them at the sample's value; it is widened to that value, and to 0 where perfect calibration would often
    (in more than 2.5 %) give as much. In simulations of 100 to 3,000 images it held the truth in 85 to 99 %.
    """
    low, high = percentiles(values)
    least = 2 * measured - high if measured > np.quantile(by_chance, 1 - TAIL) else 0.0
    return [min(measured, max(0.0, least)), max(measured, 2 * measured - low)]


def exact(unanimous: float, units: int) -> list[float]:
    """Interval of Clopper & Pearson (1934) for a share of 0 or 1 of independent units."""
    reach = TAIL ** (1 / units)
    return [0.0, 1 - reach] if unanimous == 0 else [reach, 1.0]


def exact_if_unanimous(interval: list[float], right: Bools, clusters: Ints) -> list[float]:
    """`interval` of the share of `right` (N,), unless that is 0 or 1 and resampling cannot tell anything."""
    share = float(np.mean(right))
    return exact(share, len(np.unique(clusters))) if share in (0.0, 1.0) else interval


def ratio(numerator: Float64s, denominator: Float64s) -> Float64s:
    """Element by element; NaN where the denominator is 0."""
    quotient: Any = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    found: Float64s = np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return found


def _error_rates(found: dict[str, list[float]], scored: Scored) -> dict[str, list[float]]:
    """Of two classes, as far as one of the rates is 0 or 1, of which resampling knows nothing.

    The interval of their mean then combines the two by the method of variance estimates recovery (Zou & Donner 2008).
    """
    wrong, rates = scored.predicted != scored.labels, {}
    values = {}
    for index, name in enumerate(("false_positive_rate", "false_negative_rate")):
        own = scored.labels == index
        if name in found:
            values[name] = float(wrong[own].mean())
            rates[name] = exact_if_unanimous(found[name], wrong[own], scored.clusters[own])
    if rates != {name: found[name] for name in rates} and len(rates) == 2:
        mean = sum(values.values()) / 2
        below, above = (math.hypot(*(rates[name][side] - values[name] for name in rates)) / 2 for side in (0, 1))
        rates["hter"] = [max(0.0, mean - below), min(1.0, mean + above)]
        rates["balanced_accuracy"] = [1 - rates["hter"][1], 1 - rates["hter"][0]]
    return rates


def _additive(scored: Scored) -> Any:
    """Sparse (M, N): what the metrics are made of besides areas, as sums over images.

    Rows: K of right images by class, K by label, K by predicted class; log loss; Brier score; and for each bin of
    confidence, confidence minus correctness.
    """
    labels, predicted = np.asarray(scored.labels, np.int64), np.asarray(scored.predicted, np.int64)
    count, classes, images = len(labels), scored.num_classes, np.arange(len(labels))
    right = np.flatnonzero(labels == predicted)
    which, gap = classification.confidence_gaps(labels, scored.probabilities, BINS)
    rows = [labels[right], classes + labels, 2 * classes + predicted, np.full(count, 3 * classes)]
    rows += [np.full(count, 3 * classes + 1), 3 * classes + 2 + which]
    data = [np.ones(len(right)), np.ones(count), np.ones(count)]
    data += [
        classification.log_losses(labels, scored.probabilities),
        classification.brier_scores(labels, scored.probabilities),
        gap,
    ]
    columns = [right, *[images] * 5]
    shape = (3 * classes + 2 + BINS, count)
    return sparse.csr_matrix((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def _by_cluster(values: Any, cluster: Ints) -> Any:
    """(M, N) of images -> (M, G) of clusters, both sparse."""
    count = len(cluster)
    shape = (count, cluster.max(initial=-1) + 1)
    return (values @ sparse.csr_matrix((np.ones(count), (np.arange(count), cluster)), shape=shape)).tocsr()


def _from_sums(sums: Float64s, classes: int) -> dict[str, Float64s]:
    """The rows of `_additive` (M, R) -> metrics (R,)."""
    hits, support, claimed = sums[:classes], sums[classes : 2 * classes], sums[2 * classes : 3 * classes]
    images = support.sum(axis=0)
    occurs = support + claimed > 0
    recall, precision = ratio(hits, np.maximum(support, 1)), ratio(hits, np.maximum(claimed, 1))
    values = {
        "accuracy": ratio(hits.sum(axis=0), images),
        "balanced_accuracy": mean_of(recall, support > 0),
        "macro_precision": mean_of(precision, occurs),
        "macro_recall": mean_of(recall, occurs),
        "macro_f1": mean_of(2 * hits / np.maximum(support + claimed, 1), occurs),
        "log_loss": ratio(sums[3 * classes], images),
        "brier": ratio(sums[3 * classes + 1], images),
        "ece": ratio(np.abs(sums[3 * classes + 2 :]).sum(axis=0), images),
    }
    if classes == 2:
        rates = ratio(support - hits, support)
        values |= {"hter": rates.mean(axis=0), "false_positive_rate": rates[0], "false_negative_rate": rates[1]}
    return values


def _calibration_error_by_chance(scored: Scored, seed: int, resamples: int) -> Float64s:
    """(R,): the ECE if images were right as often as confidence says (consistency resampling, Bröcker & Smith 2007),
    those of a cluster with one throw of the dice."""
    confidence = np.asarray(scored.probabilities, dtype=np.float64).max(axis=1)
    cluster = np.unique(scored.clusters, return_inverse=True)[1]
    which, _ = classification.confidence_gaps(scored.labels, scored.probabilities, BINS)
    count, rng = len(confidence), np.random.default_rng(seed)
    bins = sparse.csr_matrix((np.ones(count), (which, np.arange(count))), shape=(BINS, count))
    found, block = [], max(1, BLOCK // count)
    for start in range(0, resamples, block):
        thrown = rng.random((cluster.max() + 1, min(block, resamples - start)))
        gaps = confidence[:, None] - (thrown[cluster] < confidence[:, None])
        found.append(np.abs(bins @ gaps).sum(axis=0) / count)
    return np.concatenate(found)


def mean_of(values: Float64s, chosen: Bools) -> Float64s:
    """Over the classes (axis 0) that are chosen."""
    return ratio(np.where(chosen, values, 0.0).sum(axis=0), chosen.sum(axis=0).astype(np.float64))


def _areas(scored: Scored, cluster: Ints, weights: Float64s) -> dict[str, Float64s]:
    """ROC-AUC and PR-AUC (R,): of class 1 of two, else the mean of one-vs-rest over classes that have both kinds."""
    classes = [1] if scored.num_classes == 2 else list(range(scored.num_classes))
    sums, counts = np.zeros((2, weights.shape[1])), np.zeros(weights.shape[1])
    for index in classes:
        positive = scored.labels == index
        if positive.any() and not positive.all():
            areas = _class_areas(positive, scored.probabilities[:, index], cluster, weights)
            defined = ~np.isnan(areas[0])
            sums[:, defined] += areas[:, defined]
            counts += defined
    roc, precision_recall = ratio(sums, counts)
    return {"roc_auc": roc, "pr_auc": precision_recall}


def _class_areas(positive: Bools, scores: Floats, cluster: Ints, weights: Float64s) -> Float64s:
    """(2, R): the areas of `metrics.roc_auc` and `metrics.average_precision`, NaN where a kind is missing.

    Only scores that a positive has are steps of either curve: images are counted from one such score to the next, by
    a sparse matrix, and all resamples are done at once.
    """
    order = np.argsort(-scores, kind="stable")
    group = np.cumsum(np.append(False, np.diff(scores[order]) != 0))
    has_positive = np.zeros(group[-1] + 1, dtype=np.int64)
    has_positive[group[positive[order]]] = 1
    step = (np.cumsum(has_positive) - has_positive)[group]
    steps, own = int(has_positive.sum()), has_positive[group].astype(bool)
    kinds = positive[order]

    def at_steps(chosen: Any) -> Float64s:
        cells = (step[chosen], cluster[order][chosen])
        counts = sparse.csr_matrix((np.ones(len(cells[0])), cells), shape=(steps + 1, len(weights)))
        found: Float64s = counts @ weights
        return found

    here, tied, all_here = at_steps(kinds), at_steps(own & ~kinds), at_steps(slice(None))
    hits, called = np.cumsum(here, axis=0), np.cumsum(all_here, axis=0)
    positives, negatives = hits[-1], called[-1] - hits[-1]
    beaten = negatives - (called - hits) + tied / 2
    roc = ratio((here * beaten).sum(axis=0), positives * negatives)
    precision = ratio((here * (hits / np.maximum(called, 1))).sum(axis=0), positives)
    return np.stack([roc, np.where(negatives > 0, precision, np.nan)])
