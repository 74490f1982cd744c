"""What other thresholds would give, against scikit-learn and copies of images drawn one by one."""

import numpy as np
import pytest
from sklearn import metrics

from spectacles.metrics.operating_points import GOALS, Positives, operating_points


def drawn(images: int, seed: int, clusters: int | None = None) -> Positives:
    rng = np.random.default_rng(seed)
    has = rng.random(images) < 0.3
    scores = (rng.normal(size=images) + 1.5 * has).round(1)
    scores = 1 / (1 + np.exp(-scores))
    return Positives(has, scores, np.arange(images) if clusters is None else rng.integers(clusters, size=images))


def test_rates_are_those_of_scikit_learn_and_the_thresholds_come_from_validation_data():
    val, test = drawn(300, 0), drawn(400, 1)
    rows = operating_points(val, test, 0.5, seed=0, resamples=50)
    assert [row["goal"] for row in rows] == ["in use", *map(str, GOALS)]
    for row in rows:
        claimed = test.scores >= row["threshold"]
        assert row["precision"] == pytest.approx(metrics.precision_score(test.has, claimed))
        assert row["recall"] == pytest.approx(metrics.recall_score(test.has, claimed))
        assert row["false_positive_rate"] == pytest.approx(1 - metrics.recall_score(~test.has, ~claimed))
        assert row["hter"] == pytest.approx(1 - metrics.balanced_accuracy_score(test.has, claimed))
    reached = {row["goal"]: metrics.recall_score(val.has, val.scores >= row["threshold"]) for row in rows}
    assert reached["recall:0.95"] >= 0.95 and reached["recall:0.99"] >= 0.99
    assert {**rows[1]} == {**operating_points(val, drawn(400, 1), 0.9, 0, 50)[1]}, "whatever is in use"


def test_intervals_hold_the_middle_of_resampled_clusters():
    test = drawn(200, 2, clusters=80)
    [row, *_] = operating_points(drawn(200, 3), test, 0.5, seed=0, resamples=2000)
    rng, recalls = np.random.default_rng(5), []
    members = [np.flatnonzero(test.clusters == cluster) for cluster in np.unique(test.clusters)]
    for _ in range(2000):
        places = np.concatenate([members[each] for each in rng.integers(len(members), size=len(members))])
        recalls.append(metrics.recall_score(test.has[places], test.scores[places] >= 0.5))
    low, high = np.quantile(recalls, [0.025, 0.975])
    assert row["intervals"]["recall"] == pytest.approx([low, high], abs=0.12 * (high - low))


def test_shares_of_all_and_none_have_exact_intervals():
    has = np.repeat([True, False], 20)
    perfect = Positives(has, np.where(has, 0.9, 0.1), np.arange(40))
    [row, *_] = operating_points(perfect, perfect, 0.5, seed=0, resamples=50)
    assert row["intervals"]["recall"] == pytest.approx([0.025 ** (1 / 20), 1])
    assert row["intervals"]["false_positive_rate"] == pytest.approx([0, 1 - 0.025 ** (1 / 20)])
    bound = 1 - 0.025 ** (1 / 20)
    assert row["intervals"]["hter"] == pytest.approx([0, np.hypot(bound, bound) / 2])


def test_costs_are_per_image_and_beside_those_of_the_threshold_in_use():
    val, test = drawn(300, 0), drawn(400, 1)
    rows = {row["goal"]: row for row in operating_points(val, test, 0.9, seed=0, resamples=20)}
    row = rows["cost:FP=1,FN=5"]
    for threshold, cost in ((row["threshold"], row["cost"]), (0.9, row["cost_in_use"])):
        _, false_positives, false_negatives, _ = metrics.confusion_matrix(test.has, test.scores >= threshold).ravel()
        assert cost == pytest.approx((false_positives + 5 * false_negatives) / 400)
    assert row["cost"] < row["cost_in_use"] and "cost" not in rows["f1"]


def test_what_is_undefined_is_none():
    none = Positives(np.zeros(10, bool), np.full(10, 0.2), np.arange(10))
    [row] = operating_points(none, none, 0.5, seed=0, resamples=20)
    assert (row["precision"], row["recall"], row["hter"], row["false_positive_rate"]) == (None, None, None, 0.0)
    assert set(row["intervals"]) == {"false_positive_rate"}
