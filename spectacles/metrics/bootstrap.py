"""The bootstrap behind every 95 % interval: whole clusters are resampled, as weights instead of copies.

Near duplicates and photos of one person are not independent evidence, so clusters are drawn, not images (cluster
bootstrap, Davison & Hinkley 1997, 3.8). All metrics share the same resamples, and an interval holds the middle 95 % of
a metric's values in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from spectacles.metrics.basics import Bools, Float64s, Floats, Ints
from spectacles.metrics.decisions import Scored

RESAMPLES = 1000
TAIL = 0.025
BLOCK = 2**22
"""Weights held at once, of clusters times resamples: 32 MB."""
MOST_ADDITIONS, FEWEST = 5_000_000_000, 200
"""An area under a curve costs images x classes x resamples additions: beyond this many (some seconds) it gets fewer
resamples than the other metrics, but not fewer than 200."""


def mean_interval(values: np.ndarray, clusters: Ints, seed: int, resamples: int = RESAMPLES) -> list[float]:
    """[low, high] of the mean of `values` (N,), numbers or booleans. Raises ValueError without any."""
    if not len(values):
        raise ValueError("an interval needs at least one value")
    both = sparse.csr_matrix(np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))]))
    total, count = resampled_sums(both, clusters, seed, resamples)
    return percentile_interval(total / count)


def share_interval(correct: Bools, clusters: Ints, seed: int, resamples: int) -> list[float]:
    """[low, high] of the share of `correct` (N,), N at least 1; the exact one where all or none are."""
    return exact_if_unanimous(mean_interval(correct, clusters, seed, resamples), correct, clusters)


def exact_if_unanimous(interval: list[float], correct: Bools, clusters: Ints) -> list[float]:
    """`interval` of the share of `correct` (N,), unless that is 0 or 1, so that all resamples are alike."""
    share = float(np.mean(correct))
    return clopper_pearson(share, len(np.unique(clusters))) if share in (0.0, 1.0) else interval


def clopper_pearson(share: float, units: int) -> list[float]:
    """Exact interval of Clopper & Pearson (1934) for a share of 0 or 1 of independent units."""
    bound = float(TAIL ** (1 / units))
    return [0.0, 1 - bound] if share == 0 else [bound, 1.0]


def mean_of_two(rates: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[float]:
    """[low, high] of the mean of two independent rates from their intervals, by the method of variance estimates
    recovery (Zou & Donner 2008)."""
    below, above = (
        math.hypot(*(interval[side] - rate for rate, interval in zip(rates, intervals, strict=True))) / 2
        for side in (0, 1)
    )
    mean = sum(rates) / 2
    return [max(0.0, mean - below), min(1.0, mean + above)]


def percentile_interval(values: Float64s) -> list[float]:
    """[low, high] of the defined ones among `values` (R,), which are NaN where a resample defines none."""
    defined = values[~np.isnan(values)]
    low, high = np.quantile(defined, [TAIL, 1 - TAIL]) if len(defined) else (0.0, 0.0)
    return [float(low), float(high)]


def draw_weights(clusters: int, seed: int, resamples: int, height: int = 1) -> Iterator[Float64s]:
    """Blocks (G, R) of how often each of G clusters is drawn in each resample, G draws per resample.

    `height`: rows of what is computed from a block, which must fit into memory too.
    """
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(1, clusters, height))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(clusters, size=(count, clusters)) * count + np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=clusters * count).reshape(clusters, count).astype(np.float64)


def resampled_sums(values: Any, clusters: Ints, seed: int, resamples: int) -> Float64s:
    """Sums of M quantities, a sparse (M, N) matrix with a number for each image, in each resample: (M, R)."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    columns = sum_by_cluster(values, cluster)
    blocks = draw_weights(cluster.max(initial=-1) + 1, seed, resamples, columns.shape[0])
    sums: Float64s = np.concatenate([columns @ weights for weights in blocks], axis=1)
    return sums


def sum_by_cluster(values: Any, cluster: Ints) -> Any:
    """(M, N) of images -> (M, G) of clusters, both sparse; `cluster` (N,) lies in 0..G - 1."""
    count = len(cluster)
    shape = (count, cluster.max(initial=-1) + 1)
    return (values @ sparse.csr_matrix((np.ones(count), (np.arange(count), cluster)), shape=shape)).tocsr()


def area_resamples(scored: Scored, resamples: int) -> int:
    """How many of the resamples the areas under curves get."""
    return int(np.clip(MOST_ADDITIONS // max(1, scored.probabilities.size), min(FEWEST, resamples), resamples))


def areas(positive: Bools, scores: Floats, clusters: Ints, seed: int, resamples: int) -> Float64s:
    """(2, R): ROC-AUC and average precision of positives against the others, both (N,), NaN where undefined."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    blocks = draw_weights(cluster.max(initial=-1) + 1, seed, resamples)
    return np.concatenate([weighted_areas(positive, scores, cluster, weights) for weights in blocks], axis=1)


def weighted_areas(positive: Bools, scores: Floats, cluster: Ints, weights: Float64s) -> Float64s:
    """(2, R): the areas of `curves`, NaN where positives or negatives are missing, for weights (G, R) of clusters.

    Not scikit-learn's, which takes one vector of weights: 1,000 resamples would sort the scores 1,000 times. Only
    scores that a positive has are steps of either curve: images are counted from one such score to the next, by a
    sparse matrix, for all resamples at once.
    """
    order = np.argsort(-scores, kind="stable")
    group = np.cumsum(np.append(False, np.diff(scores[order]) != 0))
    has_positive = np.zeros(group[-1] + 1, dtype=np.int64)
    has_positive[group[positive[order]]] = 1
    step = (np.cumsum(has_positive) - has_positive)[group]
    steps = int(has_positive.sum())
    on_step = has_positive[group].astype(bool)
    is_positive = positive[order]

    def at_steps(chosen: Any) -> Float64s:
        cells = (step[chosen], cluster[order][chosen])
        counts = sparse.csr_matrix((np.ones(len(cells[0])), cells), shape=(steps + 1, len(weights)))
        weighted: Float64s = counts @ weights
        return weighted

    positives, tied, images = at_steps(is_positive), at_steps(on_step & ~is_positive), at_steps(slice(None))
    true_positives, claimed = np.cumsum(positives, axis=0), np.cumsum(images, axis=0)
    all_positives = true_positives[-1]
    all_negatives = claimed[-1] - all_positives
    outscored = all_negatives - (claimed - true_positives) + tied / 2
    roc = divide((positives * outscored).sum(axis=0), all_positives * all_negatives)
    precision = divide((positives * (true_positives / np.maximum(claimed, 1))).sum(axis=0), all_positives)
    return np.stack([roc, np.where(all_negatives > 0, precision, np.nan)])


def divide(numerator: Float64s, denominator: Float64s) -> Float64s:
    """Element by element; NaN where the denominator is 0."""
    quotient: Any = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    divided: Float64s = np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return divided


def mean_over(values: Float64s, chosen: Bools) -> Float64s:
    """Mean over axis 0, the classes, of the `chosen` ones; NaN where none is."""
    return divide(np.where(chosen, values, 0.0).sum(axis=0), chosen.sum(axis=0).astype(np.float64))
