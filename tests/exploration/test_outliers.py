"""Outliers by features: distances agree with brute force, and what differs most comes first."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from spectacles.exploration.outliers import COLUMNS, MAX_Z, NEIGHBOURS, UNLIKE_OTHERS, mean_distances, rank_by_distance


def rows(count: int) -> pd.DataFrame:
    names = [f"{number}.jpg" for number in range(count)]
    return pd.DataFrame({"file": names, "label": "a", "split": "train", "path": names})


def ordinary(count: int, seed: int = 0) -> np.ndarray:
    """Positive and skewed, as a network's last activations are."""
    return np.random.default_rng(seed).gamma(0.5, 1.0, size=(count, 40)).astype(np.float32)


def test_distances_are_those_of_brute_force():
    features = ordinary(70)
    roots = np.sqrt(features)
    standard = (roots - roots.mean(axis=0)) / roots.std(axis=0)
    apart = np.sort(cdist(standard, standard), axis=1)[:, 1 : NEIGHBOURS + 1]
    expected = apart.mean(axis=1) / np.sqrt(features.shape[1])
    np.testing.assert_allclose(mean_distances(features, 0), expected, rtol=1e-4)


@pytest.mark.parametrize("pool", [10_000, 100])
def test_what_differs_most_comes_first(monkeypatch, pool):
    monkeypatch.setattr("spectacles.exploration.outliers.POOL", pool)
    monkeypatch.setattr("spectacles.exploration.outliers.BLOCK", 64)
    features = ordinary(300)
    features[[7, 150, 299]] += 6 * ordinary(3, seed=1)
    ranked = rank_by_distance(rows(300), features, seed=0)
    assert set(ranked["file"][:3]) == {"7.jpg", "150.jpg", "299.jpg"}
    assert (ranked["z"][:3] > MAX_Z).all()
    assert (ranked["z"][3:] > MAX_Z).sum() <= 3
    assert set(ranked["what"]) == {UNLIKE_OTHERS}
    assert ranked["z"].is_monotonic_decreasing
    assert list(ranked.columns) == COLUMNS


def test_copies_and_small_sets_have_no_outliers():
    same = rank_by_distance(rows(50), np.ones((50, 4), dtype=np.float32), seed=0)
    assert (same["z"] == 0).all()
    assert len(rank_by_distance(rows(10), ordinary(10), seed=0)) == 0
    assert len(rank_by_distance(rows(300), None, seed=0)) == 0
