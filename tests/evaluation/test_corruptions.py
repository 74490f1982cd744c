"""Corrupted and attacked photos: what each corruption does, that it is reproducible, and what counts as correct."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import photo, write_rows
from torch.nn.functional import cross_entropy

from spectacles.core.config import EvaluateConfig
from spectacles.evaluation import adversarial, corruptions
from spectacles.evaluation.corruptions import CLEAN, SEVERITIES
from spectacles.inference.predictor import Predictor
from spectacles.models.normalization import normalize

NAMES = ["a", "b", "c"]
CONFIG = EvaluateConfig(bootstrap_resamples=50, attacks=True, num_workers=1)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([np.asarray(photo(seed, 32, 32)) for seed in range(3)])


@pytest.fixture(scope="module")
def predictor(make_bundle: Callable[..., Path]) -> Predictor:
    return Predictor(make_bundle("cat", "dog"), "cpu", 4, "torch")


def corrupted(pixels: np.ndarray, names: list[str] = NAMES, seed: int = 0) -> dict[tuple[str, float], np.ndarray]:
    return dict(corruptions.corrupt(pixels, names, seed))


def loss(predictor: Predictor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return cross_entropy(
            predictor.classifier(normalize(predictor.info.preprocessing, images)), labels, reduction="none"
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_every_corruption_grows_with_its_severity(channels: int) -> None:
    pixels = np.stack([np.asarray(photo(seed, 128, 128))[..., :channels] for seed in range(3)])
    before = pixels.copy()
    found = corrupted(pixels)
    assert len(found) == 1 + 5 * len(SEVERITIES) == corruptions.passes(1)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(found[CLEAN], before)
    for name, severities in SEVERITIES.items():
        distances = []
        for severity in severities:
            each = found[name, severity]
            assert each.shape == before.shape and each.dtype == np.uint8
            distances.append(np.abs(each.astype(float) - before).mean())
        assert distances[0] > 0
        # Pixels of an image that is rotated further need not differ more.
        assert name == "rotation" or distances == sorted(distances), name


def test_a_corruption_depends_on_seed_and_content_and_not_on_the_batch(pixels: np.ndarray) -> None:
    whole, alone, other = corrupted(pixels), corrupted(pixels[1:2], NAMES[1:2]), corrupted(pixels, seed=1)
    for variant, each in whole.items():
        np.testing.assert_array_equal(each[1:2], alone[variant])
    assert all((whole["gaussian_noise", s] != other["gaussian_noise", s]).any() for s in SEVERITIES["gaussian_noise"])


def test_severities_are_in_the_documented_units(pixels: np.ndarray) -> None:
    found = corrupted(pixels)
    as_float = pixels.astype(float)
    np.testing.assert_allclose(found["darkness", 0.45], as_float * 0.45, atol=0.5001)
    np.testing.assert_allclose(found["brightness", 2], np.minimum(255, as_float * 2), atol=0.5001)
    assert found["contrast", 0.1].std(axis=(1, 2)) == pytest.approx(0.1 * as_float.std(axis=(1, 2)), abs=0.5)
    assert (found["gaussian_noise", 0.08] - as_float).std() / 255 == pytest.approx(0.08, rel=0.1)
    covered = (found["occlusion", 0.3] != pixels).any(axis=3).mean(axis=(1, 2))
    assert covered == pytest.approx(0.3, abs=0.03)
    assert (found["occlusion", 0.3][(found["occlusion", 0.3] != pixels).any(axis=3)] == 128).all()


def test_a_rotation_is_by_so_many_degrees(pixels: np.ndarray) -> None:
    cross = np.zeros((2, 65, 65, 3), dtype=np.uint8)
    cross[:, 32] = 255  # a line through the middle
    turned = corruptions.rotate(cross, [45, -45])
    for picture, diagonal in zip(turned, (np.eye(65, dtype=bool), np.eye(65, dtype=bool)[::-1]), strict=True):
        inner = picture[20:45, 20:45, 0].astype(float)
        assert {inner[diagonal[20:45, 20:45]].min() > 200, inner[diagonal[20:45, 20:45]].min() < 10} == {True, False}
        assert inner[~diagonal[20:45, 20:45]].mean() < 30
    assert (turned[0] != turned[1]).any()
    turned = corruptions.rotate(pixels, [180, -180, 180])
    np.testing.assert_allclose(turned[:, 1:-1, 1:-1], pixels[:, ::-1, ::-1][:, 1:-1, 1:-1], atol=1)


def test_the_sample_keeps_the_class_shares_and_does_not_depend_on_the_order() -> None:
    rows = pd.DataFrame({"label": ["a"] * 80 + ["b"] * 20, "sha256": [f"{i * 7919 % 1000:03}" for i in range(100)]})
    places = corruptions.sample(rows, 10, 0)
    assert rows["label"].iloc[places].value_counts().to_dict() == {"a": 8, "b": 2}
    turned = rows.iloc[::-1].reset_index(drop=True)
    assert set(turned["sha256"].iloc[corruptions.sample(turned, 10, 0)]) == set(rows["sha256"].iloc[places])
    assert set(corruptions.sample(rows, 10, 1)) != set(places)
    assert corruptions.sample(rows, 500, 0).tolist() == list(range(100))


def test_accuracies_are_those_of_the_bundles_decisions(predictor: Predictor, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 10).assign(cluster=range(10), label=["cat"] * 7 + ["dog"] * 3)
    (tmp_path / "4.png").write_bytes(b"no picture any more")
    labels = np.array([0] * 7 + [1] * 3)
    found = corruptions.measure(predictor, rows, labels, CONFIG)
    json.dumps(found, allow_nan=False)
    assert found["images"] == 9
    readable = [place for place in range(10) if place != 4]
    predicted = [each.label for each in predictor.predict(Path(rows["path"][place]) for place in readable)]
    correct = np.array(predicted) == rows["label"].iloc[readable]
    assert found["accuracy_clean"] == pytest.approx(correct.mean())
    assert found["most_frequent"] == pytest.approx(6 / 9)
    assert {name: len(values) for name, values in found["accuracies"].items()} == dict.fromkeys(SEVERITIES, 5)
    low, high = found["intervals"]["gaussian_noise"][4]
    assert low <= found["accuracies"]["gaussian_noise"][4] <= high
    for values in found["attacks"].values():
        accuracies = [found["accuracy_clean"], *values.values()]
        assert list(values) == ["1/255", "2/255", "4/255", "8/255"]
        assert accuracies == sorted(accuracies, reverse=True)
    clean, attacks = corruptions.sentences(found)
    assert clean.startswith("corrupted photos: ") and attacks.startswith("under attack: FGSM ")


def test_where_no_file_can_be_read_nothing_is_claimed(predictor: Predictor, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, 2).assign(cluster=0, label="cat")
    for path in rows["path"]:
        Path(path).unlink()
    found = corruptions.measure(predictor, rows, np.array([0, 0]), CONFIG)
    assert (found["images"], found["accuracies"], corruptions.sentences(found)) == (0, {}, [])


@pytest.mark.parametrize("attack", [adversarial.fgsm, adversarial.pgd])
@pytest.mark.parametrize("level", adversarial.LEVELS)
def test_an_attack_raises_the_loss_and_stays_within_its_bounds(
    predictor: Predictor, pixels: np.ndarray, attack: Callable[..., torch.Tensor], level: int
) -> None:
    extremes = np.stack([pixels[0], np.zeros_like(pixels[0]), np.full_like(pixels[0], 255)])
    before, labels = torch.from_numpy(extremes).float(), torch.tensor([0, 1, 1])
    compute = adversarial.loss_and_gradient(predictor.classifier, predictor.info.preprocessing, labels)
    after = attack(compute, before, level, 0)
    assert (after - before).abs().max() <= level
    assert after.min() >= 0 and after.max() <= 255
    assert (after.round() - before).abs().max() <= level
    assert (loss(predictor, after, labels) > loss(predictor, before, labels)).all()


def test_ten_steps_find_more_than_one(predictor: Predictor, pixels: np.ndarray) -> None:
    images, labels = torch.from_numpy(pixels).float(), torch.tensor([0, 1, 0])
    compute = adversarial.loss_and_gradient(predictor.classifier, predictor.info.preprocessing, labels)
    one_step, ten_steps = (
        loss(predictor, attack(compute, images, 8, 0), labels).mean() for attack in (adversarial.fgsm, adversarial.pgd)
    )
    assert ten_steps >= one_step * 0.999


def test_attacks_use_the_true_gradient(predictor: Predictor, pixels: np.ndarray) -> None:
    """Against finite differences in the direction that FGSM takes."""
    images, labels = torch.from_numpy(pixels).float(), torch.tensor([0, 1, 0])
    compute = adversarial.loss_and_gradient(predictor.classifier, predictor.info.preprocessing, labels)
    before, gradient = compute(images)
    step = 0.01
    after, _ = compute(images + step * gradient.sign())
    assert ((after - before) / step).tolist() == pytest.approx(gradient.abs().sum((1, 2, 3)).tolist(), rel=0.1)


def test_what_is_wrong_already_is_not_attacked_and_stays_wrong(predictor: Predictor, pixels: np.ndarray) -> None:
    labels = np.array([0, 1, 0])
    attacked = adversarial.attack(predictor, pixels, labels, np.zeros(3, dtype=bool), 0)
    assert not any(each.any() for each in attacked.values())
