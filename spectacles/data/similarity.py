"""Images whose features are alike: every pair of a small set is compared, of a large one those in cells close by."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.linalg import cholesky, solve_triangular

from spectacles.core.progress import progress

EXACT = 20_000
"""Images up to which every pair is compared, which takes seconds."""
LOOK_UPS = 8
"""Cells in which each image of a larger set is looked for: among 100,000 images that finds 97 % of the planted pairs
and compares a tenth of all."""
BLOCK = 2048


def centred(features: np.ndarray) -> np.ndarray:
    """(N, D) -> float32 (N, D) of unit length, after subtracting the mean: what all images of a set have in common
    would make every pair look alike. Features that are the mean itself become zero."""
    values = _without_mean(features)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units: np.ndarray = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    return units


def _without_mean(features: np.ndarray) -> np.ndarray:
    values: np.ndarray = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return values


def prepare_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Features (N, D) -> (directions (N, D) float32 of unit length, nearest cells (N, LOOK_UPS) or None up to EXACT).

    The cosine of two directions is that of the features under the metric (C + r I)^-1, C being the set's covariance:
    what all its images differ in anyway (the pose of aligned faces, cats against dogs) counts little. r is the mean
    variance, and more where N < D, because then C is known badly (ridge, as in Ledoit and Wolf 2004). So measured,
    strangers stay below 0.52 in sets of 4 to 3,600 images, where plain cosines of 0.85 occur between aligned faces.
    """
    values = _without_mean(features)
    cells = None if len(values) <= EXACT else nearest_cells(values)
    covariance = (values.T @ values).astype(np.float64) / len(values)
    dim = values.shape[1]
    ridge = max(np.trace(covariance) / dim * max(1.0, dim / len(values)), np.finfo(np.float32).tiny)
    root = cholesky(covariance + ridge * np.eye(dim), lower=True)
    whitening = solve_triangular(root, np.eye(dim), lower=True).T.astype(np.float32)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK] @ whitening
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        values[start : start + BLOCK] = np.divide(block, lengths, out=np.zeros_like(block), where=lengths > 0)
    return values, cells


def nearest_cells(values: np.ndarray) -> np.ndarray:
    """(N, LOOK_UPS) cells, nearest first, around sqrt(N) images drawn at random: cells by k-means took minutes where
    these take seconds, and found 0.6 % more of the pairs."""
    drawn = np.random.default_rng(0).choice(len(values), max(LOOK_UPS, int(len(values) ** 0.5)), replace=False)
    centres = values[drawn] / np.maximum(np.linalg.norm(values[drawn], axis=1, keepdims=True), 1e-12)
    nearest = np.empty((len(values), LOOK_UPS), dtype=np.int32)
    for start in range(0, len(values), BLOCK):
        close = values[start : start + BLOCK] @ centres.T
        best = np.argpartition(-close, LOOK_UPS - 1, axis=1)[:, :LOOK_UPS]
        order = np.argsort(-np.take_along_axis(close, best, axis=1), axis=1, kind="stable")
        nearest[start : start + BLOCK] = np.take_along_axis(best, order, axis=1)
    return nearest


def similar_pairs(directions: np.ndarray, cells: np.ndarray | None, similarity: float) -> Iterator[np.ndarray]:
    """Blocks (P, 2) int64 of pairs i < j whose cosine is at least `similarity`; with cells, a pair may come twice, and
    those that are in no cell of each other are missed."""
    if cells is None:
        everything = np.arange(len(directions))
        for start in range(0, len(directions), BLOCK):  # the rows before were compared with this block already
            yield from _compare(directions, everything[start : start + BLOCK], everything[start:], similarity)
        return
    count = int(cells.max()) + 1
    at_home, near = _members(cells[:, :1], count), _members(cells, count)
    for home, visitors in progress(zip(at_home, near, strict=True), "comparing images", count, "cell"):
        for start in range(0, len(visitors), BLOCK):
            yield from _compare(directions, visitors[start : start + BLOCK], home, similarity)


def _members(cells: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows of (N, Q) that name a cell, for each cell."""
    order = np.argsort(cells, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(cells.ravel(), minlength=count))
    return np.split(order // cells.shape[1], ends[:-1])


def _compare(directions: np.ndarray, some: np.ndarray, others: np.ndarray, similarity: float) -> Iterator[np.ndarray]:
    for start in range(0, len(others), 2 * BLOCK):
        part = others[start : start + 2 * BLOCK]
        i, j = np.nonzero(directions[some] @ directions[part].T >= similarity)
        pairs = np.sort(np.stack([some[i], part[j]], axis=1), axis=1)
        pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
        if len(pairs):
            yield pairs


def cosines(directions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(P,) float32 of pairs (P, 2)."""
    values = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), BLOCK):
        a, b = pairs[start : start + BLOCK].T
        values[start : start + BLOCK] = np.einsum("nd,nd->n", directions[a], directions[b])
    return values


NEAREST = 5
"""Training images named for each error."""
QUERIES = 1024
"""Queries compared at once: with 100,000 images in the pool, 0.4 GB of similarities."""


def nearest(
    units: np.ndarray, queries: np.ndarray, pool: np.ndarray, count: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `units` (N, D), as similar.centred gives them; `queries` (M,) and `pool` (P,) name some of them.

    For each query the `count` most similar rows of the pool, itself excepted, the most similar first: (M, C) rows of
    `units` and (M, C) cosines in -1..1. With `groups` (N,), rows of the query's own group are excepted too. Where fewer
    are left, the row is -1 and the cosine -inf.
    """
    groups = np.arange(len(units)) if groups is None else groups
    found = np.full((len(queries), count), -1, dtype=np.int64)
    cosines = np.full((len(queries), count), -np.inf, dtype=np.float32)
    width = min(count, len(pool))
    for start in range(0, len(queries) if width else 0, QUERIES):
        block = queries[start : start + QUERIES]
        similar = units[block] @ units[pool].T
        similar[groups[block][:, None] == groups[pool][None, :]] = -np.inf
        best = np.argpartition(-similar, width - 1, axis=1)[:, :width]
        values = np.take_along_axis(similar, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best, values = np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
        found[start : start + len(block), :width] = np.where(np.isfinite(values), pool[best], -1)
        cosines[start : start + len(block), :width] = values
    return found, cosines


def nearest_training_images(errors: pd.DataFrame, rows: pd.DataFrame, units: np.ndarray) -> pd.DataFrame:
    """Of each misclassified image (columns file, split, path) the training images that look most like it.

    `rows` (columns file, split, path, label) and `units` (N, D) are all labelled images and their centred features.
    Gives file, rank (from 1), neighbour, neighbour_label, similarity (a cosine), neighbour_path.
    """
    places = {key: place for place, key in enumerate(zip(rows["split"], rows["path"], strict=True))}
    queries = np.array([places[key] for key in zip(errors["split"], errors["path"], strict=True)], dtype=np.int64)
    found, cosines = nearest(units, queries, np.flatnonzero(rows["split"] == "train"), NEAREST)
    image, rank = np.nonzero(found >= 0)
    neighbour = rows.iloc[found[image, rank]]
    return pd.DataFrame(
        {
            "file": errors["file"].to_numpy()[image],
            "rank": rank + 1,
            "neighbour": neighbour["file"].to_numpy(),
            "neighbour_label": neighbour["label"].to_numpy(),
            "similarity": cosines[image, rank].round(4),
            "neighbour_path": neighbour["path"].to_numpy(),
        }
    )
