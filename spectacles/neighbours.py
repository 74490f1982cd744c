"""Nearest neighbours in the features of the frozen backbone."""

import numpy as np
import pandas as pd

NEAREST = 5
"""Training images named for each error."""
BLOCK = 1024
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
    for start in range(0, len(queries) if width else 0, BLOCK):
        block = queries[start : start + BLOCK]
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
