"""The head fitted to convergence on frozen features (the first half of LP-FT, Kumar et al. 2022)."""

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError

log = logging.getLogger("spectacles")

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, from strong to weak regularisation; which is best depends on images, features and classes."""
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


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, strength: float, weights: np.ndarray | None = None, iterations: int = 300
) -> Pipeline:
    """Standardised multinomial logistic regression; (N, D), (N,), optional sample weights (N,)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
    with warnings.catch_warnings():  # the last digits decide nothing
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels, logisticregression__sample_weight=weights)
    return model


def fit_head(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    weights: np.ndarray | None = None,
) -> Head:
    """The head of the regularisation with the lowest validation log loss; each pair is features (N, D) and labels, (N,)
    class indices or (N, K) of 0 and 1. `weights` (K,) are of classes, or of having a label against not having it.

    Searches from strong to weak and stops when validation has become worse twice. Raises UserError where training has
    images of one class only.
    """
    features, labels = train
    if labels.ndim == 1 and len(np.unique(labels)) < 2:
        raise UserError("the train split has images of only one class: give more images, or another --seed.")
    best, lowest, worse = None, np.inf, 0
    with threadpool_limits(1 if len(features) < SMALL else cpu_count()):
        for strength in STRENGTHS:
            head = _fit(features, labels, num_classes, strength, weights)
            loss = log_loss(head.logits(val[0]), val[1])
            if loss < lowest:
                best, lowest, worse = head, loss, 0
            elif (worse := worse + 1) == 2:
                break
    assert best is not None
    return best


def _fit(
    features: np.ndarray, labels: np.ndarray, num_classes: int, strength: float, weights: np.ndarray | None
) -> Head:
    weight = np.zeros((num_classes, features.shape[1]), dtype=np.float32)
    bias = np.full(num_classes, ABSENT, dtype=np.float32)
    if labels.ndim == 2:
        of_having = np.ones(num_classes) if weights is None else weights
        for place, has in enumerate(labels.T):
            weight[place], bias[place] = _fit_label(features, has, strength, of_having[place])
    else:
        model = logistic_regression(features, labels, strength, None if weights is None else weights[labels])
        coefficients, intercepts = _as_linear(model)
        if len(model.classes_) == 2:
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weight[model.classes_], bias[model.classes_] = coefficients, intercepts
    head = Head(weight, bias, strength, 0.0)
    return replace(head, train_loss=log_loss(head.logits(features), labels))


def _fit_label(
    features: np.ndarray, has: np.ndarray, strength: float, of_having: float
) -> tuple[np.ndarray, np.ndarray]:
    """One row of the head; of a label that all images or none have, only how often that is (rule of succession)."""
    count, total = int(has.sum()), len(has)
    if count in (0, total):
        return np.zeros(features.shape[1]), np.log((count + 1) / (total - count + 1))
    weights = np.where(has == 1, of_having, 1.0)
    coefficients, intercepts = _as_linear(logistic_regression(features, has, strength, weights))
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
    own = logits[np.arange(len(labels)), labels]
    return float((np.log(np.exp(logits).sum(axis=1)) - own).mean())
