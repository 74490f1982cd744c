"""Intervals against copies of images drawn one by one, scipy, and how often they hold the truth."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from sklearn import metrics

from spectacles.metrics import bootstrap, classification, classification_bootstrap, decisions, probability_scores
from spectacles.metrics.decisions import Scored


def made(num_classes: int, images: int, clusters: int | None, seed: int = 0, threshold: float | None = None) -> Scored:
    """Coarse probabilities, so that there are ties, that mostly favour the true class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=images)
    weights = rng.integers(0, 6, size=(images, num_classes)) + 0.01
    weights[np.arange(images), labels] += rng.integers(0, 6, size=images)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    members = np.arange(images) if clusters is None else rng.integers(clusters, size=images) * 7
    return Scored(labels, probabilities, decisions.decide(probabilities, threshold), members)


def assert_equal_to_copies(scored: Scored, resamples: int = 12) -> None:
    """Every metric in every resample is the metric of the images, each copied as often as its cluster was drawn."""
    drawn = classification_bootstrap.resampled_metrics(scored, 3, resamples)
    _, cluster = np.unique(scored.clusters, return_inverse=True)
    weights = np.concatenate(list(bootstrap.draw_weights(cluster.max() + 1, 3, resamples)), axis=1)
    for number in range(resamples):
        copies = np.repeat(np.arange(len(cluster)), weights[cluster, number].astype(int))
        expected = classification.classification_metrics(
            scored.labels[copies], scored.probabilities[copies], scored.predicted[copies], scored.num_classes
        )
        for name, values in drawn.items():
            if expected[name] is None:
                assert np.isnan(values[number]), name
            else:
                assert values[number] == pytest.approx(expected[name], abs=1e-12), name


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 50), st.sampled_from([1, 3, 20, None]), st.integers(0, 2**32 - 1))
def test_a_resample_equals_its_copies(num_classes: int, images: int, clusters: int | None, seed: int) -> None:
    assert_equal_to_copies(made(num_classes, images, clusters, seed, 0.3))


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = made(3, 40, 15)
    whole = classification_bootstrap.resampled_metrics(scored, 1, 30)
    monkeypatch.setattr(bootstrap, "BLOCK", 7 * 40)
    for name, values in classification_bootstrap.resampled_metrics(scored, 1, 30).items():
        np.testing.assert_allclose(values, whole[name])


def test_a_bound_gives_areas_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = made(3, 60, None)
    whole = classification_bootstrap.resampled_metrics(scored, 1, 400)
    monkeypatch.setattr(bootstrap, "MOST_ADDITIONS", 250 * scored.probabilities.size)
    fewer = classification_bootstrap.resampled_metrics(scored, 1, 400)
    assert len(fewer["roc_auc"]) == len(fewer["pr_auc"]) == 250
    np.testing.assert_allclose(fewer["roc_auc"], whole["roc_auc"][:250])
    np.testing.assert_allclose(fewer["accuracy"], whole["accuracy"])
    monkeypatch.setattr(bootstrap, "MOST_ADDITIONS", 0)
    assert len(classification_bootstrap.resampled_metrics(scored, 1, 400)["roc_auc"]) == bootstrap.FEWEST
    assert len(classification_bootstrap.resampled_metrics(scored, 1, 50)["roc_auc"]) == 50


STATISTICS: dict[str, Callable[[Scored, np.ndarray], float]] = {
    "log_loss": lambda scored, at: metrics.log_loss(scored.labels[at], scored.probabilities[at], labels=range(3)),
    "macro_f1": lambda scored, at: metrics.f1_score(scored.labels[at], scored.predicted[at], average="macro"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_equal_scipy(name: str) -> None:
    scored = made(3, 200, None)
    statistic = partial(STATISTICS[name], scored)
    reference = stats.bootstrap(
        (np.arange(200),), statistic, n_resamples=1200, method="percentile", vectorized=False, rng=0
    ).confidence_interval
    low, high = classification_bootstrap.metric_intervals(scored, 0, 3000)[name]
    width = reference.high - reference.low
    assert (low, high) == pytest.approx(reference, abs=0.12 * width)


def test_clusters_count_not_images() -> None:
    one = made(2, 60, None)
    many = Scored(*(np.repeat(each, 10, axis=0) for each in (one.labels, one.probabilities, one.predicted)),
                  clusters=np.repeat(np.arange(60), 10))  # fmt: skip
    alone, copied = (
        classification_bootstrap.metric_intervals(one, 5, 800),
        classification_bootstrap.metric_intervals(many, 5, 800),
    )
    assert copied.keys() == alone.keys()
    for name in alone.keys() - {"ece"}:
        assert copied[name] == pytest.approx(alone[name])


@pytest.mark.parametrize(("share", "units"), [(0, 1), (0, 30), (1, 1), (1, 500)])
def test_unanimous_shares_get_the_exact_interval(share: int, units: int) -> None:
    expected = stats.binomtest(share * units, units).proportion_ci(method="exact")
    assert bootstrap.clopper_pearson(share, units) == pytest.approx([expected.low, expected.high])
    right = np.full(2 * units, bool(share))
    clusters = np.repeat(np.arange(units), 2)
    assert bootstrap.share_interval(right, clusters, 0, 50) == pytest.approx([expected.low, expected.high])


def test_a_model_without_errors_is_not_called_perfect() -> None:
    labels = np.array([0, 1] * 20)
    probabilities = np.eye(2)[labels] * 0.8 + 0.1
    found = classification_bootstrap.metric_intervals(Scored(labels, probabilities, labels, np.arange(40)), 0, 200)
    assert found["accuracy"] == pytest.approx([0.025 ** (1 / 40), 1])
    rate = 1 - 0.025 ** (1 / 20)
    assert found["false_negative_rate"] == pytest.approx([0, rate])
    assert found["hter"] == pytest.approx([0, np.hypot(rate, rate) / 2])
    assert found["balanced_accuracy"] == pytest.approx([1 - found["hter"][1], 1])
    assert found["precision"] == found["recall"] == pytest.approx([1 - rate, 1])
    assert not {"roc_auc", "pr_auc", "macro_f1"} & found.keys()


def test_a_rate_of_zero_counts_in_the_mean_of_both() -> None:
    labels = np.array([0] * 200 + [1] * 10)
    predicted = labels.copy()
    predicted[:40] = 1
    probabilities = np.eye(2)[predicted] * 0.8 + 0.1
    scored = Scored(labels, probabilities, predicted, np.arange(210))
    found = classification_bootstrap.metric_intervals(scored, 0, 1000)
    of_images = bootstrap.percentile_interval(classification_bootstrap.resampled_metrics(scored, 0, 1000)["hter"])
    assert found["false_negative_rate"] == pytest.approx(bootstrap.clopper_pearson(0, 10))
    assert of_images[1] < 0.13 < found["hter"][1] < 0.3
    assert found["hter"][0] == pytest.approx(of_images[0], abs=0.01)
    assert found["balanced_accuracy"] == pytest.approx([1 - found["hter"][1], 1 - found["hter"][0]])


@pytest.mark.parametrize(("slope", "calibrated"), [(1.0, True), (2.5, False)])
def test_the_interval_of_the_calibration_error_knows_that_chance_adds_to_it(slope: float, calibrated: bool) -> None:
    held = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        logits = 2 * rng.normal(size=400)
        labels = (rng.random(400) < 1 / (1 + np.exp(-logits))).astype(int)
        positive = 1 / (1 + np.exp(-slope * logits))
        probabilities = np.stack([1 - positive, positive], axis=1)
        scored = Scored(labels, probabilities, decisions.decide(probabilities, None), np.arange(400))
        low, high = classification_bootstrap.metric_intervals(scored, 0, 200)["ece"]
        assert low <= (probability_scores.expected_calibration_error(labels, probabilities) or 0) <= high
        held += low == 0
    assert held >= 26 if calibrated else held == 0


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("images", [1, 2, 30])
def test_one_class_or_one_cluster_gives_numbers(num_classes: int, images: int) -> None:
    labels = np.zeros(images, dtype=np.int64)
    scored = made(num_classes, images, None)
    one_class = Scored(labels, scored.probabilities, scored.predicted, scored.clusters)
    one_cluster = Scored(scored.labels, scored.probabilities, scored.predicted, labels)
    for each in (one_class, one_cluster):
        found = classification_bootstrap.metric_intervals(each, 0, 50)
        json.dumps(found, allow_nan=False)
        assert all(low <= high for low, high in found.values())
    assert classification_bootstrap.metric_intervals(one_cluster, 0, 50)["accuracy"] == [0.0, 1.0]
    defined = classification_bootstrap.metric_intervals(one_class, 0, 50).keys()
    assert not {"roc_auc", "hter", "false_negative_rate"} & defined


def test_sums_follow_the_clusters() -> None:
    values = sparse.csr_matrix(np.array([[1.0, 1, 1, 1], [0, 5, 0, 7]]))
    sums = bootstrap.resampled_sums(values, np.array([3, 3, 9, 9]), 0, 100)
    assert sums.shape == (2, 100)
    assert (sums[0] == 4).all()  # two clusters of two are drawn each time
    assert set(sums[1]) == {10, 12, 14}


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    truth, experiments = 0.7, 300
    intervals = [
        bootstrap.mean_interval(rng.random(150) < truth, np.arange(150), seed, 400) for seed in range(experiments)
    ]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.91 <= covered <= 0.98


@pytest.mark.parametrize(
    "values", [np.random.default_rng(3).random(400) < 0.8, np.random.default_rng(3).normal(size=400)]
)
def test_the_interval_of_a_mean_equals_the_loop_of_its_definition(values: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    ours = bootstrap.mean_interval(values, np.arange(400), 1, 4000)
    assert ours == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)
    assert ours == bootstrap.mean_interval(values, np.arange(400), 1, 4000)


def test_whole_clusters_are_resampled() -> None:
    people = np.repeat(np.arange(40), 25) * 7
    values = np.random.default_rng(0).random(40)[people // 7] < 0.5  # all photos of a person succeed or fail together
    low, high = bootstrap.mean_interval(values, people, 0)
    rng = np.random.default_rng(9)
    per_person = values.reshape(40, 25).mean(axis=1)
    means = [rng.choice(per_person, 40).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    low_of_images, high_of_images = bootstrap.mean_interval(values, np.arange(1000), 0)
    assert high - low > 3 * (high_of_images - low_of_images)


def test_clusters_count_by_their_size() -> None:
    values = sparse.csr_matrix(np.array([[1.0] * 9 + [0.0], [1.0] * 10]))
    total, count = bootstrap.resampled_sums(values, np.array([0] * 9 + [1]), 0, 400)
    shares, times = np.unique(total / count, return_counts=True)
    assert shares.tolist() == [0.0, 0.9, 1.0]
    assert times / 400 == pytest.approx([0.25, 0.5, 0.25], abs=0.1)


def test_the_interval_of_a_mean_of_little_and_of_much() -> None:
    assert bootstrap.mean_interval(np.array([0.3]), np.zeros(1), 0) == pytest.approx([0.3, 0.3])
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap.mean_interval(np.array([]), np.array([]), 0)
    values = np.random.default_rng(0).random(1_000_000)
    tracemalloc.start()
    low, high = bootstrap.mean_interval(values, np.arange(len(values)), 0, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low <= high
    assert low == pytest.approx(values.mean(), abs=2e-3)
    assert peak < 250e6
