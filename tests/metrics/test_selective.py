"""Coverage curves and abstention against loops that spell the definitions out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.metrics import selective


def judged(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(count) < 0.8, rng.integers(0, 8, size=count) / 8


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_curve_is_the_mean_over_all_orders_of_equals(seed: int, count: int) -> None:
    correct, certainty = judged(seed, count)
    found = selective.selective(correct, certainty)
    rng = np.random.default_rng(0)
    sums = np.zeros(count)
    for _ in range(300):
        order = rng.permutation(count)
        order = order[np.argsort(-certainty[order], kind="stable")]
        sums += np.cumsum(correct[order]) / np.arange(1, count + 1)
    assert found["coverage"] == pytest.approx((np.arange(count) + 1) / count)
    assert found["accuracy"] == pytest.approx(sums / 300, abs=0.13)
    assert found["accuracy"][-1] == pytest.approx(correct.mean())
    assert found["aurc"] == pytest.approx(1 - np.mean(found["accuracy"]))
    assert found["aurc"] >= found["aurc_least"] - 1e-12


def test_errors_that_are_the_least_certain_reach_the_least_area() -> None:
    correct = np.array([True] * 90 + [False] * 10)
    best = selective.selective(correct, np.linspace(1, 0.5, 100))
    worst = selective.selective(correct, np.linspace(0.5, 1, 100))
    risks = [0] * 90 + [error / (90 + error) for error in range(1, 11)]
    assert best["aurc"] == best["aurc_least"] == pytest.approx(np.mean(risks))
    assert worst["aurc"] > 0.3


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    correct, certainty = judged(0, 5000)
    found = selective.selective(correct, certainty)
    assert len(found["coverage"]) == len(found["accuracy"]) == selective.POINTS
    assert (found["coverage"][0], found["coverage"][-1]) == (1 / 5000, 1)


def test_abstentions_are_counted_and_the_rest_is_scored() -> None:
    correct = np.array([True, True, False, False, True])
    reasons = np.array(["", "low_confidence", "low_confidence", "out_of_distribution", ""])
    found = selective.by_abstention(correct, reasons, np.arange(5), 0, 50)
    assert (found["low_confidence"], found["out_of_distribution"]) == (2, 1)
    assert (found["answered"]["images"], found["answered"]["accuracy"]) == (2, 1)
    assert found["answered"]["interval"] == pytest.approx([0.025**0.5, 1])
    assert selective.sentence(found) == (
        "the model abstains on 3 images (2 low confidence, 1 out of distribution); of the other 2 it gets 100.0 % "
        "right (15.8 to 100.0 %, 95 %)"
    )


def test_where_the_model_always_abstains_no_accuracy_is_claimed() -> None:
    found = selective.by_abstention(np.array([True]), np.array(["low_confidence"]), np.array([0]), 0, 50)
    assert found["answered"] == {"images": 0, "accuracy": None, "interval": None}
    assert selective.sentence(found) == "the model abstains on all 1 image (1 low confidence)"
