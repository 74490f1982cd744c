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
    data `reached` it, precision, recall, false_positive_rate and hter (None where undefined) and their `intervals`;
    for costs also the mean `cost` per image and `cost_in_use`, that of the threshold in use.

    Without validation images of both classes no threshold can be chosen: then there is the first row alone.
    """
    goals = GOALS if val.both_occur else ()
    choices = [decision_threshold.choose(goal, val.has.astype(np.int64), val.scores) for goal in goals]
    rows: list[dict[str, Any]] = [{"goal": "in use", "threshold": in_use, "reached": True}]
    rows += [
        {"goal": str(goal), "threshold": choice.threshold, "reached": choice.reached}
        for goal, choice in zip(goals, choices, strict=True)
    ]
    claimed = np.asarray(scored.scores, dtype=np.float64) >= np.array([row["threshold"] for row in rows])[:, None]
    counts = _counts(claimed, scored.has)
    totals = counts.sum(axis=2)
    for number, goal in enumerate(goals, 1):
        if goal.name == "cost":
            costs = goal.costs @ totals[1:3] / len(scored.has)  # (T,)
            rows[number] |= {"cost": float(costs[number]), "cost_in_use": float(costs[0])}
    measured = _rates(totals[..., None])
    columns = sparse.csr_matrix(counts.reshape(-1, len(scored.has)))
    sums = bootstrap.resampled_sums(columns, scored.clusters, seed, resamples)
    drawn = _rates(sums.reshape(4, len(rows), -1))
    for number, row in enumerate(rows):
        values = {name: float(measured[name][number, 0]) for name in NAMES}
        row |= {name: None if np.isnan(value) else value for name, value in values.items()}
        row["intervals"] = {
            name: bootstrap.percentile_interval(drawn[name][number]) for name in NAMES if row[name] is not None
        }
        _correct_shares_of_all_and_none(row, claimed[number], scored)
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


def _correct_shares_of_all_and_none(row: dict[str, Any], claimed: Bools, scored: Positives) -> None:
    """Exact intervals for shares of 0 and 1, in which all resamples are alike, and for the HTER of two such rates."""
    parts = {"precision": (scored.has, claimed), "recall": (claimed, scored.has),
             "false_positive_rate": (claimed, ~scored.has)}  # fmt: skip
    intervals, before = row["intervals"], dict(row["intervals"])
    for name, (right, among) in parts.items():
        if among.any():
            intervals[name] = bootstrap.exact_if_unanimous(intervals[name], right[among], scored.clusters[among])
    if row["hter"] is not None and intervals != before:
        low, high = intervals["recall"]
        rates = [row["false_positive_rate"], 1 - row["recall"]]
        intervals["hter"] = bootstrap.mean_of_two(rates, [intervals["false_positive_rate"], [1 - high, 1 - low]])
