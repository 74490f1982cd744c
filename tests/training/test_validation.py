"""Validation: the logits of the validation images, and the metrics that choose the best epoch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_rows
from sklearn import metrics
from torch import nn

from spectacles.core.config import TrainConfig
from spectacles.core.errors import UserError
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.calibration import softmax
from spectacles.models.normalization import normalize
from spectacles.training.batches import Examples, StepSettings
from spectacles.training.validation import validate, validation_scores

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
CPU = torch.device("cpu")


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Examples]:
    """Five of seven images in another order; the label of each is its position."""
    with Pixels(write_rows(tmp_path / "photos", 7), PREPROCESSING, tmp_path / "cache", 2**20, 2) as pixels:
        yield Examples(pixels, np.array([6, 0, 3, 5, 1]), np.array([6, 0, 3, 5, 1]))


def settings_for(**config: object) -> StepSettings:
    return StepSettings(TrainConfig(device="cpu", **config), CPU, 7, None)


class Flat(nn.Module):
    """(B, 3, 16, 16) -> (B, 7), with BatchNorm and dropout, which must be off in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 256, 7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_validation_returns_logits_in_the_order_of_the_examples(examples, batch_size):
    network = Flat().train()
    logits = validate(network, examples, settings_for(batch_size=batch_size))
    images = normalize(PREPROCESSING, torch.from_numpy(examples.pixels.batch(examples.positions)))
    with torch.no_grad():
        expected = Flat().eval()(images).numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert not network.training


def test_outputs_that_are_not_finite_are_an_error_with_a_remedy(examples):
    network = Flat()
    nn.init.constant_(network.layers[3].bias, float("nan"))
    with pytest.raises(UserError, match="no longer finite: lower --lr"):
        validate(network, examples, settings_for())


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(12, 40))
def test_scores_equal_those_of_scikit_learn(seed, classes, count):
    """With too few images to fit a temperature."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    logits = (3 * rng.normal(size=(count, classes))).astype(np.float32)
    scores, probabilities = validation_scores(logits, labels), softmax(logits)
    predicted = logits.argmax(axis=1)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    expected = metrics.log_loss(labels, probabilities)
    assert scores["log_loss"] == pytest.approx(expected) and scores["loss"] == pytest.approx(expected)


def test_from_fifty_images_the_log_loss_is_that_of_the_best_temperature():
    labels = np.arange(60) % 3
    logits = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32) * 5
    logits[np.arange(60), labels] += 4
    scores = validation_scores(logits, labels)
    assert scores["loss"] == pytest.approx(metrics.log_loss(labels, softmax(logits)))
    tried = [metrics.log_loss(labels, softmax(logits, temperature)) for temperature in np.geomspace(1, 20, 150)]
    assert scores["log_loss"] == pytest.approx(min(tried), rel=1e-3)
    assert scores["log_loss"] < scores["loss"]


def test_an_undefined_metric_counts_as_its_worst_value():
    scores = validation_scores(np.zeros((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64))
    assert scores["roc_auc"] == 0
