"""What other thresholds would give: each chosen on validation data for a goal, scored on other images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from spectacles.core.config import Goal
from spectacles.metrics import bootstrap, decision_threshold
from spectacles.metrics.basics import Bools, Float64s, Floats, Ints
from spectacles.metrics.bootstrap import divide

GOALS = (
    Goal("hter"),
    Goal("f1"),
    Goal("cost", costs=(1.0, 5.0)),
    Goal("cost", costs=(5.0, 1.0)),
    *(Goal("precision", least=share) for share in (0.95, 0.99)),
    *(Goal("recall", least=share) for share in (0.95, 0.99)),
)
NAMES = ("precision", "recall", "false_positive_rate", "hter")


@dataclass(frozen=True)
class Positives:
    """Images of two classes, seen from the positive one."""

    has: Bools
    """(N,): which are of the positive class."""
    scores: Floats
    """(N,): its probability."""
    clusters: Ints
    """(N,) any numbers: images with the same one are resampled together."""

    @property
    def both_occur(self) -> bool:
        return bool(self.has.any() and not self.has.all())


def operating_points(
    val: Positives, scored: Positives, in_use: float, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """A row for the threshold in use (`goal` "in use") and for each of GOALS: `goal`, `threshold`, whether validation
    data `reached` it, precision, recall, false_positive_rate and hter (None where undefined) and their `intervals`.

    The goals are empty of meaning without validation images of both classes: then there is the first row alone.
    """
    rows: list[dict[str, Any]] = [{"goal": "in use", "threshold": in_use, "reached": True}]
    for goal in GOALS if val.both_occur else ():
        choice = decision_threshold.choose(goal, val.has.astype(np.int64), val.scores)
        rows.append({"goal": str(goal), "threshold": choice.threshold, "reached": choice.reached})
    claimed = np.asarray(scored.scores, dtype=np.float64) >= np.array([row["threshold"] for row in rows])[:, None]
    measured = _rates(_counts(claimed, scored.has).sum(axis=2)[..., None])
    columns = sparse.csr_matrix(_counts(claimed, scored.has).reshape(-1, len(scored.has)))
    sums = bootstrap.resampled_sums(columns, scored.clusters, seed, resamples)
    drawn = _rates(sums.reshape(4, len(rows), -1))
    for number, row in enumerate(rows):
        values = {name: float(measured[name][number, 0]) for name in NAMES}
        row |= {name: None if np.isnan(value) else value for name, value in values.items()}
        row["intervals"] = {
            name: bootstrap.percentile_interval(drawn[name][number]) for name in NAMES if row[name] is not None
        } | _exact(claimed[number], scored)
    return rows


def _counts(claimed: Bools, has: Bools) -> Float64s:
    """(4, T, N) of 0 and 1 for T thresholds: true positives, false positives, false negatives, true negatives."""
    return np.stack([claimed & has, claimed & ~has, ~claimed & has, ~claimed & ~has]).astype(np.float64)


def _rates(sums: Float64s) -> dict[str, Float64s]:
    """Sums (4, T, R) in the order of `_counts` -> each of NAMES (T, R), NaN where undefined."""
    hits, false_alarms, misses, rejections = sums
    fall_out, miss_rate = divide(false_alarms, false_alarms + rejections), divide(misses, hits + misses)
    return {
        "precision": divide(hits, hits + false_alarms),
        "recall": 1 - miss_rate,
        "false_positive_rate": fall_out,
        "hter": (fall_out + miss_rate) / 2,
    }


def _exact(claimed: Bools, scored: Positives) -> dict[str, list[float]]:
    """Of shares of 0 and 1, in which all resamples are alike."""
    parts = {"precision": (scored.has, claimed), "recall": (claimed, scored.has),
             "false_positive_rate": (claimed, ~scored.has)}  # fmt: skip
    shares = {name: (right[among], scored.clusters[among]) for name, (right, among) in parts.items() if among.any()}
    return {
        name: bootstrap.clopper_pearson(float(right.mean()), len(np.unique(clusters)))
        for name, (right, clusters) in shares.items()
        if right.all() or not right.any()
    }
