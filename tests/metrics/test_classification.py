"""Every metric against an independent implementation: scikit-learn, scipy, or a loop that spells the definition out."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import metrics as reference

from spectacles.metrics import calibration, classification

fast = settings(max_examples=30, deadline=None)


@st.composite
def evaluations(draw, min_classes=2, max_classes=7, every_class=False):
    """(labels, probabilities, predicted, num_classes): coarse probabilities, so that ties and exact 0 and 1 occur."""
    num_classes = draw(st.integers(min_classes, max_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 60)) + (2 * num_classes if every_class else 0)
    labels = rng.integers(num_classes, size=size)
    if every_class:
        labels[: 2 * num_classes] = np.tile(np.arange(num_classes), 2)
    weights = rng.integers(0, draw(st.sampled_from([2, 4, 1000])), size=(size, num_classes))
    weights[weights.sum(axis=1) == 0, 0] = 1
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return labels, probabilities, classification.decide(probabilities, None), num_classes


@st.composite
def rankings(draw):
    """(positive, scores) with both kinds present and, often, ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(2, 80))
    positive = rng.random(size) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    positive[:2] = True, False
    return positive, rng.integers(0, draw(st.sampled_from([1, 3, 1000])) + 1, size=size) / 1000


@fast
@given(evaluations())
def test_scores_of_decisions_equal_scikit_learn(evaluation):
    labels, probabilities, predicted, num_classes = evaluation
    ours = classification.classification_metrics(labels, probabilities, predicted, num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true", which is the point of the case
        expected = {
            "accuracy": reference.accuracy_score(labels, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        }
    for name, score in (
        ("macro_precision", reference.precision_score),
        ("macro_recall", reference.recall_score),
        ("macro_f1", reference.f1_score),
    ):
        expected[name] = score(labels, predicted, average="macro", zero_division=0)
    assert {name: ours[name] for name in expected} == pytest.approx(expected)
    classes = range(num_classes)
    np.testing.assert_array_equal(
        classification.confusion_matrix(labels, predicted, num_classes),
        reference.confusion_matrix(labels, predicted, labels=classes),
    )


@fast
@given(evaluations(), st.sampled_from([np.float32, np.float64]))
def test_scores_of_probabilities_equal_their_definitions(evaluation, dtype):
    labels, probabilities, predicted, num_classes = evaluation
    probabilities = probabilities.astype(dtype)
    ours = classification.classification_metrics(labels, probabilities, predicted, num_classes)
    clipped = np.clip(probabilities, np.finfo(dtype).eps, 1 - np.finfo(dtype).eps)[np.arange(len(labels)), labels]
    assert ours["log_loss"] == pytest.approx(float(-np.log(clipped.astype(float)).mean()), rel=1e-5)
    one_hot = np.eye(num_classes)[labels]
    assert ours["brier"] == pytest.approx(float(((one_hot - probabilities) ** 2).sum(axis=1).mean()), rel=1e-5)
    if num_classes >= 4:
        top_3 = [label in np.argsort(-row, kind="stable")[:3] for label, row in zip(labels, probabilities, strict=True)]
        assert ours["top_3_accuracy"] == pytest.approx(np.mean(top_3))
    assert ("top_3_accuracy" in ours, "top_5_accuracy" in ours) == (num_classes >= 4, num_classes >= 6)
    assert classification.top_k_accuracy(labels, probabilities, 1) == pytest.approx((predicted == labels).mean())
    assert classification.top_k_accuracy(labels, probabilities, num_classes) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_log_loss_and_brier_equal_scikit_learn(dtype, num_classes):
    rng = np.random.default_rng(1)
    labels = rng.integers(num_classes, size=200)
    probabilities = rng.dirichlet(np.full(num_classes, 0.3), size=200).astype(dtype)
    probabilities[:num_classes] = np.eye(num_classes)  # exactly 0 and 1, some of them wrong
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ours = classification.classification_metrics(labels, probabilities, labels, num_classes)
    classes = list(range(num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second argument's name changes between versions
        log_loss = reference.log_loss(labels, probabilities, labels=classes)
    brier = reference.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert ours["log_loss"] == pytest.approx(log_loss, rel=1e-5)
    assert ours["brier"] == pytest.approx(brier, rel=1e-5)


@fast
@given(evaluations(min_classes=3, every_class=True))
def test_macro_one_vs_rest_equals_scikit_learn(evaluation):
    labels, probabilities, predicted, num_classes = evaluation
    ours = classification.classification_metrics(labels, probabilities, predicted, num_classes)
    auc = reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    precision = reference.average_precision_score(np.eye(num_classes, dtype=int)[labels], probabilities)
    assert (ours["roc_auc"], ours["pr_auc"]) == pytest.approx((auc, precision))


@fast
@given(evaluations(max_classes=2, every_class=True), st.floats(0, 1))
def test_two_classes_follow_the_threshold(evaluation, threshold):
    labels, probabilities, _, _ = evaluation
    predicted = classification.decide(probabilities, threshold)
    ours = classification.classification_metrics(labels, probabilities, predicted, 2)
    false_positive = np.mean(probabilities[labels == 0, 1] >= threshold)
    false_negative = np.mean(probabilities[labels == 1, 1] < threshold)
    assert ours["false_positive_rate"] == pytest.approx(false_positive)
    assert ours["false_negative_rate"] == pytest.approx(false_negative)
    assert ours["hter"] == pytest.approx((false_positive + false_negative) / 2)
    assert ours["roc_auc"] == pytest.approx(reference.roc_auc_score(labels, probabilities[:, 1]))
    assert ours["pr_auc"] == pytest.approx(reference.average_precision_score(labels, probabilities[:, 1]))


@fast
@given(rankings())
def test_areas_and_curves_equal_scikit_learn_and_scipy(ranking):
    positive, scores = ranking
    statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic if len(set(scores)) > 1 else None
    area = classification.roc_auc(positive, scores)
    assert area == pytest.approx(reference.roc_auc_score(positive, scores))
    if statistic is not None:
        assert area == pytest.approx(statistic / (positive.sum() * (~positive).sum()))
    assert classification.average_precision(positive, scores) == pytest.approx(
        reference.average_precision_score(positive, scores)
    )
    for ours, expected in (
        (classification.roc_curve(positive, scores), reference.roc_curve(positive, scores, drop_intermediate=False)),
        (classification.precision_recall_curve(positive, scores), reference.precision_recall_curve(positive, scores)),
    ):
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, other)


@fast
@given(evaluations(), st.integers(1, 20))
def test_calibration_error_equals_the_loop_of_its_definition(evaluation, bins):
    labels, probabilities, predicted, _ = evaluation
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i, row in enumerate(probabilities) if low < row.max() <= high]
        if inside:
            confidence = sum(probabilities[i].max() for i in inside) / len(inside)
            accuracy = sum(predicted[i] == labels[i] for i in inside) / len(inside)
            expected += len(inside) / len(labels) * abs(confidence - accuracy)
    assert classification.expected_calibration_error(labels, probabilities, bins) == pytest.approx(expected, abs=1e-12)
    assert classification.reliability_bins(labels, probabilities, bins)[0].sum() == len(labels)


@fast
@given(evaluations())
def test_per_class_metrics_equal_scikit_learn_where_defined(evaluation):
    labels, _, predicted, num_classes = evaluation
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        labels, predicted, labels=range(num_classes), zero_division=0
    )
    for index, row in enumerate(classification.per_class_metrics(labels, predicted, num_classes)):
        claimed = (predicted == index).sum()
        assert row["support"] == support[index]
        assert row["recall"] == (pytest.approx(recall[index]) if support[index] else None)
        assert row["precision"] == (pytest.approx(precision[index]) if claimed else None)
        assert row["f1"] == (pytest.approx(f1[index]) if support[index] + claimed else None)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [0, 1, 4])
def test_nothing_is_ever_nan(num_classes, size):
    labels = np.zeros(size, dtype=np.int64)
    probabilities = np.tile(np.eye(num_classes)[0], (size, 1))  # exactly 0 and 1
    ours = classification.classification_metrics(labels, probabilities, labels, num_classes)
    json.dumps([ours, classification.per_class_metrics(labels, labels, num_classes)], allow_nan=False)
    assert ours["roc_auc"] is None and ours["pr_auc"] is None and ours.get("hter") is None
    assert ours["accuracy"] == (1.0 if size else None)


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
    with pytest.raises(ValueError, match="both positive and negative"):
        classification.roc_curve(np.array([True, True]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="needs positive"):
        classification.precision_recall_curve(np.array([False]), np.array([0.1]))


def test_the_decision_rule():
    probabilities = np.array([[0.5, 0.5], [0.6, 0.4], [0.1, 0.9]])
    assert classification.decide(probabilities, None).tolist() == [0, 0, 1]  # a tie goes to the lowest index
    assert classification.decide(probabilities, 0.4).tolist() == [1, 1, 1]  # at the threshold is class 1
    assert classification.decide(probabilities, 0.95).tolist() == [0, 0, 0]
    assert classification.decide(np.array([[0.2, 0.3, 0.5]]), 0.4).tolist() == [2]  # a threshold is for two classes


def test_a_decision_does_not_depend_on_the_dtype():
    probabilities = np.array([[0.3, 0.7]], dtype=np.float32)  # 0.7 is 0.69999999 in float32
    assert classification.decide(probabilities, 0.7) == classification.decide(probabilities.astype(np.float64), 0.7)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, experiments = 0.7, 300
    intervals = [classification.bootstrap_interval(rng.random(150) < truth, seed) for seed in range(experiments)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.91 <= covered <= 0.98


@pytest.mark.parametrize(
    "values", [np.random.default_rng(3).random(400) < 0.8, np.random.default_rng(3).normal(size=400)]
)
def test_bootstrap_equals_the_loop_of_its_definition(values):
    # Two distinct values are drawn by multiplicity, 400 of them by index.
    rng = np.random.default_rng(5)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    ours = classification.bootstrap_interval(values, seed=1, resamples=4000)
    assert ours == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)
    assert ours == classification.bootstrap_interval(values, seed=1, resamples=4000)


def test_bootstrap_resamples_whole_groups():
    people = np.repeat(np.arange(40), 25) * 7
    values = np.random.default_rng(0).random(40)[people // 7] < 0.5  # all photos of a person succeed or fail together
    low, high = classification.bootstrap_interval(values, seed=0, groups=people)
    rng = np.random.default_rng(9)
    per_person = values.reshape(40, 25).mean(axis=1)
    means = [rng.choice(per_person, 40).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    naive_low, naive_high = classification.bootstrap_interval(values, seed=0)
    assert high - low > 3 * (naive_high - naive_low)


def test_bootstrap_weighs_groups_by_their_size():
    values, groups = np.array([1.0] * 9 + [0.0]), np.array([0] * 9 + [1])
    low, high = classification.bootstrap_interval(values, seed=0, groups=groups, confidence=0.4)
    assert low == high == pytest.approx(0.9)  # half of the resamples hold both groups


def test_bootstrap_of_little_and_of_much():
    assert classification.bootstrap_interval(np.array([0.3]), seed=0) == pytest.approx((0.3, 0.3))
    with pytest.raises(ValueError, match="at least one value"):
        classification.bootstrap_interval(np.array([]), seed=0)
    with pytest.raises(ValueError, match="confidence"):
        classification.bootstrap_interval(np.array([1]), seed=0, confidence=95)
    values = np.random.default_rng(0).random(1_000_000)
    tracemalloc.start()
    low, high = classification.bootstrap_interval(values, seed=0, resamples=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low <= high
    assert low == pytest.approx(values.mean(), abs=2e-3)
    assert peak < 150e6


@fast
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.3, 5.0), st.sampled_from([0.0, 0.05]))
def test_temperature_equals_scipy(seed, num_classes, sharpness, smoothing):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(300, num_classes))
    labels = np.array([rng.choice(num_classes, p=row) for row in special.softmax(logits / sharpness, axis=1)])

    def nll(log_temperature):
        log_probabilities = special.log_softmax(logits / math.exp(log_temperature), axis=1)
        targets = np.full((300, num_classes), smoothing / (num_classes - 1))
        targets[np.arange(300), labels] = 1 - smoothing
        return -(targets * log_probabilities).sum(axis=1).mean()

    best = optimize.minimize_scalar(
        nll, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-9}
    )
    temperature = calibration.fit_temperature(logits, labels, smoothing)
    assert temperature == pytest.approx(math.exp(best.x), rel=1e-3)
    assert nll(math.log(temperature)) <= best.fun + 1e-12


def test_temperature_of_calibrated_logits_is_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 4))
    cumulative = calibration.softmax(logits).cumsum(axis=1)
    labels = (rng.random((20_000, 1)) > cumulative).sum(axis=1)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.04)
    assert calibration.fit_temperature(3 * logits, labels) == pytest.approx(3.0, abs=0.12)


def test_temperature_without_anything_to_fit():
    right, wrong = np.array([0, 1]), np.array([1, 0])
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert calibration.fit_temperature(np.empty((0, 2)), np.empty(0, dtype=int)) == 1.0
    assert calibration.fit_temperature(np.full((2, 2), np.nan), right) == 1.0
    assert calibration.fit_temperature(np.ones((2, 2)), right) == 1.0
    assert calibration.fit_temperature(logits, right) == pytest.approx(0.05)
    assert calibration.fit_temperature(logits, wrong) == pytest.approx(20)
    spoilt = np.vstack([logits, [[np.inf, 0.0]]])
    assert calibration.fit_temperature(spoilt, np.array([1, 0, 0])) == pytest.approx(20)


def test_a_model_without_validation_errors_is_not_taken_for_infallible():
    logits = np.tile([[3.0, 0.0], [0.0, 3.0]], (50, 1))
    probabilities = calibration.softmax(logits, calibration.temperature_for(logits, np.tile([0, 1], 50)))
    assert probabilities.max() == pytest.approx(1 - 1 / 102, abs=1e-6)  # one more image, and that one wrong


def test_softmax_is_stable():
    logits = np.array([[1e4, 1e4 - 1, -1e4], [-1e4, 0, 0]], dtype=np.float32)
    ours = calibration.softmax(logits, temperature=0.5)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, special.softmax(logits.astype(np.float64) / 0.5, axis=1))


@pytest.mark.parametrize("images", [calibration.ENOUGH - 1, calibration.ENOUGH])
def test_a_temperature_is_fitted_only_to_enough_images(images):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(images, 3)) * 5
    labels = np.where(rng.random(images) < 0.7, logits.argmax(axis=1), rng.integers(3, size=images))
    fitted = calibration.fit_temperature(logits, labels, 1 / (images + 2))
    assert fitted != pytest.approx(1.0, abs=0.05)
    expected = fitted if images >= calibration.ENOUGH else 1.0
    assert calibration.temperature_for(logits, labels) == expected


@fast
@given(evaluations(), st.integers(1, 20))
def test_classwise_calibration_error_equals_the_loop_of_its_definition(evaluation, bins):
    labels, probabilities, _, num_classes = evaluation
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for index in range(num_classes):
        for low, high in itertools.pairwise(edges):
            inside = [i for i, p in enumerate(probabilities[:, index]) if low < p <= high or (p == 0 and low == 0)]
            if inside:
                said = sum(probabilities[i, index] for i in inside) / len(inside)
                share = sum(labels[i] == index for i in inside) / len(inside)
                expected += len(inside) / len(labels) * abs(said - share) / num_classes
    assert classification.classwise_calibration_error(labels, probabilities, bins) == pytest.approx(expected, abs=1e-12)
    ours = classification.calibration_metrics(labels, probabilities)
    scores = classification.classification_metrics(labels, probabilities, labels, num_classes)
    assert ours == {name: scores[name] for name in ("log_loss", "brier", "ece", "classwise_ece")}


def test_classwise_calibration_sees_what_the_top_class_hides():
    """Always right and sure of it in half of the images: the runner-up's probability goes to the wrong class."""
    labels = np.repeat([0, 1], 100)
    probabilities = np.repeat([[1.0, 0, 0], [0, 0.6, 0.4]], 100, axis=0)
    sure = np.repeat([[1.0, 0, 0], [0, 1.0, 0]], 100, axis=0)
    assert classification.classwise_calibration_error(labels, sure) == 0
    assert classification.classwise_calibration_error(labels, probabilities) == pytest.approx((0.2 + 0.2) / 3)
    assert classification.classwise_calibration_error(labels[:0], probabilities[:0]) is None
