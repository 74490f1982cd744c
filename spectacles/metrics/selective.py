"""Selective prediction: accuracy by coverage, and of the images on which the model does not abstain."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from spectacles.core.wording import count_of, percent, percents
from spectacles.metrics import bootstrap
from spectacles.metrics.abstention import AbstainReason
from spectacles.metrics.basics import Bools, Floats, Ints

POINTS = 200
"""Of a coverage curve at most."""
REASONS: tuple[AbstainReason, ...] = get_args(AbstainReason)


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


def by_abstention(correct: Bools, reasons: Any, clusters: Ints, seed: int, resamples: int) -> dict[str, Any]:
    """On how many of the images (N,) the model abstains, by reason ('' for none), and its accuracy on those that it
    answers (None without any)."""
    answered = ~np.isin(reasons, REASONS)
    right = np.asarray(correct)[answered]
    return {reason: int((reasons == reason).sum()) for reason in REASONS} | {
        "answered": {
            "images": int(answered.sum()),
            "accuracy": float(right.mean()) if len(right) else None,
            "interval": bootstrap.share_interval(right, clusters[answered], seed, resamples) if len(right) else None,
        }
    }


def sentence(found: dict[str, Any]) -> str:
    """The result of `by_abstention` for a person."""
    answered = found["answered"]
    abstained = sum(found[reason] for reason in REASONS)
    why = ", ".join(f"{found[reason]} {reason.replace('_', ' ')}" for reason in REASONS if found[reason])
    if not answered["images"]:
        return f"the model abstains on all {count_of(abstained, 'image')} ({why})"
    return (
        f"the model abstains on {count_of(abstained, 'image')}{f' ({why})' if why else ''}; of the other "
        f"{answered['images']:,} it gets {percent(answered['accuracy'])} right ({percents(answered['interval'])}, 95 %)"
    )
