"""Vector scaling against another optimiser, and kept only where it helps on images it was not fitted to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from spectacles.metrics import calibration
from spectacles.metrics.calibration import Calibration


def drawn(seed: int, count: int, classes: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """(logits that are calibrated, labels drawn from their probabilities)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(count, classes))
    cumulative = special.softmax(logits, axis=1).cumsum(axis=1)
    return logits, np.minimum((rng.random((count, 1)) > cumulative).sum(axis=1), classes - 1)


def log_loss(calibrated: Calibration, logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(calibrated.probabilities(logits)[np.arange(len(labels)), labels]).mean())


def posterior(parameters: np.ndarray, logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The objective as it is documented, in other words."""
    count, classes = logits.shape
    scales, biases = parameters[:classes], parameters[classes:]
    likelihood = special.log_softmax(logits / temperature * scales + biases, axis=1)
    smoothing = 1 / (count + 2)
    own = likelihood[np.arange(count), labels]
    others = (likelihood.sum(axis=1) - own) / (classes - 1)
    prior = ((scales - 1) ** 2).sum() + (biases**2).sum()
    return float(-((1 - smoothing) * own + smoothing * others).sum() + prior / (2 * calibration.SPREAD**2))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(3, 5), st.sampled_from([0.5, 1.0, 3.0]))
def test_vector_scaling_equals_scipys_simplex(seed, classes, temperature):
    logits, labels = drawn(seed, 80, classes)
    skewed = logits * np.linspace(0.5, 2, classes) + np.linspace(-1, 1, classes)
    found = calibration.fit_vector(skewed, labels, temperature)
    ours = posterior(np.array(found.scales + found.biases), skewed, labels, temperature)
    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    reference = optimize.minimize(
        posterior, start, (skewed, labels, temperature), method="Powell",
        bounds=[(0.05, 20)] * classes + [(-20, 20)] * classes, options={"maxiter": 200, "xtol": 1e-6, "ftol": 1e-10},
    )  # fmt: skip
    assert ours <= reference.fun + 1e-3
    assert found.temperature == temperature and min(found.scales) >= 0.05


def test_it_undoes_a_scale_and_a_bias_of_each_class():
    logits, labels = drawn(0, 20_000, 3)
    scales, biases = np.array([0.5, 1.0, 2.0]), np.array([0.5, 0.0, -0.5])
    kept = calibration.fit((logits - biases) / scales, labels)
    probabilities = kept.probabilities((logits - biases) / scales)
    assert np.abs(probabilities - special.softmax(logits, axis=1)).mean() < 0.01
    np.testing.assert_allclose(np.array(kept.scales) / kept.temperature, scales, rtol=0.1)


def test_it_is_better_on_other_images_where_it_is_kept():
    logits, labels = drawn(1, 4000, 4)
    skewed = logits - np.array([2.0, 0, 0, -1])
    kept = calibration.fit(skewed[:2000], labels[:2000])
    assert kept.scales
    alone = Calibration(kept.temperature)
    assert log_loss(kept, skewed[2000:], labels[2000:]) < log_loss(alone, skewed[2000:], labels[2000:]) - 0.05


@pytest.mark.parametrize("seed", range(5))
def test_calibrated_logits_keep_the_temperature_alone(seed):
    logits, labels = drawn(seed, 600, 5)
    assert calibration.fit(logits, labels) == Calibration(calibration.temperature_for(logits, labels))


def test_two_classes_and_few_images_have_the_temperature_alone():
    logits, labels = drawn(0, 400, 2)
    assert not calibration.fit(logits - np.array([2.0, 0]), labels).scales
    logits, labels = drawn(0, calibration.ENOUGH_A_CLASS * 20 - 1, 20)
    assert not calibration.fit(logits - np.linspace(0, 5, 20), labels).scales
    few = calibration.ENOUGH - 1
    assert calibration.fit(*drawn(0, few, 3)) == Calibration()


def test_large_validation_data_are_thinned_out(monkeypatch):
    logits, labels = drawn(0, 3000, 3)
    skewed = logits - np.array([1.0, 0, -1])
    whole = calibration.fit(skewed, labels)
    monkeypatch.setattr(calibration, "LARGEST", 4500)
    part = calibration.fit(skewed, labels)
    assert part != whole and part.temperature == whole.temperature
    np.testing.assert_allclose(part.biases, whole.biases, atol=0.3)


def test_a_class_without_validation_images_gets_a_finite_answer():
    logits, labels = drawn(0, 500, 4)
    present = labels != 2
    found = calibration.fit_vector(logits[present], labels[present], 1.0)
    probabilities = found.probabilities(logits)
    assert (
        np.isfinite(probabilities).all() and probabilities[:, 2].mean() < special.softmax(logits, axis=1)[:, 2].mean()
    )


@given(st.integers(0, 2**32 - 1))
def test_the_neutral_vector_is_the_temperature_alone(seed):
    logits = np.random.default_rng(seed).normal(scale=5, size=(7, 3)).astype(np.float32)
    expected = calibration.softmax(logits, 1.7)
    np.testing.assert_array_equal(Calibration(1.7).probabilities(logits), expected)
    np.testing.assert_allclose(Calibration(1.7, (1.0,) * 3, (0.0,) * 3).probabilities(logits), expected, rtol=1e-12)
