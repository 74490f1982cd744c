"""The baseline: the same numbers as scikit-learn's, and leakage shows as a difference."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spectacles.data.stratification import sample_clusters, stratified_folds
from spectacles.exploration.baseline import measure, sentences
from spectacles.models.feature_blocks import last_layer
from spectacles.models.linear_probe import CROSS_FIT_STRENGTHS


def gaussians(count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, 8))
    return (centres[labels] + rng.normal(size=(count, 8))).astype(np.float32), labels


def twins(pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Only its twin has an image's label by more than chance."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(pairs), 2)
    return np.eye(pairs, dtype=np.float32)[clusters], rng.permutation(np.arange(pairs) % 2)[clusters], clusters


def test_leakage_is_what_a_random_split_overstates_the_accuracy_by():
    features, labels, clusters = twins(80)
    measured = measure(last_layer(features), labels, clusters, seed=0)
    assert measured["images"] == 160 and measured["groups"] == 80
    assert measured["grouped_split"]["accuracy"] < 0.65 < measured["random_split"]["accuracy"]
    assert measured["nearest_neighbour"]["random_split"] == 1
    assert measured["nearest_neighbour"]["grouped_split"] < 0.65
    difference = measured["differences"]["random_split"]
    assert difference["accuracy"] == pytest.approx(
        measured["random_split"]["accuracy"] - measured["grouped_split"]["accuracy"]
    )
    low, high = difference["interval"]
    assert 0 < low < difference["accuracy"] < high
    assert any("it would overstate the accuracy by" in line for line in sentences(measured))
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_without_clusters_a_random_split_overstates_nothing():
    features, labels = gaussians(120)
    measured = measure(last_layer(features), labels, np.arange(120), seed=0)
    assert measured["grouped_split"] == measured["random_split"]
    assert measured["differences"]["random_split"] == {"accuracy": 0, "interval": [0, 0]}
    assert len(sentences(measured)) == 1


def test_clusters_without_shared_labels_make_no_difference():
    features, labels = gaussians(240)
    clusters = np.random.default_rng(1).integers(0, 120, 240)
    measured = measure(last_layer(features), labels, clusters, seed=0)
    low, high = measured["differences"]["random_split"]["interval"]
    assert low <= 0 <= high
    assert any("no more than chance apart" in line for line in sentences(measured))


def test_the_numbers_are_those_of_the_libraries():
    features, labels = gaussians(90)
    clusters = np.arange(90) // 3
    measured = measure(last_layer(features), labels, clusters, seed=4)
    folds = PredefinedSplit(stratified_folds(labels, clusters, 5, 4))
    best = {}
    for strength in CROSS_FIT_STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        probabilities = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
        best[log_loss(labels, probabilities)] = (probabilities.argmax(axis=1) == labels).mean()
    assert measured["grouped_split"]["accuracy"] == pytest.approx(best[min(best)], abs=1e-6)
    low, high = measured["grouped_split"]["interval"]
    assert low < measured["grouped_split"]["accuracy"] < high
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    others = [np.flatnonzero(clusters != cluster) for cluster in clusters]
    right = [
        KNeighborsClassifier(1, metric="cosine").fit(unit[rest], labels[rest]).predict(unit[[row]])[0] == labels[row]
        for row, rest in enumerate(others)
    ]
    assert measured["nearest_neighbour"]["grouped_split"] == pytest.approx(np.mean(right), abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1], [0, 0, 0, 0, 1, 1]])
def test_a_class_that_occurs_in_no_other_fold_counts_as_wrong(labels):
    given_labels = np.array(labels)
    features = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    measured = measure(last_layer(features), given_labels, given_labels, seed=0)
    assert measured["grouped_split"]["accuracy"] == measured["nearest_neighbour"]["grouped_split"] == 0
    assert sentences(measured)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 40), st.integers(0, 99))
def test_samples_hold_whole_clusters(clusters, limit, seed):
    values = np.array(clusters)
    chosen = sample_clusters(values, limit, seed)
    assert list(chosen) == sorted(set(chosen)) and len(chosen)
    assert set(values[chosen]).isdisjoint(np.delete(values, chosen))
    assert len(chosen) <= limit or len(set(values[chosen])) == 1
    np.testing.assert_array_equal(chosen, sample_clusters(values, limit, seed))
    if len(values) <= limit:
        assert len(chosen) == len(values)
