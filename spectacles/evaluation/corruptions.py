"""Accuracy on corrupted photos: blurred, noisy, badly compressed, dark, rotated, occluded; and under attack.

Corrupted are the model's input pixels, after decoding and resizing: a photo is decoded once for all corruptions, and a
severity means the same for photos of every size. Severities of blur, noise, JPEG and contrast are those of ImageNet-C
(Hendrycks & Dietterich 2019), which go far: the fifth shows where a model breaks, not what a camera does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn.functional import affine_grid, grid_sample

from spectacles.core.config import EvaluateConfig
from spectacles.core.device import derive_seed
from spectacles.core.progress import progress
from spectacles.core.wording import count_of, duration, percent
from spectacles.data.preprocessing import decoded_batches
from spectacles.evaluation import adversarial
from spectacles.inference.predictor import Predictor
from spectacles.metrics import bootstrap
from spectacles.metrics.decisions import is_correct

log = logging.getLogger("spectacles")

SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian_blur": (1, 2, 3, 4, 6),
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "darkness": (0.8, 0.6, 0.45, 0.3, 0.2),
    "brightness": (1.25, 1.5, 1.75, 2, 2.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "rotation": (5, 10, 20, 30, 45),
    "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),
}
"""Mild to severe. gaussian_blur: standard deviation in pixels at 224 px, smaller images in proportion; gaussian_noise:
standard deviation, of the full range; jpeg_compression: quality; darkness, brightness: factor of all pixels; contrast:
factor of the distance to the image's mean; rotation: degrees, to the left or the right; occlusion: share of the area
that a grey square covers, anywhere."""
CLEAN = ("", 0.0)
REPORTED = 3
"""Of 5, the severity that the summary reports."""

Variant = tuple[str, float]
"""A corruption or an attack, and its severity or level."""


def passes(images: int) -> int:
    """How many images the network scores for so many photos, attacks aside."""
    return images * (1 + sum(map(len, SEVERITIES.values())))


def sample(rows: pd.DataFrame, limit: int, seed: int) -> np.ndarray:
    """Sorted positions of at most `limit` of `rows` (label, sha256), every class in proportion; a function of the seed
    and the contents, not of their order."""
    if len(rows) <= limit:
        return np.arange(len(rows))
    order = np.argsort(rows["sha256"].to_numpy(dtype=str), kind="stable")
    order = order[np.random.default_rng(seed).permutation(len(order))]
    shuffled = rows["label"].iloc[order]
    sizes = shuffled.map(shuffled.value_counts())
    height = (shuffled.groupby(shuffled).cumcount() + 0.5) / sizes
    return np.sort(order[np.argsort(height.to_numpy(), kind="stable")[:limit]])


def measure(predictor: Predictor, rows: pd.DataFrame, labels: np.ndarray, config: EvaluateConfig) -> dict[str, Any]:
    """The contents of corruptions.json, for `rows` (path, sha256, cluster, label) with these class indices (N,), or
    labels (N, K).

    A row whose file cannot be read any more is left out. Accuracies are those of the bundle's decisions, threshold
    included, with 95 % intervals over clusters.
    """
    correct: dict[Variant, list[np.ndarray]] = {}
    readable: list[int] = []
    variants = passes(1)
    total = passes(-(-len(rows) // predictor.batch_size))
    started = time.monotonic()
    steps = progress(_corrupted_batches(predictor, rows, config), "corrupting photos", total, "batch")
    for done, (places, variant, pixels) in enumerate(steps, 1):
        decided = predictor.info.decide(predictor.probabilities(pixels))
        right = is_correct(decided, labels[places])
        correct.setdefault(variant, []).append(right)
        if variant == CLEAN:
            readable += places
            if config.attacks:
                attack_seed = derive_seed(config.seed, *places)
                for attack, withstood in adversarial.attack(
                    predictor, pixels, labels[places], right, attack_seed
                ).items():
                    correct.setdefault(attack, []).append(withstood)
        if done == variants < total:
            left = (time.monotonic() - started) * (total / variants - 1)
            log.info("  scoring %d images in %d variants: about %s", len(rows), variants, duration(left))
    if not readable:
        return {"images": 0, "accuracy_clean": None, "accuracies": {}, "attacks": None}
    return _report({variant: np.concatenate(parts) for variant, parts in correct.items()}, rows.iloc[readable], config)


def _corrupted_batches(
    predictor: Predictor, rows: pd.DataFrame, config: EvaluateConfig
) -> Iterator[tuple[list[int], Variant, np.ndarray]]:
    """(positions in `rows`, variant, pixels): every variant of one batch, then of the next."""
    size, paths, names = predictor.batch_size, map(Path, rows["path"]), rows["sha256"].tolist()
    batches = decoded_batches(paths, predictor.info.preprocessing, size, config.num_workers)
    for number, batch in enumerate(batches):
        places = [number * size + place for place, item in enumerate(batch) if item.pixels is not None]
        if places:
            pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
            for variant, corrupted in corrupt(pixels, [names[place] for place in places], config.seed):
                yield places, variant, corrupted


def _report(correct: dict[Variant, np.ndarray], rows: pd.DataFrame, config: EvaluateConfig) -> dict[str, Any]:
    clusters = rows["cluster"].to_numpy()
    accuracy = {variant: float(right.mean()) for variant, right in correct.items()}
    interval = {
        variant: bootstrap.share_interval(right, clusters, config.seed, config.bootstrap_resamples)
        for variant, right in correct.items()
    }
    attacked = {
        name: {f"{level}/255": accuracy[name, level] for level in adversarial.LEVELS}
        for name in adversarial.ATTACKS
        if (name, adversarial.LEVELS[0]) in correct
    }
    return {
        "images": len(rows),
        "accuracy_clean": accuracy[CLEAN],
        "interval_clean": interval[CLEAN],
        "most_frequent": float(rows["label"].value_counts(normalize=True).max()),
        "severities": {name: list(severities) for name, severities in SEVERITIES.items()},
        "accuracies": {
            name: [accuracy[name, severity] for severity in severities] for name, severities in SEVERITIES.items()
        },
        "intervals": {
            name: [interval[name, severity] for severity in severities] for name, severities in SEVERITIES.items()
        },
        "attacks": attacked or None,
    }


def corrupt(pixels: np.ndarray, names: list[str], seed: int) -> Iterator[tuple[Variant, np.ndarray]]:
    """((corruption, severity), pixels), uint8 (B, S, S, C) -> the same: first CLEAN, the images as they are.

    Random numbers are a function of the seed and the image's name, and the same at all severities.
    """
    yield CLEAN, pixels
    for name, severities in SEVERITIES.items():
        for severity in severities:
            yield (name, severity), CORRUPTIONS[name](pixels, severity, names, seed)


def _gaussian_blur(pixels: np.ndarray, sigma: float, names: list[str], seed: int) -> np.ndarray:
    width = sigma * pixels.shape[1] / 224
    return _to_pixels(gaussian_filter(pixels.astype(np.float32), (0, width, width, 0), mode="nearest"))


def _gaussian_noise(pixels: np.ndarray, deviation: float, names: list[str], seed: int) -> np.ndarray:
    generators = [np.random.default_rng(derive_seed(seed, "noise", name)) for name in names]
    noise = [generator.standard_normal(pixels.shape[1:], np.float32) for generator in generators]
    return _to_pixels(pixels + 255 * deviation * np.stack(noise))


def _jpeg_compression(pixels: np.ndarray, quality: float, names: list[str], seed: int) -> np.ndarray:
    corrupted = np.empty_like(pixels)
    for place, image in enumerate(pixels):
        buffer = BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=int(quality))
        corrupted[place] = np.asarray(Image.open(buffer)).reshape(image.shape)
    return corrupted


def _brightness(pixels: np.ndarray, factor: float, names: list[str], seed: int) -> np.ndarray:
    return _to_pixels(pixels * np.float32(factor))


def _contrast(pixels: np.ndarray, factor: float, names: list[str], seed: int) -> np.ndarray:
    mean = pixels.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _to_pixels((pixels - mean) * np.float32(factor) + mean)


def _rotation(pixels: np.ndarray, degrees: float, names: list[str], seed: int) -> np.ndarray:
    """Mirrored where the rotated image leaves the corners empty."""
    to_left = [derive_seed(seed, "rotation", name) % 2 for name in names]
    return rotate(pixels, [degrees if left else -degrees for left in to_left])


def rotate(pixels: np.ndarray, degrees: list[float]) -> np.ndarray:
    """uint8 (B, S, S, C) and an angle for each -> the same."""
    angles = [math.radians(each) for each in degrees]
    theta = torch.tensor([[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]] for a in angles])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    rotated = grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    return _to_pixels(rotated.permute(0, 2, 3, 1).numpy())


def _occlusion(pixels: np.ndarray, area: float, names: list[str], seed: int) -> np.ndarray:
    corrupted = pixels.copy()
    size = pixels.shape[1]
    side = round(size * math.sqrt(area))
    for image, name in zip(corrupted, names, strict=True):
        generator = np.random.default_rng(derive_seed(seed, "occlusion", name))
        x, y = (generator.random(2) * (size - side + 1)).astype(int)
        image[y : y + side, x : x + side] = 128
    return corrupted


CORRUPTIONS: dict[str, Callable[[np.ndarray, float, list[str], int], np.ndarray]] = {
    "gaussian_blur": _gaussian_blur,
    "gaussian_noise": _gaussian_noise,
    "jpeg_compression": _jpeg_compression,
    "darkness": _brightness,
    "brightness": _brightness,
    "contrast": _contrast,
    "rotation": _rotation,
    "occlusion": _occlusion,
}


def _to_pixels(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def sentences(measured: dict[str, Any]) -> list[str]:
    """For the summary: the worst corruption, and accuracies under attack."""
    if not measured["accuracies"]:
        return []
    accuracies = {name: values[REPORTED - 1] for name, values in measured["accuracies"].items()}
    worst = min(accuracies, key=lambda name: accuracies[name])
    lines = [
        f"corrupted photos: {percent(measured['accuracy_clean'])} of {count_of(measured['images'], 'clean image')} "
        f"correct; worst at severity {REPORTED} of 5: {worst.replace('_', ' ')}, {percent(accuracies[worst])}"
    ]
    if measured["attacks"]:
        attacks = (
            f"{name.upper()} {', '.join(f'{percent(value)} at {level}' for level, value in values.items())}"
            for name, values in measured["attacks"].items()
        )
        lines.append(f"under attack: {'; '.join(attacks)}")
    return lines
