"""Log loss and Brier score against scikit-learn, calibration errors against loops that spell their definitions out."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_images import scored_images
from sklearn import metrics as reference

from spectacles.metrics import probability_scores
from spectacles.metrics.scoring import metrics_of

fast = settings(max_examples=30, deadline=None)


@fast
@given(scored_images(), st.sampled_from([np.float32, np.float64]))
def test_log_loss_and_brier_equal_their_definitions(scored, dtype):
    labels, probabilities = scored.labels, scored.probabilities.astype(dtype)
    ours = probability_scores.calibration_metrics(labels, probabilities)
    epsilon = np.finfo(dtype).eps
    clipped = np.clip(probabilities, epsilon, 1 - epsilon)[np.arange(len(labels)), labels]
    assert ours["log_loss"] == pytest.approx(float(-np.log(clipped.astype(float)).mean()), rel=1e-5)
    one_hot = np.eye(scored.num_classes)[labels]
    assert ours["brier"] == pytest.approx(float(((one_hot - probabilities) ** 2).sum(axis=1).mean()), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_log_loss_and_brier_equal_scikit_learn(dtype, num_classes):
    rng = np.random.default_rng(1)
    labels = rng.integers(num_classes, size=200)
    probabilities = rng.dirichlet(np.full(num_classes, 0.3), size=200).astype(dtype)
    probabilities[:num_classes] = np.eye(num_classes)  # exactly 0 and 1, some of them wrong
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ours = probability_scores.calibration_metrics(labels, probabilities)
    classes = list(range(num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second argument's name changes between versions
        log_loss = reference.log_loss(labels, probabilities, labels=classes)
    brier = reference.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert ours["log_loss"] == pytest.approx(log_loss, rel=1e-5)
    assert ours["brier"] == pytest.approx(brier, rel=1e-5)


@fast
@given(scored_images(), st.integers(1, 20))
def test_calibration_error_equals_the_loop_of_its_definition(scored, bins):
    labels, probabilities, predicted = scored.labels, scored.probabilities, scored.predicted
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i, row in enumerate(probabilities) if low < row.max() <= high]
        if inside:
            confidence = sum(probabilities[i].max() for i in inside) / len(inside)
            accuracy = sum(predicted[i] == labels[i] for i in inside) / len(inside)
            expected += len(inside) / len(labels) * abs(confidence - accuracy)
    assert probability_scores.expected_calibration_error(labels, probabilities, bins) == pytest.approx(
        expected, abs=1e-12
    )
    assert probability_scores.reliability_bins(labels, probabilities, bins)[0].sum() == len(labels)


@fast
@given(scored_images(), st.integers(1, 20))
def test_classwise_calibration_error_equals_the_loop_of_its_definition(scored, bins):
    labels, probabilities, num_classes = scored.labels, scored.probabilities, scored.num_classes
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for index in range(num_classes):
        for low, high in itertools.pairwise(edges):
            inside = [i for i, p in enumerate(probabilities[:, index]) if low < p <= high or (p == 0 and low == 0)]
            if inside:
                stated = sum(probabilities[i, index] for i in inside) / len(inside)
                share = sum(labels[i] == index for i in inside) / len(inside)
                expected += len(inside) / len(labels) * abs(stated - share) / num_classes
    assert probability_scores.classwise_calibration_error(labels, probabilities, bins) == pytest.approx(
        expected, abs=1e-12
    )
    ours = probability_scores.calibration_metrics(labels, probabilities)
    scores = metrics_of(scored)
    assert ours == {name: scores[name] for name in ("log_loss", "brier", "ece", "classwise_ece")}


def test_classwise_calibration_sees_what_the_top_class_hides():
    """Always right and sure of it in half of the images: the runner-up's probability goes to the wrong class."""
    labels = np.repeat([0, 1], 100)
    probabilities = np.repeat([[1.0, 0, 0], [0, 0.6, 0.4]], 100, axis=0)
    sure = np.repeat([[1.0, 0, 0], [0, 1.0, 0]], 100, axis=0)
    assert probability_scores.classwise_calibration_error(labels, sure) == 0
    assert probability_scores.classwise_calibration_error(labels, probabilities) == pytest.approx((0.2 + 0.2) / 3)
    assert probability_scores.classwise_calibration_error(labels[:0], probabilities[:0]) is None
