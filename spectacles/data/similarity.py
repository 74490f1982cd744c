"""Similar images by their features: all similar pairs of a data set, and the nearest neighbours of some images."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.linalg import cholesky, solve_triangular

from spectacles.core.progress import progress

EXACT = 20_000
"""Images up to which every pair is compared, which takes seconds; of more, the pairs within neighbouring cells."""
LOOK_UPS = 8
"""Cells that each image of a larger set is looked up in: among 100,000 images that finds 97 % of the planted pairs and
compares a tenth of all."""
BLOCK = 2048
"""Images compared at once in the search for pairs."""
QUERIES = 1024
"""Images whose neighbours are searched at once: with 100,000 images in the pool, 0.4 GB of similarities."""
NEAREST = 5
"""Training images listed for each error."""


def centred(features: np.ndarray) -> np.ndarray:
    """(N, D) -> float32 (N, D) of unit length, after subtracting the mean: what all images of a set have in common
    would make every pair look similar. Features equal to the mean become zero."""
    values = _without_mean(features)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units: np.ndarray = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    return units


def _without_mean(features: np.ndarray) -> np.ndarray:
    values: np.ndarray = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return values


def prepare_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Features (N, D) -> (directions (N, D) float32 of unit length, nearest cells (N, LOOK_UPS) or None up to EXACT).

    The cosine of two directions is that of the features under the metric (C + r I)^-1, where C is the set's covariance:
    directions in which all its images vary (the pose of aligned faces, cats against dogs) count little. r is the mean
    variance, and more where N < D, because C is then poorly estimated (ridge, as in Ledoit and Wolf 2004). With this
    metric, images of different people stay below 0.52 in sets of 4 to 3,600 images, where plain cosines of aligned
    faces reach 0.85.
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
    """(N, LOOK_UPS) cells, nearest first, around sqrt(N) images drawn at random. Cells by k-means took minutes instead
    of seconds and found 0.6 % more of the pairs."""
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
    """Blocks (P, 2) int64 of pairs i < j whose cosine is at least `similarity`. With cells a pair may occur twice, and
    pairs that share no cell are missed."""
    if cells is None:
        rows = np.arange(len(directions))
        for start in range(0, len(directions), BLOCK):  # earlier rows have been compared with this block
            yield from _compare(directions, rows[start : start + BLOCK], rows[start:], similarity)
        return
    count = int(cells.max()) + 1
    by_nearest_cell = _members(cells[:, :1], count)
    by_any_cell = _members(cells, count)
    for members, near in progress(zip(by_nearest_cell, by_any_cell, strict=True), "comparing images", count, "cell"):
        for start in range(0, len(near), BLOCK):
            yield from _compare(directions, near[start : start + BLOCK], members, similarity)


def _members(cells: np.ndarray, count: int) -> list[np.ndarray]:
    """For each cell the rows of `cells` (N, Q) that contain it."""
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


def nearest_neighbours(
    units: np.ndarray, queries: np.ndarray, pool: np.ndarray, count: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the `count` most similar rows of the pool except itself, the most similar first: (M, C) rows of
    `units` and (M, C) cosines in -1..1.

    `units` (N, D) as `centred` returns them; `queries` (M,) and `pool` (P,) are rows of it. With `groups` (N,), the
    query's own group is excluded. Where fewer are left, the row is -1 and the cosine -inf.
    """
    groups = np.arange(len(units)) if groups is None else groups
    neighbours = np.full((len(queries), count), -1, dtype=np.int64)
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
        neighbours[start : start + len(block), :width] = np.where(np.isfinite(values), pool[best], -1)
        cosines[start : start + len(block), :width] = values
    return neighbours, cosines


def nearest_training_images(errors: pd.DataFrame, rows: pd.DataFrame, units: np.ndarray) -> pd.DataFrame:
    """The training images most similar to each misclassified image (columns file, split, path): schemas.NEAREST and
    neighbour_path.

    `rows` (columns file, split, path, label) and `units` (N, D) are all labelled images and their centred features.
    """
    row_of = {key: row for row, key in enumerate(zip(rows["split"], rows["path"], strict=True))}
    queries = np.array([row_of[key] for key in zip(errors["split"], errors["path"], strict=True)], dtype=np.int64)
    pool = np.flatnonzero(rows["split"] == "train")
    neighbours, cosines = nearest_neighbours(units, queries, pool, NEAREST)
    image, rank = np.nonzero(neighbours >= 0)
    neighbour = rows.iloc[neighbours[image, rank]]
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
