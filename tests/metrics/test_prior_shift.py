"""Another class mix: against Bayes' rule with known densities, and against the words of a user."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from spectacles.core.errors import UserError
from spectacles.metrics import prior_shift

shares = st.floats(0.01, 0.99)


@given(shares, shares, st.lists(st.floats(-3, 3), min_size=1, max_size=5))
def test_two_normal_densities_follow_the_rule_of_bayes(before, after, points):
    def posterior(share):
        one, zero = share * norm.pdf(points, 1), (1 - share) * norm.pdf(points, -1)
        return np.stack([zero, one], axis=1) / (zero + one)[:, None]

    moved = prior_shift.biases([1 - before, before], [1 - after, after], multi_label=False)
    np.testing.assert_allclose(softmax(np.log(posterior(before)) + moved, axis=1), posterior(after), rtol=1e-9)
    moved = prior_shift.biases([before], [after], multi_label=True)
    np.testing.assert_allclose(expit(logit(posterior(before)[:, 1]) + moved), posterior(after)[:, 1], rtol=1e-7)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 3.0])])
def test_the_shares_that_a_trained_network_assumes_are_those_of_its_weighed_images(weights):
    """A logistic regression on nothing but a constant learns them."""
    labels = np.repeat([0, 1], [30, 10])
    sample_weight = None if weights is None else weights[labels]
    model = LogisticRegression(C=1e6, tol=1e-8).fit(np.zeros((40, 1)), labels, sample_weight)
    expected = model.predict_proba(np.zeros((1, 1)))[0]
    assert prior_shift.fitted_shares(labels, 2, weights) == pytest.approx(expected, abs=1e-6)
    of_label = prior_shift.fitted_shares(labels[:, None], 1, None if weights is None else weights[1:])
    assert of_label == pytest.approx(expected[1:], abs=1e-6)


def test_classes_that_are_not_named_share_the_rest():
    assert prior_shift.parse("a=0.5", ["a", "b", "c"], [0.2, 0.2, 0.6], False) == pytest.approx([0.5, 0.125, 0.375])
    assert prior_shift.parse("b=0.1,a=0.9", ["a", "b"], [0.5, 0.5], False) == pytest.approx([0.9, 0.1])
    assert prior_shift.parse("a=b=0.25", ["a=b", "c"], [0.5, 0.5], False) == pytest.approx([0.25, 0.75])
    assert prior_shift.parse("b=0.1", ["a", "b"], [0.4, 0.5], True) == [0.4, 0.1]


@pytest.mark.parametrize(
    ("text", "words"),
    [("x=0.5", "'x' is not one of the classes a, b"), ("a", "'a' is not one"), ("a=0", "'0' is not a share"),
     ("a=nan", "'nan' is not a share"), ("a=0.5,a=0.5", "names 'a' twice"), ("a=0.5,b=0.6", "must add up to 1"),
     ("a=0.5,b=0.4", "must add up to 1"), ("", "'' is not one")],
)  # fmt: skip
def test_a_mix_that_cannot_be_is_reported(text, words):
    with pytest.raises(UserError, match=words):
        prior_shift.parse(text, ["a", "b"], [0.5, 0.5], False)


def test_a_sentence_names_the_largest_shares():
    assert prior_shift.sentence(["a", "b"], [0.25, 0.75]) == "75.0 % 'b', 25.0 % 'a'"
    assert prior_shift.sentence([str(n) for n in range(12)], [1 / 12] * 12).endswith("8.3 % '10' and 2 more")
