"""Stratified splits and folds: what holds for any data, and for the cases that are hard."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectacles.data.stratification import stratified_folds, stratified_split

FRACTIONS = [(0.7, 0.15, 0.15), (0.85, 0.15, 0.0), (1.0, 0.0, 0.0), (0.5, 0.2, 0.3), (0.1, 0.9)]
USUAL = FRACTIONS[0]
seeds = st.integers(0, 2**32 - 1)


@st.composite
def labelled_clusters(draw, kinds=("classes", "one class each", "labels")) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) or (N, K) and cluster numbers (N,): single images, or clusters of all sizes, of several classes or of
    one class each."""
    rng = np.random.default_rng(draw(seeds))
    size, classes = draw(st.integers(1, 80)), draw(st.integers(1, 6))
    clusters = rng.integers(0, draw(st.integers(1, 2 * size)), size) if draw(st.booleans()) else np.arange(size)
    if draw(st.booleans()):  # a few large ones among small ones
        clusters = np.minimum(clusters, draw(st.integers(0, size)))
    kind = draw(st.sampled_from(kinds))
    if kind == "labels":
        return (rng.random((size, classes)) < rng.uniform(0.02, 0.6, classes)).astype(np.int64), clusters * 7
    labels = rng.integers(0, classes, size)
    return (labels if kind == "classes" else rng.integers(0, classes, clusters.max() + 1)[clusters]), clusters * 7


def one_hot(labels: np.ndarray) -> np.ndarray:
    """(N, C) of 0 and 1; no label is a class."""
    if labels.ndim == 2:
        return np.column_stack([labels, labels.sum(axis=1) == 0]).astype(np.int64)
    return np.eye(int(labels.max()) + 1, dtype=np.int64)[labels]


def counts_of(labels: np.ndarray, split: np.ndarray, parts: int) -> np.ndarray:
    """(parts, C) images."""
    return np.array([one_hot(labels)[split == part].sum(axis=0) for part in range(parts)])


def can_leave_train(labels: np.ndarray, clusters: np.ndarray, split: np.ndarray) -> bool:
    """Whether the training split keeps every class without one of its clusters."""
    each = one_hot(labels)
    held = {int(number): each[(clusters == number)].any(axis=0) for number in np.unique(clusters[split == 0])}
    total = sum(row.astype(int) for row in held.values())
    return any((total - row > 0)[row].all() for row in held.values()) if len(held) > 1 else False


@settings(max_examples=300)
@given(labelled_clusters(), st.sampled_from(FRACTIONS), seeds)
def test_splits_of_any_data(data, fractions, seed):
    labels, clusters = data
    split = stratified_split(labels, clusters, fractions, seed)
    assert split.shape == (len(labels),)
    assert np.array_equal(split, stratified_split(labels, clusters, fractions, seed))
    _, first, numbers = np.unique(clusters, return_index=True, return_inverse=True)
    assert np.array_equal(split, split[first][numbers])  # clusters stay whole
    # Every class is in train, and no split is empty while another could give a cluster.
    parts, per_part = len(fractions), np.bincount(split, minlength=len(fractions))
    assert set(np.flatnonzero(per_part)) <= {number for number, fraction in enumerate(fractions) if fraction > 0}
    each = one_hot(labels)
    assert each[split == 0].any(axis=0)[each.any(axis=0)].all()
    if any(not images and fraction for images, fraction in zip(per_part, fractions, strict=True)):
        assert all(len(np.unique(clusters[split == part])) < 2 for part in range(1, parts))
        assert not can_leave_train(labels, clusters, split)


@settings(max_examples=300)
@given(labelled_clusters(), st.sampled_from(FRACTIONS), seeds)
def test_sizes_are_those_asked_for_within_a_cluster(data, fractions, seed):
    labels, clusters = data
    split = stratified_split(labels, clusters, fractions, seed)
    largest = np.bincount(np.unique(clusters, return_inverse=True)[1]).max()
    target = np.array(fractions) * len(labels)
    sizes = np.bincount(split, minlength=len(fractions))
    if target[target > 0].min() > largest and can_leave_train(labels, clusters, split):
        assert np.abs(sizes - target).max() <= largest + 1e-6
    # Otherwise a split had to be filled with a cluster that is too large for it, or train with every class.
    assert (np.abs(sizes - target)[1:] <= max(largest, abs(sizes[0] - target[0])) + 1e-6).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.sampled_from(FRACTIONS[:4]), seeds)
def test_single_images_are_split_within_one_of_every_class_share(labels, fractions, seed):
    classes = np.array(labels)
    split = stratified_split(classes, np.arange(len(classes)), fractions, seed)
    exact = np.outer(fractions, one_hot(classes).sum(axis=0))
    if exact.sum(axis=1)[1:].max() >= 1 and (exact[0] >= 1).all():
        assert np.abs(counts_of(classes, split, len(fractions)) - exact).max() < 1.5


@given(labelled_clusters(), st.integers(2, 6), seeds)
def test_folds_are_equal_within_a_cluster_and_none_is_empty_while_another_could_give(data, folds, seed):
    labels, clusters = data
    fold = stratified_folds(labels, clusters, folds, seed)
    largest = np.bincount(np.unique(clusters, return_inverse=True)[1]).max()
    sizes = np.bincount(fold, minlength=folds)
    assert np.abs(sizes - len(labels) / folds).max() <= max(largest, 1) + 1e-6
    if not sizes.all():
        assert all(len(np.unique(clusters[fold == number])) < 2 for number in range(folds))


@pytest.mark.parametrize(("each", "sizes"), [(4, (168, 36, 36)), (3, (126, 27, 27)), (2, (84, 18, 18))])
def test_few_images_of_many_classes_fill_every_split(each, sizes):
    labels = np.repeat(np.arange(60), each)
    split = stratified_split(labels, np.arange(len(labels)), USUAL, 0)
    counts = counts_of(labels, split, 3)
    assert tuple(counts.sum(axis=1)) == sizes
    assert counts[0].min() >= 1 and counts[1:].max() == 1  # as many classes in val and in test as fit


def test_a_class_of_three_images_among_two_hundred_is_in_two_splits():
    labels = np.repeat([0, 1], [200, 3])
    counts = counts_of(labels, stratified_split(labels, np.arange(203), USUAL, 0), 3)
    assert counts[:, 0].tolist() == [140, 30, 30] and counts[0, 1] == 2


def test_a_class_of_one_cluster_is_for_training_only():
    labels = np.repeat([0, 1], 30)
    assert set(stratified_split(labels, labels, USUAL, 0)) == {0}
    assert sorted(set(stratified_folds(labels, labels, 2, 0))) == [0, 1]


def test_a_class_that_is_one_large_cluster_leaves_the_other_splits_their_sizes():
    labels = np.repeat([0, 1], [1000, 1000])
    clusters = np.append(np.arange(1000), np.full(1000, 1000))
    counts = counts_of(labels, stratified_split(labels, clusters, USUAL, 0), 3)
    assert counts[0, 1] == 1000
    assert np.abs(counts.sum(axis=1) - [1400, 300, 300]).max() < 10


def test_a_thousand_classes_of_one_image_leave_the_other_splits_their_sizes():
    labels = np.append(np.arange(1000), np.full(1000, 1000))
    split = stratified_split(labels, np.arange(2000), USUAL, 0)
    assert np.abs(np.bincount(split) - [1400, 300, 300]).max() <= 1
    assert set(split[:1000]) == {0}


def test_groups_of_unequal_size_keep_the_share_of_every_class():
    rng = np.random.default_rng(0)
    sizes = rng.geometric(0.15, 200)
    clusters = np.repeat(np.arange(200), sizes)
    labels = clusters % 5
    counts = counts_of(labels, stratified_split(labels, clusters, USUAL, 0), 3)
    exact = np.outer(USUAL, np.bincount(labels))
    assert np.abs(counts - exact).max() < 2 and np.abs(counts.sum(axis=1) - exact.sum(axis=1)).max() <= 1


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_keep_the_share_of_every_label(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((300, 12)) < rng.uniform(0.02, 0.5, 12)).astype(np.int64)
    counts = counts_of(labels, stratified_split(labels, np.arange(300), USUAL, seed), 3)
    assert np.abs(counts - np.outer(USUAL, one_hot(labels).sum(axis=0))).max() < 1


def test_another_seed_splits_another_way():
    labels = np.arange(60) % 3
    splits = {tuple(stratified_split(labels, np.arange(60), USUAL, seed)) for seed in range(10)}
    assert len(splits) == 10


def test_many_classes_take_little_memory():
    """A table of clusters and classes would take 800 MB."""
    labels = np.arange(10_000)
    tracemalloc.start()
    try:
        split = stratified_split(labels, labels, USUAL, 0)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert set(split) == {0}


def test_no_images_have_no_splits():
    nothing = np.empty(0, dtype=np.int64)
    assert stratified_split(nothing, nothing, USUAL, 0).shape == (0,)
