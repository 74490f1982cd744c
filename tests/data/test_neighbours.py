"""Nearest neighbours: the same as looking at every pair, and an error's neighbours are training images."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.data import similarity
from spectacles.data.similarity import centred


def by_brute_force(
    units: np.ndarray, query: int, pool: np.ndarray, count: int, groups: np.ndarray
) -> list[tuple[int, float]]:
    others = [(int(p), float(units[query] @ units[p])) for p in pool if groups[p] != groups[query]]
    return sorted(others, key=lambda pair: -pair[1])[:count]


@given(
    size=st.integers(2, 40),
    count=st.integers(1, 8),
    group_size=st.integers(1, 3),
    seed=st.integers(0, 1000),
    block=st.sampled_from([1, 3, 1024]),
)
def test_the_most_similar_of_other_groups_in_order(
    size: int, count: int, group_size: int, seed: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    units, groups = centred(rng.normal(size=(size, 5)).astype(np.float32)), np.arange(size) // group_size
    queries, pool = rng.permutation(size)[: size // 2 + 1], rng.permutation(size)[: size // 2 + 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "BLOCK", block)
        found, cosines = similarity.nearest(units, queries, pool, count, groups)
    assert found.shape == cosines.shape == (len(queries), count)
    for query, rows, values in zip(queries, found, cosines, strict=True):
        expected = by_brute_force(units, query, pool, count, groups)
        assert (rows >= 0).sum() == len(expected)
        np.testing.assert_allclose(values[: len(expected)], [value for _, value in expected], atol=1e-5)
        assert set(rows[rows >= 0]) <= set(pool[groups[pool] != groups[query]])


def test_an_image_is_not_its_own_neighbour_and_an_empty_pool_gives_none() -> None:
    units = centred(np.eye(4, dtype=np.float32))
    found, _ = similarity.nearest(units, np.arange(4), np.arange(4), 4)
    assert all(row not in line for row, line in enumerate(found))
    assert (found == -1).sum() == 4
    found, cosines = similarity.nearest(units, np.arange(4), np.array([], dtype=np.int64), 2)
    assert (found == -1).all() and np.isneginf(cosines).all()
    assert similarity.nearest(units, np.array([], dtype=np.int64), np.arange(4), 2)[0].shape == (0, 2)


def table(splits: str, labels: str) -> pd.DataFrame:
    files = [f"{number}.png" for number in range(len(splits))]
    names = {"t": "train", "v": "val", "x": "test"}
    return pd.DataFrame(
        {
            "file": files,
            "path": [f"/photos/{file}" for file in files],
            "split": [names[s] for s in splits],
            "label": list(labels),
        }
    )


def test_neighbours_of_errors_are_training_images_with_their_labels() -> None:
    rows = table("tttvx", "aabba")
    units = centred(np.array([[0, 0], [1, 0.1], [5, 5], [5, 5.1], [1, 0]], dtype=np.float32))
    nearest = similarity.nearest_training_images(rows.iloc[[4, 3]], rows, units)
    assert nearest["file"].tolist() == ["4.png"] * 3 + ["3.png"] * 3
    assert nearest["rank"].tolist() == [1, 2, 3] * 2
    assert nearest["neighbour"].tolist()[::3] == ["1.png", "2.png"]
    assert nearest["neighbour_label"].tolist()[::3] == ["a", "b"]
    assert nearest["neighbour_path"].tolist()[0] == "/photos/1.png"
    assert nearest.groupby("file")["similarity"].apply(lambda part: part.is_monotonic_decreasing).all()
    assert (nearest["similarity"].abs() <= 1).all()


def test_without_errors_there_is_an_empty_table_with_all_columns() -> None:
    rows = table("tv", "ab")
    nearest = similarity.nearest_training_images(rows.iloc[:0], rows, centred(np.eye(2, dtype=np.float32)))
    assert nearest.columns.tolist() == [
        "file",
        "rank",
        "neighbour",
        "neighbour_label",
        "similarity",
        "neighbour_path",
    ]
    assert nearest.empty
