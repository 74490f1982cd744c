"""The batches of an epoch: their order, and their augmentation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_rows

from spectacles.core.config import AugmentConfig, TrainConfig
from spectacles.data.pixel_cache import Pixels
from spectacles.data.preprocessing import Preprocessing
from spectacles.training.augmentation import Augmentation, draws
from spectacles.training.batches import Examples, StepSettings, augmented_batches, epoch_order

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
CPU = torch.device("cpu")


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 70), st.integers(1, 40))
def test_every_epoch_has_every_image_once_except_one_left_over(seed, epoch, size, batch_size):
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


def test_each_epoch_leaves_out_another_image():
    left_out = {*range(9)} - {*np.concatenate(epoch_order(0, 1, 9, 4))}
    assert len(left_out) == 1
    assert any(left_out <= {*np.concatenate(epoch_order(0, epoch, 9, 4))} for epoch in (2, 3))


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Examples]:
    """Five of seven images in another order; the label of each is its position."""
    with Pixels(write_rows(tmp_path / "photos", 7), PREPROCESSING, tmp_path / "cache", 2**20, 2) as pixels:
        yield Examples(pixels, np.array([6, 0, 3, 5, 1]), np.array([6, 0, 3, 5, 1]))


def settings_for(num_classes: int = 7, weights: list[float] | None = None, **config: object) -> StepSettings:
    on_device = None if weights is None else torch.tensor(weights)
    return StepSettings(TrainConfig(device="cpu", **config), CPU, num_classes, on_device)


@pytest.mark.parametrize("size", [16, 8])
def test_each_image_is_augmented_by_its_row_of_draws(examples, size):
    augmentation, settings = Augmentation(AugmentConfig(), PREPROCESSING), settings_for(batch_size=2, seed=4)
    seen = list(augmented_batches(examples, augmentation, settings, 3, size))
    assert [len(batch.targets) for batch in seen] == [2, 2]
    rows = draws(4, 3, 5)
    for indices, (images, labels, weights, _) in zip(epoch_order(4, 3, 5, 2), seen, strict=True):
        assert weights is None
        assert images.shape == (2, 3, size, size)
        assert labels.tolist() == examples.labels[indices].tolist()
        pixels = examples.pixels.batch(examples.positions[indices])
        expected = augmentation(pixels, rows[indices], size)
        assert torch.equal(images, expected)


def test_the_batches_are_a_function_of_seed_and_epoch(examples):
    augmentation = Augmentation(AugmentConfig(), PREPROCESSING)

    def shown(seed: int, epoch: int, batch_size: int = 5) -> dict[int, torch.Tensor]:
        batches = augmented_batches(examples, augmentation, settings_for(seed=seed, batch_size=batch_size), epoch, 16)
        return {
            int(label): image for images, labels, *_ in batches for image, label in zip(images, labels, strict=True)
        }

    first = shown(0, 1)
    assert set(first) == {6, 0, 3, 5, 1}
    for again in (shown(0, 1), shown(0, 1, batch_size=3)):
        assert list(again) == list(first)
        for label, image in first.items():
            torch.testing.assert_close(again[label], image, rtol=1e-4, atol=1e-4)
    assert not any(torch.equal(first[6], shown(seed, epoch)[6]) for seed, epoch in ((0, 2), (1, 1)))
