"""What confidence is worth: accuracy without the least sure images, and of those that get a label."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectacles.core.wording import count_of, percent, percents
from spectacles.metrics import bootstrap
from spectacles.metrics.basics import Bools, Floats, Ints

POINTS = 200
"""Of a coverage curve at most."""
VERDICTS = ("unsure", "unfamiliar")


def selective(correct: Bools, certainty: Floats) -> dict[str, Any]:
    """Accuracy of the most certain images by the share of them, (N,) each; N at least 1.

    `coverage` rises to 1 in at most POINTS steps; `aurc` is the mean error rate over all N coverages (Geifman &
    El-Yaniv 2017), smaller is better, and its least value for that many errors is what is left if all errors were the
    least certain. Images that are equally certain count as if they came in random order.
    """
    count = len(correct)
    order = np.argsort(-np.asarray(certainty, dtype=np.float64), kind="stable")
    group = np.cumsum(np.append(False, np.diff(np.asarray(certainty)[order]) != 0))
    share = np.bincount(group, weights=np.asarray(correct)[order]) / np.bincount(group)
    accuracy = np.cumsum(share[group]) / np.arange(1, count + 1)
    ideal = np.cumsum(np.sort(correct)[::-1]) / np.arange(1, count + 1)
    shown = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.int64))
    return {
        "coverage": ((shown + 1) / count).tolist(),
        "accuracy": accuracy[shown].tolist(),
        "aurc": float(1 - accuracy.mean()),
        "aurc_least": float(1 - ideal.mean()),
    }


def by_verdict(correct: Bools, verdicts: Any, clusters: Ints, seed: int, resamples: int) -> dict[str, Any]:
    """How many of the images (N,) get no label and why, and the accuracy of those that get one (None without any)."""
    given = ~np.isin(verdicts, VERDICTS)
    right = np.asarray(correct)[given]
    return {verdict: int((verdicts == verdict).sum()) for verdict in VERDICTS} | {
        "labelled": {
            "images": int(given.sum()),
            "accuracy": float(right.mean()) if len(right) else None,
            "interval": bootstrap.share_interval(right, clusters[given], seed, resamples) if len(right) else None,
        }
    }


def sentence(found: dict[str, Any]) -> str:
    """What `by_verdict` found, for a person."""
    labelled = found["labelled"]
    away = " and ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
    if not labelled["images"]:
        return f"{away} and no image is left"
    return (
        f"{away or 'none unsure'}; of the other {count_of(labelled['images'], 'image')} "
        f"{percent(labelled['accuracy'])} are right ({percents(labelled['interval'])}, 95 %)"
    )
