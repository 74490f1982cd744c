"""One epoch: what it shows, what it computes, and how it is scored."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_rows
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from spectacles.core.config import AugmentConfig, TrainConfig
from spectacles.core.errors import UserError
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.metrics.calibration import softmax
from spectacles.training.augmentation import Augmentation, draws
from spectacles.training.batches import (
    Examples,
    StepSettings,
    augmented_batches,
    balanced_weights,
    epoch_order,
    make_optimizer,
    training_dtype,
    validate,
    validation_scores,
)

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_weights_are_scikit_learns(labels):
    present = np.unique(labels)
    weights = balanced_weights(np.searchsorted(present, labels), len(present))
    expected = compute_class_weight("balanced", classes=present, y=np.array(labels))
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_a_class_without_images_weighs_nothing():
    np.testing.assert_allclose(balanced_weights(np.array([0, 0, 2]), 3), [0.5, 0, 1])


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 70), st.integers(1, 40))
def test_every_epoch_shows_every_picture_once_except_a_last_one_alone(seed, epoch, size, batch_size):
    batches = epoch_order(seed, epoch, size, batch_size)
    shown = np.concatenate(batches)
    assert len(set(shown.tolist())) == len(shown)
    assert set(shown.tolist()) <= set(range(size))
    lone_rest = size > batch_size > 1 and size % batch_size == 1
    assert len(shown) == size - lone_rest
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) <= batch_size


def test_the_order_is_a_function_of_seed_and_epoch():
    def shown(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(np.concatenate(epoch_order(seed, epoch, 50, 8)).tolist())

    assert shown(0, 1) == shown(0, 1)
    assert len({shown(seed, epoch) for seed in (0, 1) for epoch in (1, 2)}) == 4
    assert shown(0, 1) != tuple(range(50))


def test_the_picture_left_out_is_another_one_in_each_epoch():
    left_out = {*range(9)} - {*np.concatenate(epoch_order(0, 1, 9, 4))}
    assert len(left_out) == 1
    assert any(left_out <= {*np.concatenate(epoch_order(0, epoch, 9, 4))} for epoch in (2, 3))


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Examples]:
    """Five of seven pictures, in an order of their own; each label tells the picture."""
    with Pixels(write_rows(tmp_path / "photos", 7), PREPROCESSING, tmp_path / "cache", 2**20, 2) as pixels:
        yield Examples(pixels, np.array([6, 0, 3, 5, 1]), np.array([6, 0, 3, 5, 1]))


def settings_for(num_classes: int = 7, weights: list[float] | None = None, **config: object) -> StepSettings:
    on_device = None if weights is None else torch.tensor(weights)
    return StepSettings(TrainConfig(device="cpu", **config), CPU, num_classes, on_device)


@pytest.mark.parametrize("size", [16, 8])
def test_an_epoch_shows_each_picture_as_its_row_of_numbers_says(examples, size):
    augmentation, settings = Augmentation(AugmentConfig(), PREPROCESSING), settings_for(batch_size=2, seed=4)
    seen = list(augmented_batches(examples, augmentation, settings, 3, size))
    assert [len(labels) for _, labels in seen] == [2, 2]
    rows = draws(4, 3, 5)
    for indices, (images, labels) in zip(epoch_order(4, 3, 5, 2), seen, strict=True):
        assert images.shape == (2, 3, size, size)
        assert labels.tolist() == examples.labels[indices].tolist()
        pixels = examples.pixels.batch(examples.positions[indices])
        expected = augmentation(pixels, rows[indices], size, CPU)
        assert torch.equal(images, expected)


def test_what_an_epoch_shows_depends_on_seed_and_epoch_alone(examples):
    augmentation = Augmentation(AugmentConfig(), PREPROCESSING)

    def shown(seed: int, epoch: int, batch_size: int = 5) -> dict[int, torch.Tensor]:
        batches = augmented_batches(examples, augmentation, settings_for(seed=seed, batch_size=batch_size), epoch, 16)
        return {int(label): image for images, labels in batches for image, label in zip(images, labels, strict=True)}

    first = shown(0, 1)
    assert set(first) == {6, 0, 3, 5, 1}
    for again in (shown(0, 1), shown(0, 1, batch_size=3)):
        assert list(again) == list(first)
        for label, image in first.items():
            torch.testing.assert_close(again[label], image, rtol=1e-4, atol=1e-4)
    assert not any(torch.equal(first[6], shown(seed, epoch)[6]) for seed, epoch in ((0, 2), (1, 1)))


class Flat(nn.Module):
    """(B, 3, 16, 16) -> (B, 7), with BatchNorm and dropout that evaluation must not feel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 256, 7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_validation_gives_the_networks_logits_in_the_order_of_the_examples(examples, batch_size):
    network = Flat().train()
    logits = validate(network, examples, settings_for(batch_size=batch_size))
    images = PREPROCESSING.normalize(torch.from_numpy(examples.pixels.batch(examples.positions)))
    with torch.no_grad():
        expected = Flat().eval()(images).numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert not network.training


def test_outputs_that_are_not_finite_are_the_users_to_mend(examples):
    network = Flat()
    nn.init.constant_(network.layers[3].bias, float("nan"))
    with pytest.raises(UserError, match="no longer finite: lower --lr"):
        validate(network, examples, settings_for())


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(12, 40))
def test_scores_are_scikit_learns(seed, classes, count):
    """Below so many images that a temperature would be fitted."""
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


def test_a_metric_that_is_undefined_counts_as_its_worst():
    scores = validation_scores(np.zeros((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64))
    assert scores["roc_auc"] == 0


@pytest.mark.parametrize(("optimizer", "expected"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_every_group_keeps_its_base_rate(optimizer, expected):
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": rate, "weight_decay": 0.0} for rate in (0.1, 0.02)]
    made = make_optimizer(TrainConfig(optimizer=optimizer), groups, CPU)
    assert type(made) is expected
    assert [group["base_lr"] for group in made.param_groups] == [0.1, 0.02]


@pytest.mark.parametrize("mixed_precision", ["auto", "off", "bf16", "fp16"])
def test_the_cpu_trains_in_float32(mixed_precision):
    assert training_dtype(TrainConfig(mixed_precision=mixed_precision), CPU) == torch.float32
