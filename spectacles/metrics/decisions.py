"""From probabilities to decisions, and images with both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectacles.metrics.basics import Bools, Floats, Ints


def decide(probabilities: Floats, threshold: float | None) -> NDArray[np.int64]:
    """The project's one decision rule: `(N, K)` probabilities to `(N,)` class indices.

    With two classes and a threshold, class 1 if and only if its probability is at least the threshold; otherwise the
    most probable class, ties to the lowest index. A threshold is ignored unless there are exactly two classes.
    """
    # Compared as float64, or the same probability could fall on either side depending on the dtype it arrived in.
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if threshold is not None and probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    decided: NDArray[np.int64] = probabilities.argmax(axis=1)
    return decided


def decide_labels(probabilities: Floats, thresholds: Sequence[float] = ()) -> NDArray[np.int64]:
    """The decision rule where an image has any number of labels: `(N, K)` probabilities to `(N, K)` of 0 and 1, each
    label from its threshold on, 0.5 without one."""
    at_least = np.asarray(thresholds or 0.5, dtype=np.float64)
    return (np.asarray(probabilities, dtype=np.float64) >= at_least).astype(np.int64)


def is_correct(decided: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: which decisions are correct, of classes (N,), or of labels (N, K), all K of them."""
    equal: Any = np.asarray(decided == labels)
    return np.asarray(equal if equal.ndim == 1 else equal.all(axis=1))


@dataclass(frozen=True)
class Scored:
    """Labelled images with the model's probabilities and decisions."""

    labels: Ints
    """(N,) class indices, or (N, K) of 0 and 1 where an image has any number of labels."""
    probabilities: Floats
    """(N, K)."""
    predicted: Ints
    """As `labels`; the result of `decide` or `decide_labels`."""
    clusters: Ints
    """(N,) any numbers: images with the same one are resampled together."""

    @property
    def num_classes(self) -> int:
        return int(self.probabilities.shape[1])

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def class_support(self) -> Ints:
        """(K,): images of each class, or with each label."""
        if self.multi_label:
            return np.asarray(self.labels.sum(axis=0))
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def correct(self) -> Bools:
        """(N,): see `is_correct`."""
        return is_correct(self.predicted, self.labels)

    def subset(self, chosen: Bools) -> Scored:
        """The images where `chosen` (N,) is true."""
        return replace(
            self,
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            predicted=self.predicted[chosen],
            clusters=self.clusters[chosen],
        )
