"""Similar pairs are those of a full comparison by textbook formulas, and neighbours those of a brute-force search."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from spectacles.data import similarity
from spectacles.data.similarity import LOOK_UPS, centred, cosines, nearest_cells, prepare_features, similar_pairs

DIM = 12


def drawn(seed: int, size: int, dim: int = DIM) -> np.ndarray:
    """Features whose variances differ by two orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((size, dim)) * np.logspace(0, 1, dim) + 5).astype(np.float32)


def expected_cosines(features: np.ndarray) -> np.ndarray:
    """Of the features under the inverse of (covariance + ridge), written out."""
    size, dim = features.shape
    shifted = features.astype(np.float64) - features.mean(axis=0)
    covariance = np.cov(shifted.T, bias=True)
    ridge = np.trace(covariance) / dim * max(1, dim / size)
    product = shifted @ np.linalg.inv(covariance + ridge * np.eye(dim)) @ shifted.T
    lengths = np.sqrt(np.diag(product))
    return product / np.outer(lengths, lengths)


def found(features: np.ndarray, similarity: float) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for block in similar_pairs(*prepare_features(features), similarity) for a, b in block}


@pytest.mark.parametrize("size", [3, 10, 200])
def test_directions_have_the_cosines_of_the_formula(size):
    features = drawn(0, size)
    directions, cells = prepare_features(features)
    assert cells is None and directions.dtype == np.float32
    np.testing.assert_allclose(directions @ directions.T, expected_cosines(features), atol=1e-4)
    pairs = np.array([(0, 1), (2, 0), (1, 1)])
    np.testing.assert_allclose(cosines(directions, pairs), expected_cosines(features)[pairs[:, 0], pairs[:, 1]],
                               atol=1e-4)  # fmt: skip


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(-0.5, 0.95))
def test_pairs_are_those_of_a_full_comparison(seed, size, similarity):
    features = drawn(seed, size)
    cosines = expected_cosines(features)
    above = np.triu(cosines >= similarity, k=1)
    unsure = np.abs(cosines - similarity) < 1e-4
    pairs = found(features, similarity)
    assert all(a < b for a, b in pairs)
    assert all((above | unsure)[pair] for pair in pairs)
    assert set(zip(*np.nonzero(above & ~unsure), strict=True)) <= pairs


def test_blocks_change_nothing(monkeypatch):
    features = drawn(3, 50)
    whole = found(features, 0.3)
    monkeypatch.setattr("spectacles.data.similarity.BLOCK", 7)
    assert found(features, 0.3) == whole


def test_scale_and_offset_of_features_do_not_matter():
    features = drawn(4, 60)
    assert found(1000 * features + 7, 0.4) == found(features, 0.4)


@pytest.mark.parametrize("features", [np.ones((5, 3)), np.zeros((2, 4))])
def test_identical_features_give_no_pairs(features):
    assert found(features.astype(np.float32), 0.5) == set()


def with_copies(size: int, copies: int) -> np.ndarray:
    features = drawn(5, size, 64)
    features[-copies:] = features[:copies] + 0.1 * drawn(6, copies, 64)
    return features


def test_large_sets_find_planted_copies_in_cells(monkeypatch):
    features = with_copies(2000, 100)
    exact = found(features, 0.8)
    monkeypatch.setattr("spectacles.data.similarity.EXACT", 1000)
    assert prepare_features(features)[1] is not None
    in_cells = found(features, 0.8)
    assert in_cells <= exact
    assert len(in_cells & {(n, 1900 + n) for n in range(100)}) > 95


def test_cells_are_the_same_each_time_and_the_nearest_ones():
    values = drawn(7, 400)
    cells = nearest_cells(values)
    assert cells.shape == (400, LOOK_UPS)
    assert np.array_equal(cells, nearest_cells(values))
    drawn_rows = np.random.default_rng(0).choice(400, 20, replace=False)
    distances = cdist(values, values[drawn_rows], "cosine")
    assert np.array_equal(distances.argsort(axis=1)[:, :LOOK_UPS], cells)


def test_centred_features_have_unit_length_and_no_mean_in_common():
    units = centred(drawn(8, 100) + 1000)
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-5)
    shifted = drawn(8, 100) - drawn(8, 100).mean(axis=0)
    np.testing.assert_allclose(1 - cdist(shifted, shifted, "cosine"), units @ units.T, atol=1e-3)
    assert not centred(np.ones((3, 2), dtype=np.float32)).any()


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
        patch.setattr(similarity, "QUERIES", block)
        found, cosines = similarity.nearest_neighbours(units, queries, pool, count, groups)
    assert found.shape == cosines.shape == (len(queries), count)
    for query, rows, values in zip(queries, found, cosines, strict=True):
        expected = by_brute_force(units, query, pool, count, groups)
        assert (rows >= 0).sum() == len(expected)
        np.testing.assert_allclose(values[: len(expected)], [value for _, value in expected], atol=1e-5)
        assert set(rows[rows >= 0]) <= set(pool[groups[pool] != groups[query]])


def test_an_image_is_not_its_own_neighbour_and_an_empty_pool_gives_none() -> None:
    units = centred(np.eye(4, dtype=np.float32))
    found, _ = similarity.nearest_neighbours(units, np.arange(4), np.arange(4), 4)
    assert all(row not in line for row, line in enumerate(found))
    assert (found == -1).sum() == 4
    found, cosines = similarity.nearest_neighbours(units, np.arange(4), np.array([], dtype=np.int64), 2)
    assert (found == -1).all() and np.isneginf(cosines).all()
    assert similarity.nearest_neighbours(units, np.array([], dtype=np.int64), np.arange(4), 2)[0].shape == (0, 2)


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
