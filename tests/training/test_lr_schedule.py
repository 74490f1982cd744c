"""The learning rate is a function of the step and of the epochs so far."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.training.lr_schedule import factor

SCHEDULERS = ["cosine", "step", "plateau"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_rate_rises_in_equal_steps_during_warm_up(scheduler):
    rates = [factor(scheduler, step, 100, 9) for step in range(10)]
    np.testing.assert_allclose(rates, np.arange(1, 11) / 10)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_falls_from_one_to_almost_nothing(warmup):
    rates = [factor("cosine", step, 1000, warmup) for step in range(warmup, 1000)]
    assert rates[0] == 1 and 0 < rates[-1] < 1e-4
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert factor("cosine", (1000 + warmup) // 2, 1000, warmup) == pytest.approx(0.5)


def test_step_takes_a_tenth_after_each_third():
    rates = [factor("step", step, 9, 0) for step in range(9)]
    np.testing.assert_allclose(rates, [1] * 3 + [0.1] * 3 + [0.01] * 3)


@pytest.mark.parametrize(
    ("improved", "tenths"),
    [
        ("", 0),
        ("+", 0),
        ("+-", 0),
        ("+--", 1),
        ("+-+-", 0),
        ("+---", 1),
        ("+----", 2),
        ("+--+-", 1),
        ("+--+--", 2),
        ("--", 1),
    ],
)
def test_plateau_takes_a_tenth_after_two_epochs_without_improvement(improved, tenths):
    assert factor("plateau", 50, 100, 0, [epoch == "+" for epoch in improved]) == pytest.approx(0.1**tenths)


@given(st.sampled_from(SCHEDULERS), st.integers(1, 50), st.integers(0, 60), st.lists(st.booleans(), max_size=8))
def test_the_rate_is_always_a_share_of_the_base_rate(scheduler, total, warmup, improved):
    assert all(0 < factor(scheduler, step, total, warmup, improved) <= 1 for step in range(total))
