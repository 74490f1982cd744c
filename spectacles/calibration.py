"""From logits to probabilities that mean what they say (Guo et al. 2017), in plain numpy."""

from __future__ import annotations

import math

import numpy as np

from spectacles.metrics import Float64s, Floats, Ints


def softmax(logits: Floats, temperature: float = 1.0) -> Float64s:
    """Probabilities `(N, K)` in float64 from logits `(N, K)` divided by the temperature."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Float64s = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


ENOUGH = 50
"""Validation images below which a fitted temperature is noise (it overfits to 0 or infinity) and 1 is kept."""


def temperature_for(logits: Floats, labels: Ints) -> float:
    """The fitted temperature, and 1 where there are fewer than ENOUGH images.

    Targets are smoothed by 1 / (N + 2), as if one more image had been wrong (Platt 1999): that no validation image is
    wrong does not make the model infallible.
    """
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
    own = logits[np.arange(len(labels)), labels]
    others = (logits.sum(axis=1) - own) / max(1, logits.shape[1] - 1)
    true = ((1 - smoothing) * own + smoothing * others).mean()

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
