"""The confidence from which on predictions have an accuracy, against trying all confidences, one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core.errors import UserError
from spectacles.metrics import abstention
from spectacles.metrics.decisions import decide


@given(st.lists(st.floats(0, 1), min_size=1), st.one_of(st.none(), st.floats(0, 1)))
def test_certainty_is_the_probability_of_the_label(positive, threshold):
    probabilities = np.array(positive)
    both = np.stack([1 - probabilities, probabilities], axis=1)
    expected = [row[label] for row, label in zip(both, decide(both, threshold), strict=True)]
    np.testing.assert_array_equal(abstention.certainty(both, decide(both, threshold)), expected)


def test_labels_near_a_low_threshold_are_the_least_certain():
    both = np.array([[0.99, 0.01], [0.85, 0.15], [0.5, 0.5], [0.1, 0.9]])
    np.testing.assert_allclose(abstention.certainty(both, decide(both, 0.1)), [0.99, 0.15, 0.5, 0.9])
    np.testing.assert_allclose(abstention.certainty(np.array([[0.2, 0.3, 0.5]]), np.array([2])), [0.5])


@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([5, 10**6]))
def test_no_larger_share_of_the_images_reaches_the_accuracy(seed, size, accuracy, steps):
    rng = np.random.default_rng(seed)
    confident = rng.integers(0, steps, size=size) / steps
    correct = rng.random(size) < confident
    found = abstention.choose_confidence(correct, confident, accuracy)

    def holds(answered: np.ndarray) -> bool:
        return bool(answered.any()) and (1 + (~correct[answered]).sum()) / (1 + answered.sum()) <= 1 - accuracy + 1e-12

    answered = confident >= found
    largest = max((int((confident >= each).sum()) for each in confident if holds(confident >= each)), default=0)
    assert answered.sum() == largest
    assert (found == abstention.NEVER) == (largest == 0)
    assert found == 0 or found not in confident or found == abstention.NEVER


def test_an_accuracy_takes_enough_images_to_be_shown():
    for accuracy in (0.5, 0.9, 0.95, 0.99, 0.999):
        needed = abstention.images_needed(accuracy)
        confident = np.linspace(0.9, 1, needed)
        assert abstention.choose_confidence(np.ones(needed, bool), confident, accuracy) == 0
        assert abstention.choose_confidence(np.ones(needed - 1, bool), confident[1:], accuracy) == abstention.NEVER
    assert abstention.images_needed(0.99) == 99
    with pytest.raises(UserError, match="--target_accuracy 1"):
        abstention.images_needed(1.0)


@pytest.mark.parametrize(
    ("confidence", "ood_score", "expected"),
    [
        (0.9, 0.5, None), (0.7, 0.5, "low_confidence"), (0.8, 0.5, None), (0.9, 0.999, "out_of_distribution"),
        (0.7, 0.999, "out_of_distribution"), (0.9, None, None), (0.7, None, "low_confidence"), (0.9, 0.995, None),
    ],
)  # fmt: skip
def test_the_reason_to_abstain(confidence, ood_score, expected):
    assert abstention.abstain_reason(confidence, 0.8, ood_score, 0.995) == expected


def test_without_limits_the_model_never_abstains():
    assert abstention.abstain_reason(0.5, None, 1.0, 1.0) is None
