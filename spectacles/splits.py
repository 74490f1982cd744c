"""Stratified, seeded splitting that never tears a cluster (a person, near-duplicates) apart."""

from collections.abc import Sequence

import numpy as np


def stratified_split(labels: np.ndarray, clusters: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """(N,) class indices and cluster numbers -> (N,) split numbers 0..len(fractions)-1.

    Clusters are visited from large to small, equal ones in seeded order; each goes where its classes are missing most,
    measured against `fractions` of each class (greedy, as in Sechidis et al. 2011). With clusters of one image the
    class counts of every split are within one of the exact share.
    """
    members, counts = _cluster_counts(labels, clusters)
    order = np.random.default_rng(seed).permutation(len(members))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    missing = np.outer(np.asarray(fractions, dtype=np.float64), counts.sum(axis=0))
    totals = np.maximum(counts.sum(axis=0), 1)
    split = np.empty(len(labels), dtype=np.int64)
    for cluster in order:
        own = counts[cluster]
        # How much of this cluster each split still wants, in shares of what it was promised of each class.
        want = (own * missing / totals).sum(axis=1)
        want[np.asarray(fractions) <= 0] = -np.inf
        chosen = int(np.argmax(want))
        missing[chosen] -= own
        split[members[cluster]] = chosen
    return split


def _cluster_counts(labels: np.ndarray, clusters: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Members of each cluster, and its images a class (M, K)."""
    _, numbers = np.unique(clusters, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    counts = np.zeros((len(members), int(labels.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(counts, (numbers, labels), 1)
    return members, counts
