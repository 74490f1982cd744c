"""Calibration fitted to validation data: the temperature, and vector scaling where it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from spectacles.metrics.basics import Float64s, Floats, Ints
from spectacles.metrics.calibration import Calibration, scale, softmax

ENOUGH = 50
"""Validation images below which a fitted temperature is noise (it overfits to 0 or infinity) and 1 is kept."""
ENOUGH_A_CLASS = 10
"""Validation images a class, on average, below which vector scaling is not tried: it has two numbers a class."""
FOLDS = 5
MARGIN = 2.0
"""Standard errors by which vector scaling must be better than the temperature alone on images it was not fitted to."""
SPREAD = 0.5
"""Standard deviation of the normal prior that holds scales near 1 and biases near 0."""
LARGEST = 2_000_000
"""Logits that vector scaling is fitted to at most; of more images every second, third ... is taken."""


def fit(logits: Floats, labels: Ints) -> Calibration:
    """What to serve with, from validation logits `(N, K)`: the temperature, and where that is better, vector scaling.

    Vector scaling is kept where it has the lower log loss in a FOLDS-fold cross-validation, by more than MARGIN
    standard errors of the difference. With two classes it is never tried: a threshold has the same effect.
    Labels `(N, K)` of 0 and 1 have a scale and a bias each wherever there are ENOUGH images.
    """
    temperature = temperature_for(logits, labels)
    if labels.ndim == 2:
        few = len(labels) < ENOUGH
        return Calibration(multi_label=True) if few else fit_labels(logits, labels, temperature)
    if len(labels) < max(ENOUGH, ENOUGH_A_CLASS * logits.shape[1]) or logits.shape[1] == 2:
        return Calibration(temperature)
    step = -(-logits.size // LARGEST)
    logits, labels = np.asarray(logits, dtype=np.float64)[::step], np.asarray(labels)[::step]
    gain = np.concatenate([_gain(logits, labels, fold) for fold in _folds(labels)])
    if gain.mean() <= MARGIN * gain.std(ddof=1) / math.sqrt(len(gain)):
        return Calibration(temperature)
    return fit_vector(logits, labels, temperature)


def temperature_for(logits: Floats, labels: Ints) -> float:
    """The fitted temperature, and 1 where there are fewer than ENOUGH images.

    Targets are smoothed by 1 / (N + 2), as if one more image had been wrong (Platt 1999): that no validation image is
    wrong does not make the model infallible. Labels `(N, K)` count as N * K images, each of two classes.
    """
    if len(labels) >= ENOUGH and labels.ndim == 2:
        flat = np.asarray(logits, dtype=np.float64).ravel()
        return fit_temperature(np.stack([np.zeros(len(flat)), flat], axis=1), labels.ravel(), 1 / (len(labels) + 2))
    return fit_temperature(logits, labels, 1 / (len(labels) + 2)) if len(labels) >= ENOUGH else 1.0


def fit_temperature(logits: Floats, labels: Ints, smoothing: float = 0.0) -> float:
    """Temperature in [0.05, 20] that minimises the NLL of validation logits `(N, K)` (Guo et al. 2017).

    Rows with a non-finite logit are left out; without any usable row, or where no temperature is better than another,
    the answer is 1. The bounds are reached when every row is right (0.05, without smoothing) or none is (20).
    `smoothing` is the share of each target that goes to the other classes in equal parts.
    """
    logits = np.asarray(logits, dtype=np.float64)
    usable = np.isfinite(logits).all(axis=1)
    logits, labels = logits[usable], np.asarray(labels)[usable]
    if not len(labels):
        return 1.0
    logits = logits - logits.max(axis=1, keepdims=True)
    given = logits[np.arange(len(labels)), labels]
    others = (logits.sum(axis=1) - given) / max(1, logits.shape[1] - 1)
    true = ((1 - smoothing) * given + smoothing * others).mean()

    def slope(temperature: float) -> float:
        """Derivative of the NLL by 1 / temperature: expected minus observed logit."""
        return float((softmax(logits, temperature) * logits).sum(axis=1).mean() - true)

    if slope(1.0) == 0.0:
        return 1.0
    # The NLL is convex in 1 / temperature, so its slope changes sign once and halving the interval finds the place.
    low, high = math.log(0.05), math.log(20.0)
    for _ in range(30):
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def fit_vector(logits: Floats, labels: Ints, temperature: float) -> Calibration:
    """Vector scaling (Guo et al. 2017) of finite logits `(N, K)`: the temperature, and a scale and a bias a class.

    Maximum a posteriori: the NLL, with targets smoothed as in `temperature_for`, plus normal priors of standard
    deviation SPREAD around scale 1 and bias 0, which are the temperature alone. Scales stay positive.
    """
    tempered = np.asarray(logits, dtype=np.float64) / temperature
    count, classes = tempered.shape
    smoothing = 1 / (count + 2)
    targets = np.full((count, classes), smoothing / (classes - 1))
    targets[np.arange(count), labels] = 1 - smoothing
    neutral = np.concatenate([np.ones(classes), np.zeros(classes)])

    def loss(parameters: Float64s) -> tuple[float, Float64s]:
        scaled = scale(tempered, parameters[:classes], parameters[classes:])
        scaled -= scaled.max(axis=1, keepdims=True)
        log_probabilities = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        slopes = (np.exp(log_probabilities) - targets) / count
        away = (parameters - neutral) / (count * SPREAD**2)
        value = -(targets * log_probabilities).sum() / count + away @ (parameters - neutral) / 2
        return float(value), np.concatenate([(slopes * tempered).sum(axis=0), slopes.sum(axis=0)]) + away

    return _minimise(loss, neutral, temperature)


def fit_labels(logits: Floats, labels: Ints, temperature: float) -> Calibration:
    """The temperature, and a scale and a bias a label, from finite logits and labels `(N, K)` of 0 and 1: as
    `fit_vector`, of each label by itself."""
    tempered = np.asarray(logits, dtype=np.float64) / temperature
    count, classes = tempered.shape
    smoothing = 1 / (count + 2)
    targets = np.abs(np.asarray(labels) - smoothing)
    neutral = np.concatenate([np.ones(classes), np.zeros(classes)])

    def loss(parameters: Float64s) -> tuple[float, Float64s]:
        scaled = scale(tempered, parameters[:classes], parameters[classes:])
        slopes = (expit(scaled) - targets) / count
        away = (parameters - neutral) / (count * SPREAD**2)
        value = (np.logaddexp(0, scaled) - targets * scaled).sum() / count + away @ (parameters - neutral) / 2
        return float(value), np.concatenate([(slopes * tempered).sum(axis=0), slopes.sum(axis=0)]) + away

    return _minimise(loss, neutral, temperature, multi_label=True)


def _minimise(
    loss: Callable[[Float64s], tuple[float, Float64s]], neutral: Float64s, temperature: float, multi_label: bool = False
) -> Calibration:
    """From scales of 1 and biases of 0; scales stay positive."""
    classes = len(neutral) // 2
    bounds = [(0.05, None)] * classes + [(None, None)] * classes
    found = minimize(loss, neutral, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100}).x.tolist()
    return Calibration(temperature, tuple(found[:classes]), tuple(found[classes:]), multi_label)


def _folds(labels: Ints) -> Iterator[np.ndarray]:
    """(N,) bool a fold, where it is held out; every class is spread over all of them."""
    fold = np.empty(len(labels), dtype=np.int64)
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return (fold == number for number in range(FOLDS))


def _gain(logits: Float64s, labels: Ints, held_out: np.ndarray) -> Float64s:
    """How much lower the log loss of each held-out image is with vector scaling than with the temperature alone."""
    temperature = temperature_for(logits[~held_out], labels[~held_out])
    ways = Calibration(temperature), fit_vector(logits[~held_out], labels[~held_out], temperature)
    rows = np.arange(held_out.sum())
    plain, vector = (np.log(way.probabilities(logits[held_out])[rows, labels[held_out]].clip(1e-300)) for way in ways)
    gain: Float64s = vector - plain
    return gain
