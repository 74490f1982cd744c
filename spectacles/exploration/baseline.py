"""What accuracy is within reach before anything is fine-tuned, and what a split that leaks would have made of it."""

from typing import Any

import numpy as np
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from spectacles.core.wording import count_of, percent, percents
from spectacles.data.similarity import nearest
from spectacles.data.splits import stratified_split
from spectacles.metrics import multilabel
from spectacles.metrics.classification import bootstrap_interval
from spectacles.metrics.multilabel import all_right
from spectacles.models.linear_probe import logistic_regression

FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C, from strong to weak regularisation."""
MOST_ROWS = 10_000
"""Images that are judged, whole clusters drawn with a seed, where there are more."""
MOST_ANSWERS, FEWEST_ROWS = 60_000, 1_000
"""Each label is a fit of its own: of many labels fewer images, but not below the second."""


def most_rows(labels_an_image: int) -> int:
    """How many images are judged: see MOST_ROWS and MOST_ANSWERS. One class an image is one label."""
    return min(MOST_ROWS, max(FEWEST_ROWS, MOST_ANSWERS // labels_an_image))


def sample_clusters(clusters: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Positions, rising, of whole clusters (N,) drawn until `limit` rows are reached; all of them where they fit."""
    if len(clusters) <= limit:
        return np.arange(len(clusters))
    _, numbers, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit, side="right")))]
    return np.flatnonzero(np.isin(numbers, drawn))


def measure(features: np.ndarray, labels: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, Any]:
    """Frozen features (N, D), class indices (N,) or labels (N, K) of 0 and 1, and clusters (N,) -> what
    explore/reachable.json holds.

    `honest`, `naive`: logistic regression in five folds that keep clusters whole, or that deal their images out anew;
    `half`: honest, from half of the images instead of four fifths. `nearest_neighbour`: the class of the most similar
    image of another cluster, or of any. Accuracies with 95 % intervals, `differences` to `honest` over the same images;
    whole clusters are drawn. An image whose class occurs in no other fold counts as wrong.

    Of labels there is a logistic regression each, decided at a probability of 0.5, and an image is right where all its
    labels are.
    """
    fold = stratified_split(labels, clusters, [1 / FOLDS] * FOLDS, seed)
    torn = _tear(fold, labels, clusters, seed)
    honest = _probe(features, labels, fold)
    right = {
        "honest": honest,
        "half": _probe(features, labels, stratified_split(labels, clusters, [0.5, 0.5], seed)),
        "naive": honest if np.array_equal(torn, fold) else _probe(features, labels, torn),
    }

    def interval(values: np.ndarray) -> list[float]:
        return [round(bound, 6) for bound in bootstrap_interval(values, seed, groups=clusters)]

    scores = {
        name: {"accuracy": round(float(values.mean()), 6), "interval": interval(values)}
        for name, values in right.items()
    }
    differences = {
        name: {
            "accuracy": round(float((right[name] - right["honest"]).mean()), 6),
            "interval": interval(right[name] - right["honest"]),
        }
        for name in ("naive", "half")
    }
    unit = normalize(features - features.mean(axis=0))
    neighbours = {"honest": _neighbour(unit, labels, clusters), "naive": _neighbour(unit, labels, None)}
    return {
        "images": len(labels),
        "groups": len(np.unique(clusters)),
        **scores,
        "nearest_neighbour": {name: round(float(values.mean()), 6) for name, values in neighbours.items()},
        "differences": differences,
    }


def _tear(fold: np.ndarray, labels: np.ndarray, clusters: np.ndarray, seed: int) -> np.ndarray:
    """Folds (N,) as if nobody had looked for clusters: their images are dealt out anew, class by class (with labels all
    at once: of some sets of labels there may be one image). All others stay where they are, so that the two divisions
    differ by what leaks and not by luck."""
    _, numbers, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    torn, rng = fold.copy(), np.random.default_rng(seed)
    kinds = labels if labels.ndim == 1 else np.zeros(len(labels))
    for kind in np.unique(kinds):
        members = np.flatnonzero((kinds == kind) & (sizes[numbers] > 1))
        torn[members] = rng.permutation(fold[members])
    return torn


def _probe(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(N,) float64: 1 where a fit to the other folds predicts the label.

    The regularisation is the strongest whose weaker neighbour does not lower the log loss: the accuracy would choose
    more by chance.
    """
    best, lowest = np.zeros(len(labels)), np.inf
    fit = _cross_fit if labels.ndim == 1 else _cross_fit_labels
    # Many small products: where other processes compete for the cores, BLAS threads waiting for each other cost 50x.
    with threadpool_limits(1):
        for strength in STRENGTHS:
            right, loss = fit(features, labels, fold, strength)
            if loss >= lowest:
                break
            best, lowest = right, loss
    return best


def _cross_fit(features: np.ndarray, labels: np.ndarray, fold: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """(N,), 1 where the prediction is right, and the mean log loss. A class that no other fold has is never told."""
    right, given = np.zeros(len(labels)), np.zeros(len(labels))
    for held_out in np.unique(fold):
        fit, judged = fold != held_out, np.flatnonzero(fold == held_out)
        judged = judged[np.isin(labels[judged], labels[fit])]
        if len(judged) and len(np.unique(labels[fit])) > 1:
            model = logistic_regression(features[fit], labels[fit], strength)
            probabilities, own = model.predict_proba(features[judged]), np.searchsorted(model.classes_, labels[judged])
            right[judged] = probabilities.argmax(axis=1) == own
            given[judged] = probabilities[np.arange(len(judged)), own]
    return right, float(-np.log(np.maximum(given, 1e-12)).mean())


def _cross_fit_labels(
    features: np.ndarray, labels: np.ndarray, fold: np.ndarray, strength: float
) -> tuple[np.ndarray, float]:
    """(N,), 1 where all labels are right, and the mean log loss. Of what no other fold has, nothing is told."""
    probabilities = np.full(labels.shape, np.nan)
    for held_out in np.unique(fold):
        fit, judged = fold != held_out, fold == held_out
        for place, has in enumerate(labels.T if fit.any() else ()):
            probabilities[judged, place] = _label_probabilities(features[fit], has[fit], features[judged], strength)
    told = ~np.isnan(probabilities).any(axis=1)
    right = all_right((probabilities >= 0.5).astype(np.int64), labels) & told
    loss = multilabel.log_losses(labels[told], probabilities[told]).mean() if told.any() else np.inf
    return right.astype(np.float64), float(loss)


def _label_probabilities(features: np.ndarray, has: np.ndarray, judged: np.ndarray, strength: float) -> np.ndarray:
    """Of a label that all images or none have: how often that is (rule of succession)."""
    if len(np.unique(has)) < 2:
        return np.full(len(judged), (has.sum() + 1) / (len(has) + 2))
    probabilities: np.ndarray = logistic_regression(features, has, strength).predict_proba(judged)[:, 1]
    return probabilities


def _neighbour(unit: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    everything = np.arange(len(labels))
    found = nearest(unit, everything, everything, 1, clusters)[0][:, 0]
    return np.asarray(((found >= 0) & all_right(labels[found], labels)), dtype=np.float64)


def sentences(measured: dict[str, Any], multi_label: bool = False) -> list[str]:
    """What a person should know of it."""
    honest, naive, neighbour = measured["honest"], measured["naive"], measured["nearest_neighbour"]
    difference = measured["differences"]["naive"]
    what = "all labels right for " if multi_label else ""
    told = [
        f"reachable before fine-tuning: {what}{percent(honest['accuracy'])} ({percents(honest['interval'])}) by "
        f"logistic regression on frozen features, {percent(neighbour['honest'])} by the nearest neighbour "
        f"({count_of(measured['images'], 'image')}, {FOLDS} folds)"
    ]
    if measured["groups"] == measured["images"]:
        return told
    flattered, near = percent(naive["accuracy"]), percent(neighbour["naive"])
    split = f"the score if split naively: {what}{flattered}, nearest neighbour {near}"
    low, high = difference["interval"]
    if low > 0:
        split += (
            f"; it would flatter by {100 * difference['accuracy']:.1f} points ({100 * low:.1f} to {100 * high:.1f}), "
            "because near duplicates and groups would be learnt from and judged by at once"
        )
    else:
        split += f" (no more than chance apart, at most {100 * max(high, 0):.1f} points)"
    return [*told, split]
