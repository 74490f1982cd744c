"""What an exported file must show before it is kept: the answers of the model that it came from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spectacles.core.progress import progress
from spectacles.core.results import ExportedFile
from spectacles.data.images import DecodedImage, ImageRejected, Source, decode
from spectacles.export.formats.base import Format, Run
from spectacles.export.odd_pictures import KINDS, odd_pictures
from spectacles.export.shipped import PROBABILITIES, Shipped
from spectacles.metrics import bootstrap
from spectacles.metrics.decisions import is_correct

TOLERANCE = {"fp32": 1e-4, "fp16": 0.01}
"""Largest difference of a probability from torch."""
PHOTO_TOLERANCE = 1e-3
"""Of a file that resizes photos itself, in fp32."""
ODD_ORIGINALS = 5
TIMED, ROUNDS = 32, 5
RESAMPLES = 1000


@dataclass(frozen=True)
class Compared:
    """The photos that files are compared on, with torch's answers."""

    photos: list[np.ndarray]
    """Upright RGB, uint8 (H, W, 3), large ones reduced as `decode` does."""
    pixels: np.ndarray
    """uint8 (N, S, S, C)."""
    expected: np.ndarray
    """(N, K) probabilities."""
    labels: np.ndarray
    """Of the first photos, which are validation photos: (V,) class indices, or (V, K) of 0 and 1; odd ones follow."""
    clusters: np.ndarray
    """(V,): photos with the same number are resampled together."""


def photos_to_compare(
    shipped: Shipped, sources: Sequence[Source], labels: np.ndarray, clusters: np.ndarray
) -> Compared:
    """Validation photos that can be read, and odd ones made from the first of them."""
    preprocessing = shipped.info.preprocessing
    decoded = [_decoded(shipped, source) for source in progress(sources, "decoding", len(sources))]
    readable = np.array([each is not None for each in decoded])
    images = [each.image for each in decoded if each is not None]
    odd = [_decoded(shipped, content) for content in odd_pictures(images[:ODD_ORIGINALS])]
    assert all(odd) and len(odd) == KINDS * min(ODD_ORIGINALS, len(images))
    images += [each.image for each in odd if each is not None]
    pixels = np.stack([preprocessing.pixels(image) for image in images])
    with torch.inference_mode():
        parts = [shipped.module(torch.from_numpy(part))[PROBABILITIES].numpy() for part in _batches(pixels)]
    photos = [np.asarray(image) for image in images]
    return Compared(photos, pixels, np.concatenate(parts), labels[readable], clusters[readable])


def _decoded(shipped: Shipped, source: Source) -> DecodedImage | None:
    preprocessing = shipped.info.preprocessing
    try:
        return decode(source, least_side=preprocessing.least_side, ranges=preprocessing.value_ranges)
    except ImageRejected:
        return None


def check(name: str, file: Format, precision: str, path: Path, shipped: Shipped, compared: Compared) -> ExportedFile:
    """Loads the file and compares its answers; `objection` says why it may not be kept."""
    run = file.load(path)
    inputs: Sequence[np.ndarray] = compared.photos if file.takes_photos else _batches(compared.pixels)
    answers = np.concatenate([run(each) for each in progress(inputs, f"checking {name} {precision}", len(inputs))])
    difference = float(np.abs(answers - compared.expected).max())
    validation = len(compared.labels)
    ours, theirs = (shipped.info.decide(each[:validation]) for each in (compared.expected, answers))
    correct = is_correct(theirs, compared.labels)
    low, high = bootstrap.share_interval(correct, compared.clusters, 0, RESAMPLES)
    rate, latency = _speed(run, inputs)
    return ExportedFile(
        format=name,
        precision=precision,
        file=path.name,
        megabytes=round(sum(each.stat().st_size for each in file.paths(path)) / 1e6, 3),
        images=len(compared.expected),
        difference=difference,
        same_labels=float(is_correct(theirs, ours).mean()),
        accuracy=float(correct.mean()),
        accuracy_interval=(low, high),
        images_per_second=rate,
        milliseconds=latency,
        objection=_objection(file, precision, difference),
    )


def _objection(file: Format, precision: str, difference: float) -> str:
    most = PHOTO_TOLERANCE if file.takes_photos and precision == "fp32" else TOLERANCE[precision]
    if difference <= most:
        return ""
    return f"a probability is {difference:.2g} away from torch's ({most:g} allowed)"


def _batches(pixels: np.ndarray) -> list[np.ndarray]:
    return np.array_split(pixels, -(-len(pixels) // TIMED))


def _speed(run: Run, inputs: Sequence[np.ndarray]) -> tuple[float, float]:
    """(images per second, milliseconds of a single one), medians; a photo comes alone anyway."""
    together, alone = inputs[0], inputs[0][:1] if inputs[0].ndim == 4 else inputs[0]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for single, values in ((False, together), (True, alone)):
            started = time.perf_counter()
            run(values)
            seconds[single].append(time.perf_counter() - started)
    count = len(together) if together.ndim == 4 else 1
    return round(count / statistics.median(seconds[False]), 1), round(1000 * statistics.median(seconds[True]), 2)
