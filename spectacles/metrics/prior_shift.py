"""Probabilities under another class mix than the one they were fitted to (Saerens, Latinne and Decaestecker 2002)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spectacles.core.errors import UserError
from spectacles.core.wording import percent
from spectacles.metrics.basics import Float64s, Floats, Ints

NORM = 1e-6
"""By which shares that are meant to add up to 1 may miss it."""
NAMED = 10
"""Classes in a sentence, at most."""
LEAST = 1e-6
"""Share of a class without a training image: its odds can be multiplied."""


def parse(text: str, classes: Sequence[str], fitted: Sequence[float], multi_label: bool) -> list[float]:
    """`1=0.5` or `cat=0.2,dog=0.3` -> the share of each class, 0..1, in the order of `classes`.

    Classes that are not named share the rest in the proportions of `fitted`; with any number of labels per image they
    keep their share. Raises UserError.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        if name not in classes or not equals:
            raise UserError(f"--prior {text!r}: {name or part!r} is not one of the classes {', '.join(classes[:20])}.")
        if name in shares:
            raise UserError(f"--prior {text!r} names {name!r} twice.")
        shares[name] = _share(text, number)
    if multi_label:
        return [shares.get(name, share) for name, share in zip(classes, fitted, strict=True)]
    rest, others = 1 - sum(shares.values()), sum(f for n, f in zip(classes, fitted, strict=True) if n not in shares)
    if rest < -NORM or (len(shares) == len(classes) and rest > NORM) or (len(shares) < len(classes) and rest <= NORM):
        raise UserError(f"--prior {text!r}: the shares of all classes must add up to 1, each above 0.")
    return [
        shares[name] if name in shares else max(0.0, rest) * share / others
        for name, share in zip(classes, fitted, strict=True)
    ]


def _share(text: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UserError(f"--prior {text!r}: {number!r} is not a share between 0 and 1.")
    return share


def fitted_shares(labels: Ints, num_classes: int, weights: Floats | None) -> tuple[float, ...]:
    """The share of each class (K,) that a network trained on `labels` takes for granted, of class indices (N,) or
    labels (N, K) of 0 and 1, with the loss's `weights` (K,): those of `cross_entropy`, or `pos_weight`."""
    each = np.ones(num_classes) if weights is None else np.asarray(weights, dtype=np.float64)
    if labels.ndim == 2:
        having = each * labels.sum(axis=0)
        shares = having / np.maximum(having + len(labels) - labels.sum(axis=0), 1)
    else:
        counted = each * np.bincount(labels, minlength=num_classes)
        shares = counted / counted.sum()
    return tuple(shares.clip(LEAST, 1 - LEAST).tolist())


def biases(fitted: Sequence[float], actual: Sequence[float], multi_label: bool) -> Float64s:
    """(K,): what to add to the logits of probabilities under the class shares `fitted` to have them under `actual`.

    What each class looks like is taken to be the same, so p(k | x) changes in proportion to its share; with any number
    of labels per image the odds of each label change by themselves.
    """
    before, after = np.asarray(fitted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    moved: Float64s = np.log(after) - np.log(before)
    return moved - (np.log1p(-after) - np.log1p(-before)) if multi_label else moved


def sentence(classes: Sequence[str], shares: Sequence[float]) -> str:
    """The largest shares first, in words."""
    largest = sorted(zip(shares, classes, strict=True), reverse=True)[:NAMED]
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    return ", ".join(f"{percent(share)} {name!r}" for share, name in largest) + more
