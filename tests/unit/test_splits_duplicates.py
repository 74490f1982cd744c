"""Splitting and duplicate search against brute force."""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spectacles.duplicates import clusters, equal_groups, near_pairs, pairs_within
from spectacles.splits import stratified_split

FRACTIONS = [(0.7, 0.15, 0.15), (0.85, 0.15, 0.0), (1.0, 0.0, 0.0), (0.5, 0.2, 0.3), (0.1, 0.9)]
seeds = st.integers(0, 2**32 - 1)


@st.composite
def labelled_clusters(draw) -> tuple[np.ndarray, np.ndarray]:
    """Class indices and cluster numbers; clusters of mixed sizes that may hold several classes."""
    rng = np.random.default_rng(draw(seeds))
    size = draw(st.integers(1, 80))
    return rng.integers(0, draw(st.integers(1, 5)), size), rng.integers(0, draw(st.integers(1, 2 * size)), size) * 7


@given(labelled_clusters(), st.sampled_from(FRACTIONS), seeds)
def test_no_cluster_is_torn_and_every_image_has_one_split(data, fractions, seed):
    labels, numbers = data
    split = stratified_split(labels, numbers, fractions, seed)
    assert split.shape == labels.shape
    assert set(split) <= {number for number, fraction in enumerate(fractions) if fraction > 0}
    for number in np.unique(numbers):
        assert len(set(split[numbers == number])) == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.sampled_from(FRACTIONS), seeds)
def test_single_images_are_split_within_one_of_every_class_share(labels, fractions, seed):
    classes = np.array(labels)
    split = stratified_split(classes, np.arange(len(classes)), fractions, seed)
    for name in set(labels):
        for number, fraction in enumerate(fractions):
            exact = fraction * np.sum(classes == name)
            assert abs(np.sum((classes == name) & (split == number)) - exact) < 1 + 1e-9


@given(labelled_clusters(), seeds)
def test_the_same_seed_splits_the_same_way(data, seed):
    first, second = (stratified_split(*data, FRACTIONS[0], seed) for _ in range(2))
    assert np.array_equal(first, second)


def test_another_seed_splits_another_way():
    labels = np.arange(60) % 3
    splits = {tuple(stratified_split(labels, np.arange(60), FRACTIONS[0], seed)) for seed in range(10)}
    assert len(splits) == 10


def test_large_clusters_do_not_unbalance_the_splits():
    numbers = np.repeat(np.arange(40), 5)
    labels = np.tile([0, 1], 100)
    split = stratified_split(labels, numbers, FRACTIONS[0], 0)
    for label in (0, 1):
        shares = np.bincount(split[labels == label], minlength=3) / 100
        np.testing.assert_allclose(shares, FRACTIONS[0], atol=0.05)


def flipped(rng: np.random.Generator, value: int, bits: int) -> int:
    return value ^ sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))


@pytest.mark.parametrize("distance", range(8))
@settings(max_examples=15)
@given(seeds)
def test_near_pairs_are_those_of_a_full_comparison(distance, seed):
    rng = np.random.default_rng(seed)
    strangers = [int(value) for value in rng.integers(0, 2**64, 12, dtype=np.uint64)]
    planted = [flipped(rng, int(rng.choice(strangers)), bits) for bits in range(10) for _ in range(3)]
    values = [0, 2**64 - 1, *strangers, *planted, *strangers[:3]]
    rng.shuffle(values)
    first = {value: values.index(value) for value in values}
    expected = [
        tuple(sorted((first[a], first[b]))) for a, b in combinations(first, 2) if 1 <= (a ^ b).bit_count() <= distance
    ]
    found = list(near_pairs(np.array(values, dtype=np.uint64), distance))
    assert sorted(found) == sorted(expected)
    assert all(type(index) is int for pair in found for index in pair)


@pytest.mark.parametrize("hashes", [[], [5], [5, 5]])
def test_few_hashes_have_no_near_pairs(hashes):
    assert list(near_pairs(np.array(hashes, dtype=np.uint64), 7)) == []


@pytest.mark.parametrize("distance", [-1, 8])
def test_a_distance_that_bands_cannot_guarantee_is_refused(distance):
    with pytest.raises(ValueError, match="0 to 7"):
        list(near_pairs(np.zeros(1, dtype=np.uint64), distance))


@given(
    st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.lists(st.integers(0, n - 1), max_size=4))))
)
def test_clusters_are_the_connected_components(case):
    size, groups = case
    edges = [(group[0], other) for group in groups for other in group]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(size, size))
    component = connected_components(graph, directed=False)[1]
    expected = [int(np.flatnonzero(component == component[index])[0]) for index in range(size)]
    assert clusters(size, groups).tolist() == expected


@given(st.lists(st.sampled_from(["", "a", "b", "aa", "ä"]), max_size=30))
def test_equal_groups_are_those_of_a_dictionary(values):
    expected = defaultdict(list)
    for index, value in enumerate(values):
        expected[value].append(index)
    found = equal_groups(np.array(values, dtype=str))
    assert sorted(found) == sorted(group for group in expected.values() if len(group) > 1)


def test_pairs_within_pairs_a_small_group_fully():
    assert pairs_within([[3, 5, 9], [1, 2]]) == [(3, 5), (3, 9), (5, 9), (1, 2)]


def test_pairs_within_names_every_member_of_a_large_group_without_pairing_all():
    pairs = pairs_within([list(range(1000))])
    assert {index for pair in pairs for index in pair} == set(range(1000))
    assert len(pairs) == len(set(pairs)) < 1100
