"""Wrong labels are found where features separate the classes, and no image is predicted from itself or its twin."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.evaluation.label_quality import (
    average,
    label_quality,
    out_of_fold_probabilities,
    power_normalized,
    rank_label_issues,
)
from spectacles.models.feature_blocks import last_layer


def out_of_fold(features: np.ndarray, *args: Any, **settings: Any) -> np.ndarray:
    return out_of_fold_probabilities(last_layer(features), *args, **settings)[0]


def gaussians(count: int, classes: int, dimensions: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, dimensions)) * 2
    return (centres[labels] + rng.normal(size=(count, dimensions))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_planted_flips_lead_the_ranking(classes: int) -> None:
    features, true = gaussians(400, classes)
    rng = np.random.default_rng(1)
    flipped = rng.choice(400, 20, replace=False)
    labels = true.copy()
    labels[flipped] = (true[flipped] + rng.integers(1, classes, 20)) % classes
    probabilities = out_of_fold(features, labels, folds=5, seed=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    ranked = rank_label_issues(labels, probabilities)
    first = ranked["row"][:20]
    assert len(set(first) & set(flipped)) >= 18
    both = np.isin(first, flipped)
    np.testing.assert_array_equal(ranked["suggested"][:20][both], true[first[both]])
    assert ranked["suspected"][:20][both].mean() >= 0.75
    assert ranked["suspected"].sum() < 40


def test_the_ranking_lists_exactly_the_rows_with_a_more_probable_class() -> None:
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [np.nan] * 3])
    ranked = rank_label_issues(labels, probabilities)
    np.testing.assert_array_equal(ranked["row"], [2, 1])
    np.testing.assert_array_equal(ranked["suggested"], [0, 0])
    np.testing.assert_array_equal(ranked["score"], label_quality(labels[:3], probabilities[:3])[[2, 1]])
    np.testing.assert_allclose(ranked["p_given"], [0.05, 0.3])
    np.testing.assert_allclose(ranked["p_suggested"], [0.9, 0.6])


@given(seed=st.integers(0, 200), classes=st.integers(2, 4))
def test_the_score_is_the_margin_against_what_each_class_usually_gets(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), rng.integers(0, classes, 20))
    probabilities = rng.dirichlet(np.ones(classes), len(labels))
    usual = [
        np.mean([p[k] for p, label in zip(probabilities, labels, strict=True) if label == k]) for k in range(classes)
    ]
    expected = []
    for p, label in zip(probabilities, labels, strict=True):
        shifted = [p[k] - usual[k] + max(usual) for k in range(classes)]
        shares = [value / sum(shifted) for value in shifted]
        expected.append((shares[label] - max(share for k, share in enumerate(shares) if k != label) + 1) / 2)
    np.testing.assert_allclose(label_quality(labels, probabilities), expected, atol=1e-9)


def test_a_few_large_values_do_not_dominate_features_that_are_never_negative() -> None:
    features, labels = gaussians(200, 2)
    positive = np.exp(3 * features)
    assert (power_normalized(positive) == np.sqrt(positive)).all()
    assert (power_normalized(features) == features).all()
    assert accuracy(out_of_fold(positive, labels, 5, 0), labels) > 0.9


def test_two_sources_are_averaged_and_one_alone_is_used_as_it_is() -> None:
    nan = [np.nan, np.nan]
    one, other = np.array([[0.2, 0.8], nan, [1.0, 0.0], nan]), np.array([[0.4, 0.6], [0.5, 0.5], nan, nan])
    np.testing.assert_allclose(average(one, other), [[0.3, 0.7], [0.5, 0.5], [1.0, 0.0], nan])


def memorable(pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of twins: only the twin gives the label away. (features, labels, groups)."""
    groups = np.repeat(np.arange(pairs), 2)
    labels = np.random.default_rng(0).permutation(np.arange(pairs) % 2)[groups]
    return np.eye(pairs, dtype=np.float32)[groups], labels, groups


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def test_a_group_is_never_both_fitted_and_predicted() -> None:
    features, labels, groups = memorable(60)
    assert accuracy(out_of_fold(features, labels, 5, 0), labels) > 0.7  # twins do give labels away
    grouped = out_of_fold(features, labels, 5, 0, groups)
    assert accuracy(grouped, labels) < 0.65
    np.testing.assert_array_equal(grouped[::2], grouped[1::2])


def test_the_seed_decides() -> None:
    features, labels = gaussians(60, 2)
    first, again, other = (out_of_fold(features, labels, 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_classes_with_fewer_images_than_folds() -> None:
    features, labels = gaussians(60, 3)
    features, labels = np.append(features, features[:3] + 9, axis=0), np.append(labels, [3, 3, 4])
    probabilities = out_of_fold(features, labels, folds=5, seed=0)
    assert probabilities.shape == (63, 5)
    unpredicted = np.isnan(probabilities).any(axis=1)
    np.testing.assert_array_equal(
        np.flatnonzero(unpredicted), [62]
    )  # the only image of its class: no fit knows the class
    assert 62 not in rank_label_issues(labels, probabilities)["row"]


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1], [0, 1, 1]])
def test_too_little_data_gives_a_short_list(labels: list[int]) -> None:
    given = np.array(labels, dtype=np.int64)
    probabilities = out_of_fold(np.ones((len(given), 2), dtype=np.float32), given, folds=5, seed=0)
    assert len(probabilities) == len(given)
    ranked = rank_label_issues(given, probabilities)
    assert len(ranked["row"]) == len(ranked["suspected"]) <= max(0, len(given) - 1)


def several_labels(count: int, dimensions: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that are the sum of a direction for each of three labels, and those labels (N, 3)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 3))
    directions = rng.normal(size=(3, dimensions)) * 2
    return (labels @ directions + rng.normal(size=(count, dimensions))).astype(np.float32), labels


def test_planted_flips_of_one_label_lead_the_ranking_and_are_named() -> None:
    features, true = several_labels(400)
    rng = np.random.default_rng(1)
    rows, places = rng.choice(400, 20, replace=False), rng.integers(0, 3, 20)
    labels = true.copy()
    labels[rows, places] ^= 1
    probabilities = out_of_fold(features, labels, folds=5, seed=0)
    assert probabilities.shape == (400, 3)
    ranked = rank_label_issues(labels, probabilities)
    first = ranked["row"][:20]
    assert len(set(first) & set(rows)) >= 18
    both = np.isin(first, rows)
    np.testing.assert_array_equal(ranked["suggested"][:20][both], true[first[both]])
    flipped = dict(zip(rows, places, strict=True))
    assert ranked["doubtful"][:20][both].tolist() == [flipped[row] for row in first[both]]
    assert ranked["suspected"][:20][both].mean() >= 0.75 and ranked["suspected"].sum() < 40


@given(seed=st.integers(0, 200), labels=st.integers(2, 4))
def test_an_image_is_listed_once_with_every_label_whose_other_answer_is_more_probable(seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    given, probabilities = rng.integers(0, 2, (20, labels)), rng.random((20, labels))
    probabilities[rng.random((20, labels)) < 0.1] = np.nan
    ranked = rank_label_issues(given, probabilities)
    of_given = np.where(given == 1, probabilities, 1 - probabilities)
    assert sorted(ranked["row"]) == np.flatnonzero((of_given < 0.5).any(axis=1)).tolist()
    np.testing.assert_array_equal(ranked["suggested"], np.where(of_given < 0.5, 1 - given, given)[ranked["row"]])
    assert (np.diff(ranked["score"]) >= 0).all()
    np.testing.assert_allclose(ranked["p_given"], of_given[ranked["row"], ranked["doubtful"]])
    np.testing.assert_allclose(ranked["p_given"] + ranked["p_suggested"], 1)
    columns = given.T, probabilities.T
    alone = [rank_label_issues(has, np.stack([1 - own, own], axis=1)) for has, own in zip(*columns, strict=True)]
    for row, score, suspected in zip(ranked["row"], ranked["score"], ranked["suspected"], strict=True):
        assert score == min(one["score"][one["row"] == row].min(initial=9) for one in alone)
        assert suspected == any(one["suspected"][one["row"] == row].any() for one in alone)


def test_a_label_of_a_single_image_cannot_be_predicted_there_and_is_ruled_out_elsewhere() -> None:
    features, labels = several_labels(60)
    only, always = np.eye(60, dtype=np.int64)[7], np.ones(60, dtype=np.int64)
    labels = np.column_stack([labels, only, 1 - only, always, 0 * always])
    probabilities = out_of_fold(features, labels, folds=5, seed=0)
    unknown = np.zeros((60, 7), dtype=bool)
    unknown[7, 3:5] = True
    np.testing.assert_array_equal(np.isnan(probabilities), unknown)
    assert probabilities[:, 5].min() == 1 and probabilities[:, 6].max() == 0
    ranked = rank_label_issues(labels, probabilities)
    np.testing.assert_array_equal(ranked["suggested"][:, 3:], labels[ranked["row"], 3:])


def test_with_several_labels_a_group_is_never_both_fitted_and_predicted() -> None:
    features, labels, groups = memorable(60)
    both = np.column_stack([labels, labels[::-1]])
    grouped = out_of_fold(features, both, 5, 0, groups)
    np.testing.assert_array_equal(grouped[::2], grouped[1::2])
    assert accuracy(np.stack([1 - grouped[:, 0], grouped[:, 0]], axis=1), labels) < 0.65


@pytest.mark.parametrize("labels", [[], [[1, 0]], [[1, 0], [0, 1]], [[1, 1], [1, 1], [1, 0]]])
def test_too_few_images_with_labels_give_next_to_nothing(labels: list[list[int]]) -> None:
    given = np.array(labels, dtype=np.int64).reshape(-1, 2)
    probabilities = out_of_fold(np.ones((len(given), 2), dtype=np.float32), given, folds=5, seed=0)
    assert probabilities.shape == given.shape
    ranked = rank_label_issues(given, probabilities)
    assert len(ranked["row"]) == len(ranked["suspected"]) == len(ranked["suggested"]) <= 2
