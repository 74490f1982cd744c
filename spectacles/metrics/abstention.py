"""When the model abstains: for low confidence, by a threshold chosen on validation data, or out of distribution."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from spectacles.core.errors import UserError
from spectacles.metrics.basics import Bools, Float64s, Floats, Ints

AbstainReason = Literal["low_confidence", "out_of_distribution"]
NEVER = 2.0
"""A confidence that no prediction reaches."""


def certainty(probabilities: Floats, decided: Ints) -> Float64s:
    """The confidence of a decision, from probabilities (N, K): of classes (N,) the probability of the one decided on,
    and so of its being right; of labels (N, K) of 0 and 1 that of the least certain, had or not had.

    With a threshold below 0.5 that of class 1 may be low: labels near the threshold, given for the sake of recall, are
    the least certain ones.
    """
    exact = np.asarray(probabilities, dtype=np.float64)
    certain: Float64s = (
        np.where(decided == 1, exact, 1 - exact).min(axis=1)
        if decided.ndim == 2
        else exact[np.arange(len(exact)), decided]
    )
    return certain


def abstain_reason(
    confidence: float, confidence_threshold: float | None, ood_score: float | None, ood_threshold: float
) -> AbstainReason | None:
    """Why the model abstains; None where it does not. None for `ood_score`: it cannot be measured."""
    if ood_score is not None and ood_score > ood_threshold:
        return "out_of_distribution"
    return "low_confidence" if confidence_threshold is not None and confidence < confidence_threshold else None


def images_needed(accuracy: float) -> int:
    """Validation images needed at least before any prediction can be said to have this accuracy. Raises UserError for
    1."""
    if accuracy >= 1:
        raise UserError("--target_accuracy 1 cannot be shown by any number of images: use less, such as 0.99.")
    return math.ceil(1 / (1 - accuracy) - 1e-9) - 1


def choose_confidence(correct: Bools, confidences: Floats, accuracy: float) -> float:
    """The lowest confidence from which on predictions have this accuracy; NEVER where no confidence is enough.

    `correct` (N,) and `confidences` (N,), see `certainty`. With a low decision threshold, the model abstains between
    that and the confidence found here.

    Of all n images at least so confident, with e errors, (e + 1) / (n + 1) must be at most 1 - accuracy: as if one more
    image had been wrong, since a few images without an error do not show that there is none (the finite-sample
    correction of false discovery rates, Barber & Candes 2015). The largest such n counts; the confidence lies in the
    middle between the last one in and the first one out, and is 0 where all are in.
    """
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    falling, errors = np.asarray(confidences, dtype=np.float64)[order], np.cumsum(~np.asarray(correct)[order])
    kept = np.arange(1, len(order) + 1)
    last_of_tie = np.append(np.diff(falling) != 0, True)
    enough = np.flatnonzero(last_of_tie & ((errors + 1) / (kept + 1) <= 1 - accuracy + 1e-12))
    if not len(enough):
        return NEVER
    last = enough[-1]
    if last == len(order) - 1:
        return 0.0
    middle = (falling[last] + falling[last + 1]) / 2
    return float(middle if middle > falling[last + 1] else falling[last])
