"""A baseline before fine-tuning: linear probes on frozen features, with grouped folds and with random ones."""

from typing import Any

import numpy as np
from sklearn.preprocessing import normalize

from spectacles.core.wording import count_of, percent, percents
from spectacles.data.similarity import nearest_neighbours
from spectacles.data.stratification import stratified_folds
from spectacles.metrics.bootstrap import mean_interval
from spectacles.metrics.decisions import decide, decide_labels, is_correct
from spectacles.models.feature_blocks import FeatureBlocks, describe
from spectacles.models.linear_probe import cross_fit

FOLDS = 5
MOST_ROWS = 10_000
"""Of a larger data set so many images are scored: whole clusters, drawn with a seed."""
MOST_DECISIONS, FEWEST_ROWS = 60_000, 1_000
"""Each label is fitted separately: with many labels fewer images are scored, but not fewer than the second."""


def most_rows(num_labels: int) -> int:
    """How many images are scored: see MOST_ROWS and MOST_DECISIONS; 1 label where each image has one class."""
    return min(MOST_ROWS, max(FEWEST_ROWS, MOST_DECISIONS // num_labels))


def measure(features: FeatureBlocks, labels: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, Any]:
    """Frozen features, class indices (N,) or labels (N, K) of 0 and 1, and clusters (N,) -> the contents of
    explore/baseline.json.

    `grouped_split`, `random_split`: logistic regression in five folds that keep clusters whole, or that reassign their
    images at random; `half`: grouped, but fitted to half of the images instead of four fifths. `nearest_neighbour`: the
    class of the most similar image of another cluster, or of any. Accuracies have 95 % intervals, `differences` are to
    `grouped_split` over the same images; the bootstrap draws whole clusters. An image whose class occurs in no other
    fold counts as wrong.

    With several labels each has a logistic regression, decided at a probability of 0.5; an image is right where all
    its labels are.
    """
    fold = stratified_folds(labels, clusters, FOLDS, seed)
    random_fold = _split_groups(fold, labels, clusters, seed)
    fit = cross_fit(features, labels, [fold])

    def is_right(other: np.ndarray) -> np.ndarray:
        return _is_right(cross_fit(features, labels, [other], [fit.blocks]).probabilities, labels)

    grouped = _is_right(fit.probabilities, labels)
    right = {
        "grouped_split": grouped,
        "half": is_right(stratified_folds(labels, clusters, 2, seed)),
        "random_split": grouped if np.array_equal(random_fold, fold) else is_right(random_fold),
    }

    def interval(values: np.ndarray) -> list[float]:
        return [round(bound, 6) for bound in mean_interval(values, clusters, seed)]

    scores = {
        name: {"accuracy": round(float(values.mean()), 6), "interval": interval(values)}
        for name, values in right.items()
    }
    differences = {
        name: {
            "accuracy": round(float((right[name] - right["grouped_split"]).mean()), 6),
            "interval": interval(right[name] - right["grouped_split"]),
        }
        for name in ("random_split", "half")
    }
    unit = normalize(features.last - features.last.mean(axis=0))
    neighbours = {
        "grouped_split": _nearest_is_right(unit, labels, clusters),
        "random_split": _nearest_is_right(unit, labels, None),
    }
    return {
        "images": len(labels),
        "blocks": list(fit.blocks),
        "groups": len(np.unique(clusters)),
        **scores,
        "nearest_neighbour": {name: round(float(values.mean()), 6) for name, values in neighbours.items()},
        "differences": differences,
    }


def _split_groups(fold: np.ndarray, labels: np.ndarray, clusters: np.ndarray, seed: int) -> np.ndarray:
    """Folds (N,) as if clusters were unknown: their images are reassigned at random within each class (with several
    labels among all: a combination of labels may have a single image). All other images stay, so that the two splits
    differ by leakage and not by luck."""
    _, numbers, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    split_groups = fold.copy()
    rng = np.random.default_rng(seed)
    kinds = labels if labels.ndim == 1 else np.zeros(len(labels))
    for kind in np.unique(kinds):
        members = np.flatnonzero((kinds == kind) & (sizes[numbers] > 1))
        split_groups[members] = rng.permutation(fold[members])
    return split_groups


def _is_right(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) float64: 1 where the out-of-fold probabilities (N, K) decide for the class, or for all labels."""
    known = ~np.isnan(probabilities).any(axis=1)
    decided = decide(probabilities, None) if labels.ndim == 1 else decide_labels(probabilities)
    return np.asarray(is_correct(decided, labels) & known, dtype=np.float64)


def _nearest_is_right(unit: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    rows = np.arange(len(labels))
    neighbour = nearest_neighbours(unit, rows, rows, 1, clusters)[0][:, 0]
    return np.asarray((neighbour >= 0) & is_correct(labels[neighbour], labels), dtype=np.float64)


def sentences(measured: dict[str, Any], multi_label: bool = False) -> list[str]:
    """The baseline, and by how much a random split would overstate it, for the summary."""
    grouped, random = measured["grouped_split"], measured["random_split"]
    neighbour = measured["nearest_neighbour"]
    what = "all labels correct for " if multi_label else ""
    lines = [
        f"baseline before fine-tuning: {what}{percent(grouped['accuracy'])} ({percents(grouped['interval'])}) by "
        f"logistic regression on frozen features of {describe([tuple(measured['blocks'])])}, "
        f"{percent(neighbour['grouped_split'])} by the nearest neighbour "
        f"({count_of(measured['images'], 'image')}, {FOLDS} folds)"
    ]
    if measured["groups"] == measured["images"]:
        return lines
    score = (
        f"with a random split: {what}{percent(random['accuracy'])}, "
        f"nearest neighbour {percent(neighbour['random_split'])}"
    )
    difference = measured["differences"]["random_split"]
    low, high = difference["interval"]
    if low > 0:
        score += (
            f"; it would overstate the accuracy by {100 * difference['accuracy']:.1f} points ({100 * low:.1f} to "
            f"{100 * high:.1f}), because near duplicates and groups would be both in training and in test data"
        )
    else:
        score += f" (no more than chance apart, at most {100 * max(high, 0):.1f} points)"
    return [*lines, score]
