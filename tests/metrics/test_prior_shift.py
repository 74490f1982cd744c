"""Another class mix: against Bayes' rule with known densities, and against the words of a user."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from spectacles.core.errors import UserError
from spectacles.metrics import prior_shift

shares = st.floats(0.01, 0.99)


@given(shares, shares, st.lists(st.floats(-3, 3), min_size=1, max_size=5))
def test_two_normal_densities_follow_the_rule_of_bayes(before, after, points):
    def posterior(share):
        one, zero = share * norm.pdf(points, 1), (1 - share) * norm.pdf(points, -1)
        return np.stack([zero, one], axis=1) / (zero + one)[:, None]

    moved = prior_shift.adjust(posterior(before), [1 - before, before], [1 - after, after], multi_label=False)
    np.testing.assert_allclose(moved, posterior(after), rtol=1e-9)
    label = prior_shift.adjust(posterior(before)[:, 1:], [before], [after], multi_label=True)
    np.testing.assert_allclose(label[:, 0], posterior(after)[:, 1], rtol=1e-9)


@given(st.lists(shares, min_size=3, max_size=3))
def test_the_same_mix_changes_nothing_and_there_and_back_is_here(fitted):
    mix = np.array(fitted) / sum(fitted)
    given_ = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    np.testing.assert_allclose(prior_shift.adjust(given_, mix, mix, False), given_, rtol=1e-12)
    there = prior_shift.adjust(given_, mix, [0.2, 0.3, 0.5], False)
    np.testing.assert_allclose(prior_shift.adjust(there, [0.2, 0.3, 0.5], mix, False), given_, rtol=1e-9)


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
