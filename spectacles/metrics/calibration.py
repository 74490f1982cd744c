"""From logits to calibrated probabilities (Guo et al. 2017): temperature and vector scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectacles.metrics.basics import Float64s, Floats


@dataclass(frozen=True)
class Calibration:
    """logits z (N, K) -> softmax(scales * z / temperature + biases); without scales the temperature alone. Where an
    image has any number of labels, the sigmoid of the same (Platt 1999, for each label)."""

    temperature: float = 1.0
    scales: tuple[float, ...] = ()
    """One per class, or none."""
    biases: tuple[float, ...] = ()
    multi_label: bool = False

    def probabilities(self, logits: Floats) -> Float64s:
        """(N, K) -> (N, K) float64."""
        squash = sigmoid if self.multi_label else softmax
        if not self.scales:
            return squash(logits, self.temperature)
        return squash(scale(np.asarray(logits, dtype=np.float64) / self.temperature, self.scales, self.biases))


def softmax(logits: Floats, temperature: float = 1.0) -> Float64s:
    """Probabilities `(N, K)` in float64 from logits `(N, K)` divided by the temperature."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Float64s = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: Floats, temperature: float = 1.0) -> Float64s:
    """Probabilities `(N, K)` in float64, of each label by itself, from logits `(N, K)` divided by the temperature."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    small = np.exp(-np.abs(scaled))  # of neither sign too large
    probabilities: Float64s = np.where(scaled >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities


def scale(tempered: Float64s, scales: Float64s | tuple[float, ...], biases: Float64s | tuple[float, ...]) -> Float64s:
    """Logits (N, K) divided by the temperature -> the same times a scale plus a bias per class."""
    scaled: Float64s = tempered * np.asarray(scales) + np.asarray(biases)
    return scaled
