"""Vector scaling against another optimiser, and kept only where it helps on images it was not fitted to."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from spectacles.metrics import calibration, calibration_fit
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
    return float(-((1 - smoothing) * own + smoothing * others).sum() + prior / (2 * calibration_fit.SPREAD**2))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(3, 5), st.sampled_from([0.5, 1.0, 3.0]))
def test_vector_scaling_equals_scipys_simplex(seed, classes, temperature):
    logits, labels = drawn(seed, 80, classes)
    skewed = logits * np.linspace(0.5, 2, classes) + np.linspace(-1, 1, classes)
    found = calibration_fit.fit_vector(skewed, labels, temperature)
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
    kept = calibration_fit.fit((logits - biases) / scales, labels)
    probabilities = kept.probabilities((logits - biases) / scales)
    assert np.abs(probabilities - special.softmax(logits, axis=1)).mean() < 0.01
    np.testing.assert_allclose(np.array(kept.scales) / kept.temperature, scales, rtol=0.1)


def test_it_is_better_on_other_images_where_it_is_kept():
    logits, labels = drawn(1, 4000, 4)
    skewed = logits - np.array([2.0, 0, 0, -1])
    kept = calibration_fit.fit(skewed[:2000], labels[:2000])
    assert kept.scales
    alone = Calibration(kept.temperature)
    assert log_loss(kept, skewed[2000:], labels[2000:]) < log_loss(alone, skewed[2000:], labels[2000:]) - 0.05


@pytest.mark.parametrize("seed", range(5))
def test_calibrated_logits_keep_the_temperature_alone(seed):
    logits, labels = drawn(seed, 600, 5)
    assert calibration_fit.fit(logits, labels) == Calibration(calibration_fit.temperature_for(logits, labels))


def test_two_classes_and_few_images_have_the_temperature_alone():
    logits, labels = drawn(0, 400, 2)
    assert not calibration_fit.fit(logits - np.array([2.0, 0]), labels).scales
    logits, labels = drawn(0, calibration_fit.ENOUGH_A_CLASS * 20 - 1, 20)
    assert not calibration_fit.fit(logits - np.linspace(0, 5, 20), labels).scales
    few = calibration_fit.ENOUGH - 1
    assert calibration_fit.fit(*drawn(0, few, 3)) == Calibration()


def test_large_validation_data_are_thinned_out(monkeypatch):
    logits, labels = drawn(0, 3000, 3)
    skewed = logits - np.array([1.0, 0, -1])
    whole = calibration_fit.fit(skewed, labels)
    monkeypatch.setattr(calibration_fit, "LARGEST", 4500)
    part = calibration_fit.fit(skewed, labels)
    assert part != whole and part.temperature == whole.temperature
    np.testing.assert_allclose(part.biases, whole.biases, atol=0.3)


def test_a_class_without_validation_images_gets_a_finite_answer():
    logits, labels = drawn(0, 500, 4)
    present = labels != 2
    found = calibration_fit.fit_vector(logits[present], labels[present], 1.0)
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


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.3, 5.0), st.sampled_from([0.0, 0.05]))
def test_temperature_equals_scipy(seed, num_classes, sharpness, smoothing):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(300, num_classes))
    labels = np.array([rng.choice(num_classes, p=row) for row in special.softmax(logits / sharpness, axis=1)])

    def nll(log_temperature):
        log_probabilities = special.log_softmax(logits / math.exp(log_temperature), axis=1)
        targets = np.full((300, num_classes), smoothing / (num_classes - 1))
        targets[np.arange(300), labels] = 1 - smoothing
        return -(targets * log_probabilities).sum(axis=1).mean()

    best = optimize.minimize_scalar(
        nll, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-9}
    )
    temperature = calibration_fit.fit_temperature(logits, labels, smoothing)
    assert temperature == pytest.approx(math.exp(best.x), rel=1e-3)
    assert nll(math.log(temperature)) <= best.fun + 1e-12


def test_temperature_of_calibrated_logits_is_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 4))
    cumulative = calibration.softmax(logits).cumsum(axis=1)
    labels = (rng.random((20_000, 1)) > cumulative).sum(axis=1)
    assert calibration_fit.fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.04)
    assert calibration_fit.fit_temperature(3 * logits, labels) == pytest.approx(3.0, abs=0.12)


def test_temperature_without_anything_to_fit():
    right, wrong = np.array([0, 1]), np.array([1, 0])
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert calibration_fit.fit_temperature(np.empty((0, 2)), np.empty(0, dtype=int)) == 1.0
    assert calibration_fit.fit_temperature(np.full((2, 2), np.nan), right) == 1.0
    assert calibration_fit.fit_temperature(np.ones((2, 2)), right) == 1.0
    assert calibration_fit.fit_temperature(logits, right) == pytest.approx(0.05)
    assert calibration_fit.fit_temperature(logits, wrong) == pytest.approx(20)
    spoilt = np.vstack([logits, [[np.inf, 0.0]]])
    assert calibration_fit.fit_temperature(spoilt, np.array([1, 0, 0])) == pytest.approx(20)


def test_a_model_without_validation_errors_is_not_taken_for_infallible():
    logits = np.tile([[3.0, 0.0], [0.0, 3.0]], (50, 1))
    probabilities = calibration.softmax(logits, calibration_fit.temperature_for(logits, np.tile([0, 1], 50)))
    assert probabilities.max() == pytest.approx(1 - 1 / 102, abs=1e-6)  # one more image, and that one wrong


def test_softmax_is_stable():
    logits = np.array([[1e4, 1e4 - 1, -1e4], [-1e4, 0, 0]], dtype=np.float32)
    ours = calibration.softmax(logits, temperature=0.5)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, special.softmax(logits.astype(np.float64) / 0.5, axis=1))


@pytest.mark.parametrize("images", [calibration_fit.ENOUGH - 1, calibration_fit.ENOUGH])
def test_a_temperature_is_fitted_only_to_enough_images(images):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(images, 3)) * 5
    labels = np.where(rng.random(images) < 0.7, logits.argmax(axis=1), rng.integers(3, size=images))
    fitted = calibration_fit.fit_temperature(logits, labels, 1 / (images + 2))
    assert fitted != pytest.approx(1.0, abs=0.05)
    expected = fitted if images >= calibration_fit.ENOUGH else 1.0
    assert calibration_fit.temperature_for(logits, labels) == expected
