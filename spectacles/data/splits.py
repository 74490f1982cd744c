"""Stratified, seeded splitting that never tears a cluster (a person, near-duplicates) apart; and splits of before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from spectacles.core.errors import UserError
from spectacles.core.run_dir import find_run

RANK = {"train": 0, "val": 1, "test": 2}


def stratified_split(labels: np.ndarray, clusters: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """(N,) class indices, or (N, K) of 0 and 1, and cluster numbers (N,) -> (N,) split numbers 0..len(fractions)-1.

    Clusters are visited from large to small, equal ones in seeded order; each goes where its classes are missing most,
    measured against `fractions` of each class (greedy, as in Sechidis et al. 2011). With clusters of one image the
    class counts of every split are within one of the exact share. Where an image may have several labels, having none
    of them and being an image count as two more, and images with the rarest label go first: they leave least choice.
    """
    members, counts = _cluster_counts(labels, clusters)
    of_class = np.asarray(counts.sum(axis=0)).ravel()
    order = np.random.default_rng(seed).permutation(len(members))
    if labels.ndim == 2:
        rarest = np.minimum.reduceat(of_class[counts.indices], counts.indptr[:-1]) if len(members) else of_class
        order = order[np.argsort(rarest[order], kind="stable")]
    sizes = np.array([len(images) for images in members])
    order = order[np.argsort(-sizes[order], kind="stable")]
    missing = np.outer(np.asarray(fractions, dtype=np.float64), of_class)
    # Labels come in all combinations, so every split is filled at the same pace; with one class an image, exact shares
    # come out whatever the pace.
    totals = np.maximum(missing if labels.ndim == 2 else of_class, 1e-9)
    closed = np.asarray(fractions) <= 0
    split = np.empty(len(labels), dtype=np.int64)
    for cluster in order:
        place = slice(counts.indptr[cluster], counts.indptr[cluster + 1])
        present, own = counts.indices[place], counts.data[place]
        # How much of this cluster each split still wants, in shares of what it was promised of each class.
        want = (own * missing[:, present] / totals[..., present]).sum(axis=1)
        want[closed] = -np.inf
        chosen = int(np.argmax(want))
        missing[chosen, present] -= own
        split[members[cluster]] = chosen
    return split


def _cluster_counts(labels: np.ndarray, clusters: np.ndarray) -> tuple[list[np.ndarray], Any]:
    """Members of each cluster, and its images a class (M, K), sparse: of 10,000 classes a cluster has one or two."""
    _, numbers = np.unique(clusters, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []
    if labels.ndim == 2:
        rows, columns = np.nonzero(np.column_stack([labels, labels.sum(axis=1) == 0, np.ones(len(labels))]))
        shape = (len(members), labels.shape[1] + 2)
    else:
        rows, columns = np.arange(len(labels)), labels
        shape = (len(members), int(labels.max(initial=-1)) + 1)
    ones = np.ones(len(rows), dtype=np.int64)
    counts = sparse.coo_array((ones, (numbers[rows], columns)), shape=shape).tocsr()
    counts.sum_duplicates()
    return members, counts


def kept_splits(digests: "pd.Series[str]", name: str, output_dir: Path) -> tuple["pd.Series[str]", str]:
    """The split that each content had in the run of that name, '' where it was not there, and a sentence about it."""
    try:
        before = find_run(output_dir, name).splits if name else None
    except UserError:
        before = None
    if before is None or not before.is_file():
        unknown = f"{name!r} is no run below {output_dir}" if name else "the label fixes name no run"
        sentence = f"splits are drawn anew, because {unknown}: scores before and after are of other images"
        return pd.Series("", index=digests.index), sentence
    table = pd.read_csv(before, dtype=str, usecols=["sha256", "split"], keep_default_na=False)
    # A content in two splits stood on both sides of a given border: what could be divided was not in test.
    ranked = table.sort_values("split", key=lambda split: split.map(RANK), kind="stable")
    known = ranked.drop_duplicates("sha256").set_index("sha256")["split"]
    kept = known.reindex(digests, fill_value="").set_axis(digests.index)
    fresh = int((kept == "").sum())
    return kept, f"splits are those of the run {name}" + (f", but for {fresh} new images" if fresh else "")
