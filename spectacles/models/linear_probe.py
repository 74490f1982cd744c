"""Logistic regression on frozen features: the head before fine-tuning (the first half of LP-FT, Kumar et al. 2022), and
probabilities for images that were left out of the fit."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.metrics import multilabel, probability_scores
from spectacles.models.feature_blocks import BlockNames, FeatureBlocks, last_layer

log = logging.getLogger("spectacles")
Fit = TypeVar("Fit")

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, from strong to weak regularisation; which is best depends on images, features and classes."""
CROSS_FIT_STRENGTHS = STRENGTHS[2:6]
"""A fit per fold and strength: the extremes are left out."""
HELD_OUT_FOLDS = 3
GAIN = 0.1
"""Share by which wider blocks must lower the log loss to be taken."""
ABSENT = -30.0
"""Bias of a class that training has no image of: a probability of about 1e-13."""
SMALL = 20_000
"""Images below which one BLAS thread is best: many small products, and where other processes compete for the cores,
threads waiting for each other cost 50x."""


@dataclass(frozen=True)
class Head:
    """logits = features @ weight.T + bias."""

    weight: np.ndarray
    """(K, D) float32."""
    bias: np.ndarray
    """(K,) float32."""
    strength: float
    train_loss: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K) float32."""
        logits: np.ndarray = features @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class CrossFit:
    """Out-of-fold probabilities, and what they were fitted to."""

    probabilities: np.ndarray
    """(N, K) float64, of rows that no fold could predict NaN."""
    blocks: BlockNames
    strength: float
    losses: dict[BlockNames, float]
    """Of each set of blocks that was tried, the lowest mean log loss in the first division."""

    @property
    def loss(self) -> float:
        return self.losses[self.blocks]


@dataclass(frozen=True)
class Regression:
    """Standardised multinomial logistic regression."""

    strength: float
    scales: np.ndarray | None = None
    """(D,): factors of the standardised features; the larger one is, the less its feature is regularised."""

    def fit(self, features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Pipeline:
        """(N, D), (N,), optional sample weights (N,)."""
        scaler, model = StandardScaler().fit(features), LogisticRegression(C=self.strength, max_iter=300)
        if self.scales is not None:
            scaler.scale_ = scaler.scale_ / self.scales
        with warnings.catch_warnings():  # the last digits decide nothing
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaler.transform(features), labels, sample_weight=weights)
        return make_pipeline(scaler, model)


def fit_head(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    weights: np.ndarray | None = None,
    scales: np.ndarray | None = None,
) -> Head:
    """The head of the regularisation with the lowest validation log loss; each pair is features (N, D) and labels, (N,)
    class indices or (N, K) of 0 and 1. `weights` (K,) are of classes, or of having a label against not having it;
    `scales` as in `Regression`.

    The search stops when validation has become worse twice. Raises UserError where training has images of one class
    only.
    """
    features, labels = train
    if labels.ndim == 1 and len(np.unique(labels)) < 2:
        raise UserError("the train split has images of only one class: give more images, or another --seed.")

    def fit(strength: float) -> tuple[float, Head]:
        head = _fit(features, labels, num_classes, weights, Regression(strength, scales))
        return log_loss(head.logits(val[0]), val[1]), head

    with threadpool_limits(1 if len(features) < SMALL else cpu_count()):
        return search_strength(fit, STRENGTHS, patience=2)


def search_strength(fit: Callable[[float], tuple[float, Fit]], strengths: Sequence[float], patience: int) -> Fit:
    """Of what `fit` gives, a loss and a result, the result with the lowest loss; from strong to weak regularisation,
    until the loss has not improved `patience` times."""
    lowest, best = fit(strengths[0])
    worse = 0
    for strength in strengths[1:]:
        loss, result = fit(strength)
        if loss < lowest:
            lowest, best, worse = loss, result, 0
        elif (worse := worse + 1) == patience:
            break
    return best


def cross_fit(
    features: FeatureBlocks,
    labels: np.ndarray,
    divisions: Sequence[np.ndarray],
    candidates: Sequence[BlockNames] | None = None,
    doubtful: float = 0.0,
) -> CrossFit:
    """Features, class indices (N,) or labels (N, K) of 0 and 1, and one or more divisions into folds (N,) ->
    probabilities (N, K), each row from fits to the other folds, averaged over the divisions.

    The blocks, of `candidates` or all, are those of the lowest log loss in the first division, if it is lower than that
    of the first candidate by GAIN. With `doubtful`, that share of the rows with the largest losses, whose labels may be
    wrong, is left out of the comparison, and it is made at equal regularisation: labels that are wrong where one layer
    sees similar images must not speak for that layer.
    The regularisation is the strongest whose weaker neighbour does not lower the log loss: the accuracy would choose
    more by chance. A row whose class occurs in no other fold is NaN. With several labels each is fitted by itself, with
    the same blocks and regularisation.
    """
    # Many small products: where other processes compete for the cores, BLAS threads waiting for each other cost 50x.
    with threadpool_limits(1):
        names = candidates or features.candidates()
        tried = [_search(features, names[0], labels, divisions[0], doubtful, None)]
        compare_at = tried[0].strength if doubtful else None
        tried += [_search(features, each, labels, divisions[0], doubtful, compare_at) for each in names[1:]]
        best = min(tried, key=lambda fit: fit.loss)
        best = best if best.loss < (1 - GAIN) * tried[0].loss else tried[0]
        others = [_fit_folds(features, best.blocks, labels, fold, best.strength) for fold in divisions[1:]]
    losses = {fit.blocks: fit.loss for fit in tried}
    mean = np.asarray(np.mean([best.probabilities, *others], axis=0))
    return replace(best, probabilities=mean, losses=losses)


def held_out_losses(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """(N,) float64: minus the log-likelihood of each image's class, or of its labels the mean, for a probe fitted to
    other images. An image that is the only one of its class counts as one that the probe knows nothing of."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % HELD_OUT_FOLDS
    probabilities = cross_fit(last_layer(features), labels, [fold]).probabilities
    if labels.ndim == 2:
        return multilabel.log_losses(labels, np.nan_to_num(probabilities, nan=0.5))
    return probability_scores.log_losses(labels, np.nan_to_num(probabilities, nan=0.0))


def _search(
    features: FeatureBlocks,
    names: BlockNames,
    labels: np.ndarray,
    fold: np.ndarray,
    doubtful: float,
    compare_at: float | None,
) -> CrossFit:
    """`losses` are of the regularisation that was found, or of `compare_at` if it was tried."""
    row_losses = _class_losses if labels.ndim == 1 else _label_losses
    compared = {}

    def fit(strength: float) -> tuple[float, CrossFit]:
        probabilities = _fit_folds(features, names, labels, fold, strength)
        losses = np.sort(row_losses(labels, probabilities))
        compared[strength] = _mean(losses[: len(losses) - int(doubtful * len(losses))])
        return _mean(losses), CrossFit(probabilities, names, strength, {})

    found = search_strength(fit, CROSS_FIT_STRENGTHS, patience=1)
    return replace(found, losses={names: compared.get(compare_at or found.strength, compared[found.strength])})


def _mean(losses: np.ndarray) -> float:
    return float(losses.mean()) if len(losses) else np.inf


def _fit_folds(
    features: FeatureBlocks, names: BlockNames, labels: np.ndarray, fold: np.ndarray, strength: float
) -> np.ndarray:
    """(N, K)."""
    values, regression = features.side_by_side(names), Regression(strength, features.scales(names))
    fit_folds = _fit_class_folds if labels.ndim == 1 else _fit_label_folds
    return fit_folds(values, labels, fold, regression)


def _fit_class_folds(features: np.ndarray, labels: np.ndarray, fold: np.ndarray, regression: Regression) -> np.ndarray:
    """(N, K) of classes."""
    probabilities = np.full((len(labels), int(labels.max(initial=0)) + 1), np.nan)
    for held_out in np.unique(fold):
        fitted = fold != held_out
        rows = np.flatnonzero(fold == held_out)
        rows = rows[np.isin(labels[rows], labels[fitted])]
        if len(rows) and len(np.unique(labels[fitted])) > 1:
            model = regression.fit(features[fitted], labels[fitted])
            probabilities[rows] = 0.0
            probabilities[np.ix_(rows, model.classes_)] = model.predict_proba(features[rows])
    return probabilities


def _class_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log losses of the rows that have probabilities."""
    given = probabilities[np.arange(len(labels)), labels]
    losses: np.ndarray = -np.log(np.maximum(given[~np.isnan(given)], 1e-12))
    return losses


def _fit_label_folds(features: np.ndarray, labels: np.ndarray, fold: np.ndarray, regression: Regression) -> np.ndarray:
    """(N, K) of labels."""
    probabilities = np.full(labels.shape, np.nan)
    for held_out in np.unique(fold):
        fitted, rows = fold != held_out, fold == held_out
        for place, has in enumerate(labels.T if fitted.any() else ()):
            probabilities[rows, place] = _label_probabilities(features[fitted], has[fitted], features[rows], regression)
    return probabilities


def _label_probabilities(
    features: np.ndarray, has: np.ndarray, others: np.ndarray, regression: Regression
) -> np.ndarray:
    """How probably the `others` (M, D) have a label; of one that all images or none have, only how often that is (rule
    of succession)."""
    if len(np.unique(has)) < 2:
        return np.full(len(others), (has.sum() + 1) / (len(has) + 2))
    probabilities: np.ndarray = regression.fit(features, has).predict_proba(others)[:, 1]
    return probabilities


def _label_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    known = ~np.isnan(probabilities).any(axis=1)
    return multilabel.log_losses(labels[known], probabilities[known])


def _fit(
    features: np.ndarray, labels: np.ndarray, num_classes: int, weights: np.ndarray | None, regression: Regression
) -> Head:
    weight = np.zeros((num_classes, features.shape[1]), dtype=np.float32)
    bias = np.full(num_classes, ABSENT, dtype=np.float32)
    if labels.ndim == 2:
        of_having = np.ones(num_classes) if weights is None else weights
        for place, has in enumerate(labels.T):
            weight[place], bias[place] = _fit_label(features, has, of_having[place], regression)
    else:
        model = regression.fit(features, labels, None if weights is None else weights[labels])
        coefficients, intercepts = _as_linear(model)
        if len(model.classes_) == 2:
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weight[model.classes_], bias[model.classes_] = coefficients, intercepts
    head = Head(weight, bias, regression.strength, 0.0)
    return replace(head, train_loss=log_loss(head.logits(features), labels))


def _fit_label(
    features: np.ndarray, has: np.ndarray, of_having: float, regression: Regression
) -> tuple[np.ndarray, np.ndarray]:
    """One row of the head; of a label that all images or none have, only how often that is (rule of succession)."""
    count, total = int(has.sum()), len(has)
    if count in (0, total):
        return np.zeros(features.shape[1]), np.log((count + 1) / (total - count + 1))
    weights = np.where(has == 1, of_having, 1.0)
    coefficients, intercepts = _as_linear(regression.fit(features, has, weights))
    return coefficients[0], intercepts[0]


def _as_linear(model: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Scaling and regression as one linear layer; of two classes, scikit-learn keeps the difference of the logits."""
    scaler: Any = model.named_steps["standardscaler"]
    regression: Any = model.named_steps["logisticregression"]
    coefficients = regression.coef_ / scaler.scale_
    return coefficients, regression.intercept_ - coefficients @ scaler.mean_


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of (N, K) logits: of class indices (N,), or of labels (N, K), the mean of those
    too."""
    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        return float((np.logaddexp(0, logits) - labels * logits).mean())
    logits -= logits.max(axis=1, keepdims=True)
    given = logits[np.arange(len(labels)), labels]
    return float((np.log(np.exp(logits).sum(axis=1)) - given).mean())
