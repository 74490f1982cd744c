"""Two models on the same images."""

from scipy.stats import binomtest

from spectacles.metrics.basics import Bools


def mcnemar(this: Bools, that: Bools) -> tuple[float, int, int]:
    """(two-sided exact p, images only this is right on, images only that is right on) of correctness (N,) each."""
    only_this, only_that = int((this & ~that).sum()), int((that & ~this).sum())
    discordant = only_this + only_that
    p_value = float(binomtest(only_this, discordant).pvalue) if discordant else 1.0
    return p_value, only_this, only_that


def p_worse(before: Bools, after: Bools) -> float:
    """One-sided exact McNemar test: that chance alone makes `after` so much less often right than `before`, (N,)
    each."""
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return float(binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0
