"""Curves and areas against loops that spell their definitions out, and scipy's Mann-Whitney statistic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spectacles.metrics import curves


@st.composite
def rankings(draw):
    """(positive, scores) with both kinds present and, often, ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(2, 80))
    positive = rng.random(size) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    positive[:2] = True, False
    return positive, rng.integers(0, draw(st.sampled_from([1, 3, 1000])) + 1, size=size) / 1000


@settings(max_examples=30)
@given(rankings())
def test_roc_auc_is_the_chance_that_a_positive_outscores_a_negative(ranking):
    positive, scores = ranking
    pairs = scores[positive][:, None] - scores[~positive]
    area = curves.roc_auc(positive, scores)
    assert area == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2))
    if len(set(scores)) > 1:
        statistic = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
        assert area == pytest.approx(statistic / pairs.size)


@settings(max_examples=30)
@given(rankings())
def test_average_precision_is_the_mean_precision_at_each_positive(ranking):
    positive, scores = ranking
    precisions = [positive[scores >= score].mean() for score in scores[positive]]
    assert curves.average_precision(positive, scores) == pytest.approx(np.mean(precisions))


@settings(max_examples=30)
@given(rankings())
def test_the_roc_curve_has_the_rates_at_every_score(ranking):
    positive, scores = ranking
    false_positive_rates, true_positive_rates, thresholds = curves.roc_curve(positive, scores)
    assert thresholds.tolist() == [np.inf, *np.unique(scores)[::-1]]
    for place, threshold in enumerate(thresholds):
        assert false_positive_rates[place] == pytest.approx((scores[~positive] >= threshold).mean())
        assert true_positive_rates[place] == pytest.approx((scores[positive] >= threshold).mean())


@pytest.mark.parametrize("positive", [[], [True], [False, False], [True, True]])
def test_without_positives_or_negatives_nothing_is_defined(positive):
    positive = np.array(positive, dtype=bool)
    scores = np.linspace(0, 1, len(positive))
    assert curves.roc_auc(positive, scores) is None
    assert curves.average_precision(positive, scores) is None
    with pytest.raises(ValueError, match="both positive and negative"):
        curves.roc_curve(positive, scores)


def test_thresholds_have_the_precision_of_float64():
    scores = np.array([0.1, 0.7], dtype=np.float32)
    thresholds = curves.roc_curve(np.array([False, True]), scores)[2]
    assert thresholds.dtype == np.float64
    assert thresholds[1:].tolist() == scores[::-1].astype(np.float64).tolist()
