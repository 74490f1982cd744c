"""The probability from which on an image is class 1, or has a label: chosen on validation data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectacles.core.config import Goal
from spectacles.metrics.basics import Bools, Float64s, Floats, Ints
from spectacles.metrics.curves import roc_curve

ENOUGH_EACH = 10
"""Validation images with a label, and without it, below which its own threshold would be noise."""


@dataclass(frozen=True)
class Choice:
    """A threshold, and its rates on the data that chose it."""

    threshold: float
    precision: float
    """1 where nothing is called positive."""
    recall: float
    false_positive_rate: float
    reached: bool
    """False where the requested precision is out of reach, and this is the nearest."""


def choose(goal: Goal, labels: Ints, probabilities: Floats) -> Choice:
    """The best threshold for `goal` on labels `(N,)` of 0 and 1 and probabilities `(N,)` of class 1.

    It lies in the middle between two neighbouring probabilities, so on none of them. Of equally good ones the one
    nearest to the best one for calibrated probabilities: 0.5, and for costs FP / (FP + FN) (Elkan 2001). A precision
    that is out of reach gives the highest there is. Raises ValueError unless both classes occur.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    fall_out, recall, starts = roc_curve(labels == 1, probabilities)
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    hits, false_alarms = np.rint(recall * positives), np.rint(fall_out * negatives)
    precision = np.divide(hits, hits + false_alarms, out=np.ones(len(hits)), where=hits + false_alarms > 0)
    misses = positives - hits
    reached = True
    if goal.name == "precision":
        # Calling nothing positive has a precision of 1 and is of no use.
        enough = (precision >= goal.least - 1e-12) & (hits > 0)
        reached = bool(enough.any())
        ranks = [np.where(enough, recall, -1.0), precision] if reached else [precision * (hits > 0), recall]
    elif goal.name == "recall":
        ranks = [np.where(recall >= goal.least - 1e-12, precision, -1.0), recall]
        ranks[0][0] = -1.0
    elif goal.name == "f1":
        ranks = [2 * hits / (2 * hits + false_alarms + misses)]
    elif goal.name == "cost":
        ranks = [-(goal.costs[0] * false_alarms + goal.costs[1] * misses)]
    else:
        ranks = [recall - fall_out]
    cuts = _middles(starts)
    fair = goal.costs[0] / sum(goal.costs)
    best = _first_best([*ranks, -np.abs(cuts - fair)])
    return Choice(float(cuts[best]), float(precision[best]), float(recall[best]), float(fall_out[best]), reached)


def _middles(starts: Float64s) -> Float64s:
    """For falling `starts`, the first infinite: thresholds that all scores from each start on reach, and none below."""
    upper, lower = starts.copy(), np.append(starts[1:], 0.0)
    upper[0] = 1.0 if lower[0] < 1.0 else np.nextafter(lower[0], 2.0)
    middle: Float64s = (upper + lower) / 2
    middle[-1] = upper[-1] / 2
    # Between neighbouring floats there is no middle; a score that equals a threshold reaches it.
    return np.where((middle > lower) | (np.arange(len(starts)) == len(starts) - 1), middle, upper)


def _first_best(ranks: list[Float64s]) -> int:
    """Index of the highest by the first rank, of equal ones by the second, and so on."""
    best = np.arange(len(ranks[0]))
    for rank in ranks:
        best = best[rank[best] >= rank[best].max() - 1e-12]
    return int(best[0])


def choose_each(goal: Goal, labels: Ints, probabilities: Floats) -> list[Choice | None]:
    """`choose` for each of the labels (N, K) of 0 and 1; None where fewer than ENOUGH_EACH images have or lack it.

    For f1 it is half of the best F1: there calibrated probabilities have their best threshold (Lipton et al. 2014), and
    the height of a peak is known from fewer images than its place.
    """
    choices: list[Choice | None] = []
    for has, scores in zip(np.asarray(labels).T, np.asarray(probabilities, dtype=np.float64).T, strict=True):
        enough = min(has.sum(), (1 - has).sum()) >= ENOUGH_EACH
        choice = choose(goal, has, scores) if enough else None
        choices.append(_at(_f1(choice) / 2, has == 1, scores) if choice and goal.name == "f1" else choice)
    return choices


def _f1(choice: Choice) -> float:
    return 2 * choice.precision * choice.recall / max(choice.precision + choice.recall, 1e-12)


def _at(threshold: float, has: Bools, scores: Float64s) -> Choice:
    claimed = scores >= threshold
    precision = float(has[claimed].mean()) if claimed.any() else 1.0
    return Choice(threshold, precision, float(claimed[has].mean()), float(claimed[~has].mean()), reached=True)
