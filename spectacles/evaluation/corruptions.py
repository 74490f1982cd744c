"""Accuracy on photos that were changed: blurred, noisy, badly compressed, darker, turned, covered; and under attack.

What is changed are the model's input pixels, after decoding and resizing: a photo is decoded once for all changes, and
a strength means the same for photos of every size. Strengths of blur, noise, JPEG and contrast are those of ImageNet-C
(Hendrycks & Dietterich 2019), which go far: the fifth is there to see where a model breaks, not what a camera does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import affine_grid, grid_sample

from spectacles.core.device import derive_seed
from spectacles.core.progress import progress
from spectacles.core.wording import count_of, duration, percent
from spectacles.data.images import jpeg_round_trip
from spectacles.data.preprocessing import decoded_batches
from spectacles.evaluation import adversarial
from spectacles.inference.predictor import Predictor
from spectacles.metrics import bootstrap
from spectacles.metrics.decisions import is_correct

log = logging.getLogger("spectacles")

STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (1, 2, 3, 4, 6),
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "jpeg": (25, 18, 15, 10, 7),
    "darker": (0.8, 0.6, 0.45, 0.3, 0.2),
    "brighter": (1.25, 1.5, 1.75, 2, 2.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "rotation": (5, 10, 20, 30, 45),
    "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),
}
"""Weak to strong. blur: standard deviation of the Gaussian in pixels at 224 px, smaller pictures in proportion; noise:
standard deviation of Gaussian noise, of the full range; jpeg: quality; darker, brighter: factor of all pixels;
contrast: factor of the distance to the picture's mean; rotation: degrees, to the left or the right; occlusion: share of
the area that a grey square covers, anywhere."""
UNCHANGED = ("", 0.0)
NAMED = 3
"""Of 5, the strength that sentences speak of."""


def passes(images: int) -> int:
    """Pictures that the network sees for so many images, attacks aside."""
    return images * (1 + sum(map(len, STRENGTHS.values())))


def sample(rows: pd.DataFrame, limit: int, seed: int) -> np.ndarray:
    """Places, rising, of at most `limit` of `rows` (label, sha256), every class in proportion; a function of the seed
    and the contents, not of their order."""
    if len(rows) <= limit:
        return np.arange(len(rows))
    order = np.argsort(rows["sha256"].to_numpy(dtype=str), kind="stable")
    order = order[np.random.default_rng(seed).permutation(len(order))]
    shuffled = rows["label"].iloc[order]
    sizes = shuffled.map(shuffled.value_counts())
    height = (shuffled.groupby(shuffled).cumcount() + 0.5) / sizes
    return np.sort(order[np.argsort(height.to_numpy(), kind="stable")[:limit]])


def measure(
    predictor: Predictor, rows: pd.DataFrame, labels: np.ndarray, seed: int, resamples: int, attacked: bool,
    num_workers: int | None,
) -> dict[str, Any]:  # fmt: skip
    """What robustness.json holds, of `rows` (path, sha256, cluster, label) with these class indices (N,), or
    labels (N, K).

    A row whose file cannot be read any more is left out. Accuracies are those of the bundle's decisions, threshold
    included, with 95 % intervals over clusters.
    """
    right: dict[tuple[str, float], list[np.ndarray]] = {}
    readable: list[int] = []
    ways = passes(1)
    total, started = passes(-(-len(rows) // predictor.batch_size)), time.monotonic()
    steps = _changed_batches(predictor, rows, seed, num_workers)
    for done, (places, way, pixels) in enumerate(progress(steps, "changing photos", total, "batch"), 1):
        decided = predictor.info.decide(predictor.probabilities(pixels))
        correct = is_correct(decided, labels[places])
        right.setdefault(way, []).append(correct)
        if way == UNCHANGED:
            readable += places
            if attacked:
                stood = adversarial.withstood(predictor, pixels, labels[places], correct, derive_seed(seed, *places))
                for attack, standing in stood.items():
                    right.setdefault(attack, []).append(standing)
        if done == ways < total:
            left = (time.monotonic() - started) * (total / ways - 1)
            log.info("  scoring %d images in %d ways: about %s", len(rows), ways, duration(left))
    if not readable:
        return {"images": 0, "accuracy_clean": None, "corruptions": {}, "attacks": None}
    kept = rows.iloc[readable]
    return _report({way: np.concatenate(parts) for way, parts in right.items()}, kept, seed, resamples)


def _changed_batches(
    predictor: Predictor, rows: pd.DataFrame, seed: int, num_workers: int | None
) -> Iterator[tuple[list[int], tuple[str, float], np.ndarray]]:
    """(places in `rows`, way, pixels): every way of changing one batch, then the next batch."""
    size, paths, names = predictor.batch_size, map(Path, rows["path"]), rows["sha256"].tolist()
    batches = decoded_batches(paths, predictor.info.preprocessing, size, num_workers)
    for number, batch in enumerate(batches):
        places = [number * size + place for place, item in enumerate(batch) if item.pixels is not None]
        if places:
            pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
            for way, changed in changes(pixels, [names[place] for place in places], seed):
                yield places, way, changed


def _report(
    right: dict[tuple[str, float], np.ndarray], rows: pd.DataFrame, seed: int, resamples: int
) -> dict[str, Any]:
    clusters = rows["cluster"].to_numpy()
    accuracy = {way: float(correct.mean()) for way, correct in right.items()}
    interval = {way: bootstrap.share_interval(correct, clusters, seed, resamples) for way, correct in right.items()}
    attacked = {
        name: {f"{level}/255": accuracy[name, level] for level in adversarial.LEVELS}
        for name in adversarial.ATTACKS
        if (name, adversarial.LEVELS[0]) in right
    }
    return {
        "images": len(rows),
        "accuracy_clean": accuracy[UNCHANGED],
        "interval_clean": interval[UNCHANGED],
        "most_frequent": float(rows["label"].value_counts(normalize=True).max()),
        "strengths": {change: list(strengths) for change, strengths in STRENGTHS.items()},
        "corruptions": {
            change: [accuracy[change, each] for each in strengths] for change, strengths in STRENGTHS.items()
        },
        "intervals": {
            change: [interval[change, each] for each in strengths] for change, strengths in STRENGTHS.items()
        },
        "attacks": attacked or None,
    }


def changes(pixels: np.ndarray, names: list[str], seed: int) -> Iterator[tuple[tuple[str, float], np.ndarray]]:
    """((change, strength), pixels), uint8 (B, S, S, C) -> the same: first UNCHANGED, the pictures as they are.

    Whatever is drawn is a function of (seed, the picture's name) and the same at all strengths.
    """
    yield UNCHANGED, pixels
    for change, strengths in STRENGTHS.items():
        for strength in strengths:
            yield (change, strength), CHANGES[change](pixels, strength, [derive_seed(seed, change, n) for n in names])


def _blur(pixels: np.ndarray, sigma: float, seeds: list[int]) -> np.ndarray:
    width = sigma * pixels.shape[1] / 224
    return _to_pixels(gaussian_filter(pixels.astype(np.float32), (0, width, width, 0), mode="nearest"))


def _noise(pixels: np.ndarray, deviation: float, seeds: list[int]) -> np.ndarray:
    noise = [np.random.default_rng(seed).standard_normal(pixels.shape[1:], np.float32) for seed in seeds]
    return _to_pixels(pixels + 255 * deviation * np.stack(noise))


def _jpeg(pixels: np.ndarray, quality: float, seeds: list[int]) -> np.ndarray:
    return np.stack([jpeg_round_trip(picture, int(quality)) for picture in pixels])


def _light(pixels: np.ndarray, factor: float, seeds: list[int]) -> np.ndarray:
    return _to_pixels(pixels * np.float32(factor))


def _contrast(pixels: np.ndarray, factor: float, seeds: list[int]) -> np.ndarray:
    mean = pixels.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _to_pixels((pixels - mean) * np.float32(factor) + mean)


def _rotation(pixels: np.ndarray, degrees: float, seeds: list[int]) -> np.ndarray:
    """Mirrored where the turned picture leaves the corners empty."""
    angles = [math.radians(degrees) * (1 if seed % 2 else -1) for seed in seeds]
    theta = torch.tensor([[[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]] for a in angles])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    turned = grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    return _to_pixels(turned.permute(0, 2, 3, 1).numpy())


def _occlusion(pixels: np.ndarray, area: float, seeds: list[int]) -> np.ndarray:
    changed, size = pixels.copy(), pixels.shape[1]
    side = round(size * math.sqrt(area))
    for picture, seed in zip(changed, seeds, strict=True):
        x, y = (np.random.default_rng(seed).random(2) * (size - side + 1)).astype(int)
        picture[y : y + side, x : x + side] = 128
    return changed


CHANGES: dict[str, Callable[[np.ndarray, float, list[int]], np.ndarray]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "darker": _light,
    "brighter": _light,
    "contrast": _contrast,
    "rotation": _rotation,
    "occlusion": _occlusion,
}


def _to_pixels(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def sentences(found: dict[str, Any]) -> list[str]:
    """What a person should know of it."""
    if not found["corruptions"]:
        return []
    at = {change: values[NAMED - 1] for change, values in found["corruptions"].items()}
    hardest = min(at, key=lambda change: at[change])
    clean, images = percent(found["accuracy_clean"]), count_of(found["images"], "image")
    told = [
        f"changed photos: {clean} of {images} right as they are; hardest at strength {NAMED} of 5: {hardest}, "
        f"{percent(at[hardest])}"
    ]
    if found["attacks"]:
        each = (
            f"{name.upper()} {', '.join(f'{percent(value)} at {level}' for level, value in values.items())}"
            for name, values in found["attacks"].items()
        )
        told.append(f"under attack: {'; '.join(each)}")
    return told
