"""Labels that look wrong: out-of-fold predictions from features, and confident learning (Northcutt et al. 2021)."""

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from spectacles.probe import logistic_regression
from spectacles.splits import stratified_split

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C, from strong to weak regularisation; which is best depends on images, features and classes."""


def out_of_fold_probabilities(
    features: np.ndarray, labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Features (N, D) and class indices (N,) -> probabilities (N, K) float64, each row from a fit that left it out.

    Standardised logistic regression in stratified folds; rows of one group (near duplicates, a person) are left out
    together. The regularisation is the strongest whose weaker neighbour does not lower the out-of-fold log loss. A row
    whose label occurs in no other fold cannot be judged: its probabilities are NaN.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    fold = stratified_split(labels, groups, [1 / folds] * folds, seed)
    best, lowest = np.full((len(labels), int(labels.max(initial=0)) + 1), np.nan), np.inf
    # Many small products: where other processes compete for the cores, BLAS threads waiting for each other cost 50x.
    with threadpool_limits(1):
        for strength in STRENGTHS:
            probabilities = _cross_fit(features, labels, fold, strength)
            loss = _log_loss(labels, probabilities)
            if not loss < lowest:
                break
            best, lowest = probabilities, loss
    return best


def _cross_fit(features: np.ndarray, labels: np.ndarray, fold: np.ndarray, strength: float) -> np.ndarray:
    probabilities = np.full((len(labels), int(labels.max(initial=0)) + 1), np.nan)
    for held_out in np.unique(fold):
        fit, judged = fold != held_out, np.flatnonzero(fold == held_out)
        judged = judged[np.isin(labels[judged], labels[fit])]
        if len(judged) and len(np.unique(labels[fit])) > 1:
            model = logistic_regression(features[fit], labels[fit], strength)
            probabilities[judged] = 0.0
            probabilities[np.ix_(judged, model.classes_)] = model.predict_proba(features[judged])
    return probabilities


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over the rows that are judged; infinite where there are none."""
    given = probabilities[np.arange(len(labels)), labels]
    given = given[~np.isnan(given)]
    return float(-np.log(np.maximum(given, 1e-12)).mean()) if len(given) else np.inf


def rank_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Given labels (N,) and out-of-fold probabilities (N, K) -> columns of M rows, the most suspicious first.

    The rows are those for which another class is more probable than the given one:

    - `row`: index into `labels`; `suggested`: the most probable class.
    - `score`: cleanlab's label quality, here the margin (p_given - p_suggested + 1) / 2: 0 is worst, 0.5 undecided.
    - `p_given`, `p_suggested`: probabilities.
    - `suspected`: True where confident learning counts the label as wrong: the other class is at least as probable as
      it usually is for its own images. The remaining rows are mostly hard images.

    Rows with NaN probabilities are left out.
    """
    rows = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    labels, probabilities = labels[rows], probabilities[rows]
    quality, suspected = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    if len(rows):
        quality = get_label_quality_scores(labels, probabilities, method="normalized_margin")
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
