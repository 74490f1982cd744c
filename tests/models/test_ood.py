"""Out-of-distribution scores: distances against another library's subspace, and scores as shares of photos."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from spectacles.models import ood
from spectacles.models.ood import COMPONENTS, ENOUGH, IN_THE_TAIL, TAIL, OODScorer


def drawn(seed: int, count: int, size: int = 160) -> np.ndarray:
    """Maps that vary mainly in a few directions."""
    directions = np.random.default_rng(0).normal(size=(5, size))
    rng = np.random.default_rng(seed)
    return (3 + rng.normal(size=(count, 5)) @ directions + 0.3 * rng.normal(size=(count, size))).astype(np.float32)


@cache
def fitted(references: int = 200, validation: int = 300) -> OODScorer:
    found = ood.fit(drawn(1, references), drawn(2, validation))
    assert found is not None
    return found


@pytest.mark.parametrize(("references", "size"), [(200, 160), (30, 160), (200, 40)])
def test_the_distance_is_what_scikit_learns_pca_leaves_out(references, size):
    known, seen = drawn(1, references, size), drawn(3, 20, size)
    found = ood.fit(known, drawn(2, 50, size))
    unit, unit_seen = (maps / np.linalg.norm(maps, axis=1, keepdims=True) for maps in (known, seen))
    pca = PCA(min(COMPONENTS, references // 2, size // 4), svd_solver="full").fit(unit.astype(np.float64))
    left = unit_seen - pca.inverse_transform(pca.transform(unit_seen))
    np.testing.assert_allclose(found.distance(seen), np.linalg.norm(left, axis=1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.distance(5 * seen), found.distance(seen), rtol=1e-4)


@pytest.mark.parametrize("validation", [ENOUGH, 60, 100, 1000])
def test_the_score_is_the_share_of_the_validation_photos_that_are_nearer(validation):
    maps = drawn(2, validation)
    found = ood.fit(drawn(1, 200), maps)
    distances = found.distance(maps)
    nearer = np.array([(distances <= distance).mean() for distance in distances])
    tail_start = 1 - max(TAIL, min(0.5, IN_THE_TAIL / validation))
    inside = nearer < tail_start
    np.testing.assert_allclose(found(maps)[inside], nearer[inside], atol=1.5 / validation + 0.01)
    assert (found(maps)[nearer > tail_start + 1 / validation] >= tail_start).all()


def test_on_other_photos_of_the_same_kind_the_score_is_uniform():
    scores = fitted(200, 2000)(drawn(3, 4000))
    for share in (0.1, 0.5, 0.9, 0.98):
        assert (scores < share).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("validation", [ENOUGH, 50, 200])
def test_few_validation_photos_do_not_make_many_photos_out_of_distribution(validation):
    flagged = []
    for seed in range(15):
        found = ood.fit(drawn(1, 70), drawn(100 + seed, validation))
        flagged.append((found(drawn(3, 500)) > 0.995).mean())
    assert np.mean(flagged) < 0.02


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_score_lies_between_0_and_1_and_rises_with_the_distance(seed):
    found = fitted()
    maps = np.random.default_rng(seed).normal(size=(30, 160)).astype(np.float32)
    maps = np.concatenate([maps, drawn(seed, 30)])
    order = np.argsort(found.distance(maps), kind="stable")
    scores = found(maps)[order]
    assert ((scores >= 0) & (scores <= 1)).all() and (np.diff(scores) >= -1e-12).all()


def test_other_maps_are_out_of_distribution_and_the_farther_the_more():
    found, rng = fitted(), np.random.default_rng(9)
    strange = rng.normal(size=(50, 160)).astype(np.float32)
    assert (found(strange) > 1 - 1e-6).all()
    near, far = (found(drawn(4, 50) + factor * strange) for factor in (0.5, 1.0))
    assert (far >= near).all() and near.min() > 0.95


def test_where_all_maps_are_alike_only_others_are_out_of_distribution():
    same = np.tile(drawn(0, 1), (30, 1))
    found = ood.fit(same, same)
    assert found(same + 1e-7).max() < 0.9
    assert found(drawn(5, 5)).min() > 1 - 1e-6
    assert np.isfinite(found(np.zeros((2, 160), dtype=np.float32))).all()


@pytest.mark.parametrize(("references", "validation"), [(ENOUGH - 1, 100), (100, ENOUGH - 1), (0, 100), (100, 0)])
def test_too_few_photos_give_no_scorer(references, validation):
    assert ood.fit(drawn(1, references), drawn(2, validation)) is None


def test_a_stored_scorer_gives_the_same_scores():
    found, maps = fitted(), drawn(6, 20)
    tensors = found.tensors()
    assert all(name.startswith(ood.PREFIX) for name in tensors)
    assert sum(tensor.nbytes for tensor in tensors.values()) < 50_000
    loaded = ood.from_tensors({"backbone.weight": np.zeros(2), **tensors})
    np.testing.assert_array_equal(loaded(maps), found(maps))
    assert ood.from_tensors({"backbone.weight": np.zeros(2)}) is None
