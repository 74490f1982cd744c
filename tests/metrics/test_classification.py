"""Metrics of decisions against scikit-learn, areas over classes against scipy, top-k accuracy against sorting."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scored_images import scored_images
from sklearn import metrics as reference

from spectacles.metrics import basics, classification
from spectacles.metrics.decisions import decide
from spectacles.metrics.scoring import metrics_of, per_class

fast = settings(max_examples=30, deadline=None)


@fast
@given(scored_images())
def test_scores_of_decisions_equal_scikit_learn(scored):
    ours, pair = metrics_of(scored), (scored.labels, scored.predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true", which is the point of the case
        expected = {
            "accuracy": reference.accuracy_score(*pair),
            "balanced_accuracy": reference.balanced_accuracy_score(*pair),
        }
    for name, score in (
        ("macro_precision", reference.precision_score),
        ("macro_recall", reference.recall_score),
        ("macro_f1", reference.f1_score),
    ):
        expected[name] = score(*pair, labels=np.unique(scored.labels), average="macro", zero_division=0)
    if scored.num_classes == 2:
        for name, score in (("precision", reference.precision_score), ("recall", reference.recall_score)):
            expected[name] = score(*pair, zero_division=np.nan) if scored.labels.any() else np.nan
            expected[name] = None if np.isnan(expected[name]) else expected[name]
    assert {name: ours[name] for name in expected} == pytest.approx(expected)


@fast
@given(scored_images())
def test_the_confusion_matrix_counts_pairs(scored):
    expected = np.zeros((scored.num_classes, scored.num_classes))
    for label, predicted in zip(scored.labels, scored.predicted, strict=True):
        expected[label, predicted] += 1
    matrix = classification.confusion_matrix(scored.labels, scored.predicted, scored.num_classes)
    np.testing.assert_array_equal(matrix, expected)
    counts = classification.class_counts(scored.labels, scored.predicted, scored.num_classes)
    np.testing.assert_array_equal(counts, [np.diag(expected), expected.sum(axis=1), expected.sum(axis=0)])


@fast
@given(scored_images(min_classes=4))
def test_top_k_accuracy_equals_sorting_with_ties_to_the_lowest_index(scored):
    ours, ranked = metrics_of(scored), np.argsort(-scored.probabilities, axis=1, kind="stable")
    for k in (1, 3, 5):
        expected = np.mean([label in row[:k] for label, row in zip(scored.labels, ranked, strict=True)])
        assert classification.top_k_accuracy(scored.labels, scored.probabilities, k) == pytest.approx(expected)
    assert ("top_3_accuracy" in ours, "top_5_accuracy" in ours) == (True, scored.num_classes >= 6)
    assert classification.top_k_accuracy(scored.labels, scored.probabilities, scored.num_classes) == 1.0


@fast
@given(scored_images(every_class=True))
def test_areas_are_those_of_class_1_of_two_and_else_the_mean_over_classes(scored):
    areas, precisions = [], []
    for index in [1] if scored.num_classes == 2 else range(scored.num_classes):
        positive, scores = scored.labels == index, scored.probabilities[:, index]
        with np.errstate(invalid="ignore"):  # equal scores only: the statistic is right, its p-value undefined
            statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
        areas.append(statistic / (positive.sum() * (~positive).sum()))
        precisions.append(np.mean([positive[scores >= score].mean() for score in scores[positive]]))
    ours = metrics_of(scored)
    assert (ours["roc_auc"], ours["pr_auc"]) == pytest.approx((np.mean(areas), np.mean(precisions)))


@fast
@given(scored_images(max_classes=2, every_class=True), st.floats(0, 1))
def test_two_classes_follow_the_threshold(scored, threshold):
    labels, probabilities = scored.labels, scored.probabilities
    ours = classification.classification_metrics(labels, probabilities, decide(probabilities, threshold), 2)
    false_positive = np.mean(probabilities[labels == 0, 1] >= threshold)
    false_negative = np.mean(probabilities[labels == 1, 1] < threshold)
    assert ours["false_positive_rate"] == pytest.approx(false_positive)
    assert ours["false_negative_rate"] == pytest.approx(false_negative)
    assert ours["hter"] == pytest.approx((false_positive + false_negative) / 2)


@fast
@given(scored_images())
def test_per_class_metrics_equal_scikit_learn_where_defined(scored):
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        scored.labels, scored.predicted, labels=range(scored.num_classes), zero_division=0
    )
    for index, row in enumerate(per_class(scored)):
        claimed = (scored.predicted == index).sum()
        assert row["support"] == support[index]
        assert row["recall"] == (pytest.approx(recall[index]) if support[index] else None)
        assert row["precision"] == (pytest.approx(precision[index]) if support[index] and claimed else None)
        assert row["f1"] == (pytest.approx(f1[index]) if support[index] else None)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [0, 1, 4])
def test_nothing_is_ever_nan(num_classes, size):
    labels = np.zeros(size, dtype=np.int64)
    probabilities = np.tile(np.eye(num_classes)[0], (size, 1))  # exactly 0 and 1
    ours = classification.classification_metrics(labels, probabilities, labels, num_classes)
    json.dumps([ours, classification.per_class_metrics(labels, labels, num_classes)], allow_nan=False)
    assert classification.confusion_matrix(labels, labels, num_classes).sum() == size
    assert ours["roc_auc"] is None and ours["pr_auc"] is None and ours.get("hter") is None
    assert ours["accuracy"] == (1.0 if size else None)


def test_a_class_without_images_has_no_metrics_and_the_mean_says_over_how_many():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    probabilities = np.eye(4)[predicted]
    ours = classification.classification_metrics(labels, probabilities, predicted, 4)
    assert ours["balanced_accuracy"] == ours["macro_recall"] == 0.75 and ours["macro_precision"] == 1
    rows = classification.per_class_metrics(labels, predicted, 4)
    assert rows[2:] == 2 * [{"precision": None, "recall": None, "f1": None, "support": 0}]
    scores = {"per_class": dict(zip("abcd", rows, strict=True))}
    assert basics.over_classes("macro_f1", scores) == "over 2 of 4 classes"
    assert basics.over_classes("accuracy", scores) == ""
    assert basics.absent_classes(scores) == "no image of 2 of 4 classes ('c', 'd')"
    assert basics.absent_classes({"per_class": {"a": rows[0]}}) == ""


def test_all_wrong_and_certain():
    labels = np.array([0, 1, 0, 1])
    probabilities = np.eye(2)[1 - labels]
    ours = classification.classification_metrics(labels, probabilities, 1 - labels, 2)
    zero = ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "roc_auc")
    assert all(ours[name] == 0 for name in zero)
    assert ours["hter"] == ours["ece"] == 1 and ours["brier"] == 2
    assert ours["log_loss"] == pytest.approx(-math.log(np.finfo(np.float64).eps))


def test_broken_input_is_rejected():
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="1 of 2 rows of probabilities hold NaN"):
        classification.classification_metrics(labels, np.array([[0.5, 0.5], [np.nan, 1.0]]), labels, 2)
    with pytest.raises(ValueError, match=r"must be \(2, 3\)"):
        classification.classification_metrics(labels, np.full((2, 2), 0.5), labels, 3)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, found 0\.\.2"):
        classification.confusion_matrix(np.array([0, 2]), labels, 2)
