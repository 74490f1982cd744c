"""Stratified, seeded splits that keep clusters (a person, near duplicates) whole and respect splits that were given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.core.run_dir import find_run
from spectacles.data import label_sets, schemas

SPLITS = ("train", "val", "test")
RANK = {split: rank for rank, split in enumerate(SPLITS)}


def stratified_split(labels: np.ndarray, clusters: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """(N,) class indices, or (N, K) of 0 and 1, and cluster numbers (N,) -> (N,) split numbers 0..len(fractions)-1.

    Clusters are assigned from large to small, equal ones in seeded order; each goes to the split that lacks its classes
    most, measured against `fractions` of each class (greedy, as in Sechidis et al. 2011). With clusters of one image
    the class counts of every split are within one of the exact share. With several labels per image, "no label" and
    "any image" are stratified like two more labels, and images with the rarest label go first: they leave least choice.
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
    # Labels come in all combinations, so all splits are filled in step; with one class an image the shares come out
    # exact in any order.
    totals = np.maximum(missing if labels.ndim == 2 else of_class, 1e-9)
    closed = np.asarray(fractions) <= 0
    split = np.empty(len(labels), dtype=np.int64)
    for cluster in order:
        place = slice(counts.indptr[cluster], counts.indptr[cluster + 1])
        present, images = counts.indices[place], counts.data[place]
        # How much of this cluster each split still lacks, relative to its target for each class.
        lack = (images * missing[:, present] / totals[..., present]).sum(axis=1)
        lack[closed] = -np.inf
        chosen = int(np.argmax(lack))
        missing[chosen, present] -= images
        split[members[cluster]] = chosen
    return split


def _cluster_counts(labels: np.ndarray, clusters: np.ndarray) -> tuple[list[np.ndarray], Any]:
    """Members of each cluster, and its images per class (M, K), sparse: of 10,000 classes a cluster has one or two."""
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


def check_fractions(config: DatasetConfig) -> None:
    """Raises UserError."""
    test_fraction = config.test_fraction or 0.0
    if not (0 < config.val_fraction < 1 and 0 <= test_fraction < 1 and config.val_fraction + test_fraction < 0.95):
        raise UserError(
            f"--val_fraction {config.val_fraction} and --test_fraction {test_fraction}: both must be shares of the "
            "images (0.15 is 15 %), validation above 0, together below 0.95."
        )


def assign_splits(
    used: pd.DataFrame, previous: "pd.Series[str]", classes: list[str], multi_label: bool, config: DatasetConfig
) -> "pd.Series[str]":
    """train, val or test for each row of the index in `used`, which has its `cluster`.

    Splits that were given stay, then those of `previous` ('' for none), and a cluster follows those of its members. The
    rest is divided so that clusters stay whole and classes keep their shares. Raises UserError for an empty split.
    """
    split, cluster = used["given_split"].copy(), used["cluster"]
    given = set(split)
    val_fraction = 0.0 if "val" in given else config.val_fraction
    test_fraction = config.test_fraction if config.test_fraction is not None else 0.0 if "test" in given else 0.15
    free = split.isin(["", "train"])
    split = split.mask(free, previous)
    decided = split[free & (split != "")].groupby(cluster).first()
    following = (split == "") & cluster.isin(decided.index)
    split[following] = decided.reindex(cluster[following]).to_numpy()
    undecided = (split == "").to_numpy()
    codes = label_sets.encode(used.loc[undecided, "label"], classes, multi_label)
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    # By content, not by row: the same images are split the same way in whatever order they are listed.
    order = np.argsort(used.loc[undecided, "sha256"].to_numpy(dtype=str), kind="stable")
    ordered = pd.factorize(cluster.to_numpy()[undecided][order])[0]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = stratified_split(codes[order], ordered, fractions, config.seed)
    split[undecided] = np.array(SPLITS)[numbers]
    for name in ("train", "val"):
        if not (split == name).any():
            raise UserError(
                f"no image is left for the {name} split: give more images of each class, or another --val_fraction."
            )
    return split


def previous_splits(digests: "pd.Series[str]", name: str, output_dir: Path) -> tuple["pd.Series[str]", str]:
    """The split that each content had in the run of that name, '' for new ones, and a sentence about it."""
    try:
        path = find_run(output_dir, name).splits if name else None
    except UserError:
        path = None
    if path is None or not path.is_file():
        reason = f"there is no run {name!r} below {output_dir}" if name else "the label fixes name no run"
        sentence = f"images are split anew, because {reason}: scores before and after are of different images"
        return pd.Series("", index=digests.index), sentence
    table = schemas.SPLIT_ROWS.read(path, ["sha256", "split"])
    # A content in two given splits: the one that was ours to choose was not test.
    ranked = table.sort_values("split", key=lambda split: split.map(RANK), kind="stable")
    known = ranked.drop_duplicates("sha256").set_index("sha256")["split"]
    previous = known.reindex(digests, fill_value="").set_axis(digests.index)
    new = int((previous == "").sum())
    return previous, f"splits are those of the run {name}" + (f", except for {new} new images" if new else "")
