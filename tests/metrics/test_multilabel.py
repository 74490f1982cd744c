"""Metrics of images with any number of labels, against scikit-learn; their intervals against copies of images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from spectacles.metrics import bootstrap, decisions, multilabel, multilabel_bootstrap, probability_scores, scoring
from spectacles.metrics.decisions import Scored


def made(images: int, classes: int, seed: int, clusters: int | None = None) -> Scored:
    """Coarse probabilities, so that there are ties, that mostly favour the truth; a label may be had by all or none."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, classes)) < rng.uniform(0, 1, classes)).astype(np.int64)
    probabilities = np.clip(labels * 0.4 + rng.integers(0, 7, labels.shape) / 10, 0.0, 1.0)
    members = np.arange(images) if clusters is None else rng.integers(clusters, size=images)
    return Scored(labels, probabilities, decisions.decide_labels(probabilities, (0.6,) * classes), members)


def roc_auc(has: np.ndarray, scores: np.ndarray) -> float:
    pairs = scores[has == 1][:, None] - scores[has == 0]
    return float(np.mean((pairs > 0) + (pairs == 0) / 2))


def average_precision(has: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean([has[scores >= score].mean() for score in scores[has == 1]]))


@settings(max_examples=50)
@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_metrics_equal_scikit_learn_and_areas_their_definitions(images: int, classes: int, seed: int) -> None:
    scored = made(images, classes, seed)
    labels, decided, probabilities = scored.labels, scored.predicted, scored.probabilities
    found = scoring.metrics_of(scored)
    assert found["accuracy"] == pytest.approx(
        (labels == decided).all(axis=1).mean() if classes == 1 else sk.accuracy_score(labels, decided)
    )
    assert found["label_accuracy"] == pytest.approx(1 - sk.hamming_loss(labels, decided))
    occurs = np.flatnonzero(labels.any(axis=0))
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        each = [score(labels[:, place], decided[:, place], zero_division=0) for place in range(classes)]
        expected = np.mean([each[place] for place in occurs]) if len(occurs) else None
        assert found[f"macro_{name}"] == (None if expected is None else pytest.approx(expected))
        pooled = score(labels.ravel(), decided.ravel(), zero_division=0)
        assert found[f"micro_{name}"] is None or found[f"micro_{name}"] == pytest.approx(pooled)
    both = [place for place in range(classes) if 0 < labels[:, place].sum() < images]
    for name, score in (("roc_auc", roc_auc), ("mean_average_precision", average_precision)):
        expected = np.mean([score(labels[:, place], probabilities[:, place]) for place in both]) if both else None
        assert found[name] == (None if expected is None else pytest.approx(expected))
    balanced = [sk.balanced_accuracy_score(labels[:, place], decided[:, place]) for place in both]
    assert found["balanced_accuracy"] == (pytest.approx(np.mean(balanced)) if both else None)
    answers = multilabel.as_binary(labels, probabilities)
    assert found["log_loss"] == pytest.approx(sk.log_loss(*answers, labels=[0, 1]))
    assert found["brier"] == pytest.approx(((labels - probabilities) ** 2).mean())
    assert found["ece"] == pytest.approx(probability_scores.expected_calibration_error(*answers))


def test_the_class_wise_error_is_the_gap_of_each_label() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 1], [1, 0]])
    probabilities = np.array([[0.9, 0.2], [0.9, 0.2], [0.9, 0.2], [0.3, 0.2]])
    # First label: three at 0.9, two of them with it; one at 0.3, with it. Second: four at 0.2, one with it.
    expected = ((0.75 * abs(0.9 - 2 / 3) + 0.25 * abs(0.3 - 1)) + abs(0.2 - 0.25)) / 2
    assert multilabel.calibration_metrics(labels, probabilities)["classwise_ece"] == pytest.approx(expected)


def test_undefined_metrics_are_none() -> None:
    nothing = scoring.metrics_of(Scored(np.zeros((0, 2), int), np.zeros((0, 2)), np.zeros((0, 2), int), np.zeros(0)))
    assert set(nothing.values()) == {None}
    certain = np.array([[0.0, 0.0]])
    alone = scoring.metrics_of(Scored(np.array([[0, 0]]), certain, decisions.decide_labels(certain), np.zeros(1)))
    assert alone["accuracy"] == 1.0
    undefined = {name for name, value in alone.items() if value is None}
    assert undefined == {"balanced_accuracy", "micro_precision", "micro_recall", "micro_f1", "macro_precision",
                         "macro_recall", "macro_f1", "roc_auc", "mean_average_precision"}  # fmt: skip


def test_each_label_has_its_own_metrics() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    probabilities = np.array([[0.9, 0.6], [0.2, 0.7], [0.1, 0.1], [0.4, 0.8]])
    first, second = scoring.per_class(
        Scored(labels, probabilities, decisions.decide_labels(probabilities), np.arange(4))
    )
    assert first == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2, "missed": 1, "added": 0,
                     "average_precision": average_precision(labels[:, 0], probabilities[:, 0])}  # fmt: skip
    assert (second["missed"], second["added"], second["precision"]) == (0, 1, pytest.approx(2 / 3))


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([1, 3, 20, None]), st.integers(0, 2**32 - 1))
def test_a_resample_equals_its_copies(images: int, classes: int, clusters: int | None, seed: int) -> None:
    scored, resamples = made(images, classes, seed, clusters), 8
    drawn = multilabel_bootstrap.resampled_metrics(scored, 3, resamples)
    _, cluster = np.unique(scored.clusters, return_inverse=True)
    weights = np.concatenate(list(bootstrap.draw_weights(cluster.max() + 1, 3, resamples)), axis=1)
    for number in range(resamples):
        copies = np.repeat(np.arange(len(cluster)), weights[cluster, number].astype(int))
        expected = multilabel.multi_label_metrics(
            scored.labels[copies], scored.probabilities[copies], scored.predicted[copies]
        )
        for name, values in drawn.items():
            if expected[name] is None:
                assert np.isnan(values[number]), name
            else:
                assert values[number] == pytest.approx(expected[name], abs=1e-12), name


def test_every_scalar_has_an_interval_around_it() -> None:
    scored = made(150, 4, seed=5)
    found, measured = scoring.intervals_of(scored, 0, 500), scoring.metrics_of(scored)
    assert set(measured) - set(found) == {"ece", "classwise_ece"}
    for name, (low, high) in found.items():
        value = measured[name]
        assert value is not None and low < value < high, name


def test_without_an_error_the_accuracy_gets_an_exact_interval() -> None:
    labels = np.tile([[1, 0], [0, 1]], (10, 1))
    found = scoring.intervals_of(Scored(labels, labels * 0.8 + 0.1, labels, np.arange(20)), 0, 50)
    assert found["accuracy"] == pytest.approx([0.025 ** (1 / 20), 1.0])
    assert "macro_f1" not in found
    one_cluster = scoring.intervals_of(Scored(labels, labels * 0.8 + 0.1, labels, np.zeros(20)), 0, 50)
    assert one_cluster["accuracy"] == [0.0, 1.0]
