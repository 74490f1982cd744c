"""Labels that look wrong: out-of-fold predictions from features, and confident learning (Northcutt et al. 2021)."""

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from spectacles.data.stratification import stratified_folds
from spectacles.models.feature_blocks import LAST, BlockNames, FeatureBlocks
from spectacles.models.linear_probe import cross_fit

DOUBTFUL = 0.1
"""Share of the labels, the least credible ones, that do not help to choose the features."""
REPEATS = 3
"""Divisions into folds whose probabilities are averaged, so that no prediction depends on a single one."""


def out_of_fold_probabilities(
    features: FeatureBlocks, labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, list[BlockNames]]:
    """Features and class indices (N,) -> (probabilities (N, K) float64, each row from fits that left it out, and the
    blocks that they were fitted to); from labels (N, K) of 0 and 1 the probability of each label by itself, and as many
    choices of blocks.

    Logistic regression by `cross_fit` in stratified folds; rows of one group (near duplicates, a person) are left out
    together. A row whose label occurs in no other fold has no prediction: its probabilities are NaN, of several labels
    only this one's.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    divisions = [stratified_folds(labels, groups, folds, seed * REPEATS + number) for number in range(REPEATS)]
    features = FeatureBlocks({name: power_normalized(values) for name, values in features.parts.items()})
    if labels.ndim == 1:
        fit = cross_fit(features, labels, divisions, doubtful=DOUBTFUL)
        return fit.probabilities, [fit.blocks]
    fits = [_label_probabilities(features, has, divisions) for has in labels.T]
    return np.column_stack([probability for probability, _ in fits]), [blocks for _, blocks in fits]


def _label_probabilities(
    features: FeatureBlocks, has: np.ndarray, divisions: list[np.ndarray]
) -> tuple[np.ndarray, BlockNames]:
    """(how probably an image has the label (N,), the blocks). An image with the majority's answer, to which no other
    fold has an exception, gets that answer with certainty."""
    usual = int(2 * has.sum() > len(has))
    if not (has != usual).any():
        return has.astype(np.float64), (LAST,)
    fit = cross_fit(features, has, divisions, doubtful=DOUBTFUL)
    probability = fit.probabilities[:, 1]
    return np.where(np.isnan(probability) & (has == usual), has, probability), fit.blocks


def power_normalized(features: np.ndarray) -> np.ndarray:
    """Square roots of features that are never negative, as behind a ReLU, so that a few large values do not dominate
    (power normalisation, Perronnin et al. 2010). Others stay as they are."""
    return features if features.min(initial=0) < 0 else np.asarray(np.sqrt(features))


def average(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two sources of probabilities (N, K); where one has none (NaN), those of the other."""
    mean = (one + other) / 2
    return np.where(np.isnan(mean), np.where(np.isnan(one), other, one), mean)


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) in 0..1, 0 for the least credible label: the margin (p_given - p_other + 1) / 2 to the most probable other
    class, each probability taken against what its class usually gets for its images (Northcutt et al. 2021): a rare
    class usually gets less, and should not be suspected altogether."""
    scores = get_label_quality_scores(labels, probabilities, method="normalized_margin", adjust_pred_probs=True)
    return np.asarray(scores, dtype=np.float64)


def rank_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Given labels (N,) and out-of-fold probabilities (N, K) -> columns of M rows, the most suspicious first.

    The rows are those for which another class is more probable than the given one:

    - `row`: index into `labels`; `suggested`: the most probable class.
    - `score`: see `label_quality`.
    - `p_given`, `p_suggested`: probabilities.
    - `suspected`: True where confident learning counts the label as wrong: the other class is at least as probable as
      it usually is for its own images. The remaining rows are mostly hard images.

    Rows with NaN probabilities are left out. Of labels (N, K) of 0 and 1 see `_rank_label_sets`.
    """
    if labels.ndim == 2:
        return _rank_label_sets(labels, probabilities)
    rows = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    labels, probabilities = labels[rows], probabilities[rows]
    quality, suspected = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    if len(rows):
        quality = label_quality(labels, probabilities)
    if len(np.unique(labels)) > 1:
        suspected = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
    suggested = probabilities.argmax(axis=1)
    order = np.argsort(quality, kind="stable")
    order = order[(suggested != labels)[order]]
    return {
        "row": rows[order],
        "suggested": suggested[order],
        "score": quality[order],
        "p_given": probabilities[order, labels[order]],
        "p_suggested": probabilities[order, suggested[order]],
        "suspected": suspected[order],
    }


def _rank_label_sets(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The same columns, a row for each image with a label for which the other answer, had or not had, is more probable:

    - `suggested`: (M, K) of 0 and 1, `labels` with the other answer for all of those.
    - `doubtful`: index of the least credible of these labels, which `score`, `p_given` and `p_suggested` are about.
    - `suspected`: whether any of them is.
    """
    suggested, suspected = labels.copy(), np.zeros(len(labels), dtype=bool)
    found = []
    for place, (has, scores) in enumerate(zip(labels.T, probabilities.T, strict=True)):
        ranked = rank_label_issues(has, np.stack([1 - scores, scores], axis=1))
        suggested[ranked["row"], place] = ranked["suggested"]
        suspected[ranked["row"]] |= ranked["suspected"]
        found.append(ranked | {"doubtful": np.full(len(ranked["row"]), place)})
    columns = {name: np.concatenate([ranked[name] for ranked in found]) for name in found[0]}
    order = np.argsort(columns["score"], kind="stable")
    order = order[np.sort(np.unique(columns["row"][order], return_index=True)[1])]
    rows = columns["row"][order]
    ranked = {name: values[order] for name, values in columns.items()}
    return ranked | {"suggested": suggested[rows], "suspected": suspected[rows]}
