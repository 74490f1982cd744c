"""What an exported file must show before it is kept: the answers of the model that it came from."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spectacles.core.progress import progress
from spectacles.core.results import ConvertedFile, ExportedFile
from spectacles.data.images import DecodedImage, ImageRejected, Source, decode
from spectacles.export.formats.base import Format, Run
from spectacles.export.odd_pictures import KINDS, odd_pictures
from spectacles.export.shipped import PROBABILITIES, Shipped
from spectacles.metrics import bootstrap
from spectacles.metrics.decisions import is_correct
from spectacles.metrics.paired import p_worse
from spectacles.models.precision import MIN_AGREEMENT, SIGNIFICANT

TOLERANCE = {"fp32": 1e-4, "fp16": 0.01}
"""Largest difference of a probability from torch. For int8, whose probabilities are fitted again, labels count."""
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
    decided: np.ndarray
    """The model's decisions on the validation photos: (V,) or (V, K)."""
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
        parts = [shipped.module(torch.from_numpy(part))[PROBABILITIES].numpy() for part in batches(pixels)]
    photos, expected = [np.asarray(image) for image in images], np.concatenate(parts)
    decided = shipped.info.decide(expected[: readable.sum()])
    return Compared(photos, pixels, expected, decided, labels[readable], clusters[readable])


def _decoded(shipped: Shipped, source: Source) -> DecodedImage | None:
    preprocessing = shipped.info.preprocessing
    try:
        return decode(source, least_side=preprocessing.least_side, ranges=preprocessing.value_ranges)
    except ImageRejected:
        return None


def inspect(name: str, file: Format, precision: str, path: Path, shipped: Shipped) -> ConvertedFile:
    """Looks at a file that cannot run here."""
    objection = file.inspect(path, shipped) if file.inspect else ""
    return ConvertedFile(
        format=name, precision=precision, file=path.name, megabytes=_megabytes(file, path), objection=objection
    )


def check(name: str, file: Format, precision: str, path: Path, shipped: Shipped, compared: Compared) -> ExportedFile:
    """Loads the file and compares its answers; `objection` says why it may not be kept."""
    assert file.load
    run = file.load(path)
    inputs: Sequence[np.ndarray] = compared.photos if file.takes_photos else batches(compared.pixels)
    answers = np.concatenate([run(each) for each in progress(inputs, f"checking {name} {precision}", len(inputs))])
    difference = float(np.abs(answers - compared.expected).max())
    decided = shipped.info.decide(answers[: len(compared.labels)])
    was_right, correct = (is_correct(each, compared.labels) for each in (compared.decided, decided))
    same, worse = is_correct(decided, compared.decided), p_worse(was_right, correct)
    low, high = bootstrap.share_interval(correct, compared.clusters, 0, RESAMPLES)
    rate, latency = speed(run, inputs)
    return ExportedFile(
        format=name,
        precision=precision,
        file=path.name,
        megabytes=_megabytes(file, path),
        images=len(compared.expected),
        difference=difference,
        same_labels=float(same.mean()),
        accuracy=float(correct.mean()),
        accuracy_interval=(low, high),
        model_accuracy=float(was_right.mean()),
        p_worse=worse,
        images_per_second=rate,
        milliseconds=latency,
        objection=objection_to_labels(int((~same).sum()), len(same), worse)
        if precision == "int8"
        else _objection(file, precision, difference),
    )


def _megabytes(file: Format, path: Path) -> float:
    return round(sum(each.stat().st_size for each in file.paths(path)) / 1e6, 3)


def _objection(file: Format, precision: str, difference: float) -> str:
    most = PHOTO_TOLERANCE if file.takes_photos and precision == "fp32" else TOLERANCE[precision]
    if difference <= most:
        return ""
    return f"a probability is {difference:.2g} away from torch's ({most:g} allowed)"


def objection_to_labels(different: int, images: int, worse: float) -> str:
    """`different`: labels of validation images that are not torch's; `worse`: see `ExportedFile.p_worse`."""
    allowed = math.floor(images * (1 - MIN_AGREEMENT) + 1e-9)
    if different > allowed:
        return f"{different} of {images} labels are not torch's ({allowed} allowed)"
    return f"it is less accurate (p = {worse:.2g})" if worse < SIGNIFICANT else ""


def batches(pixels: np.ndarray) -> list[np.ndarray]:
    return np.array_split(pixels, -(-len(pixels) // TIMED))


def speed(run: Run, inputs: Sequence[np.ndarray], rounds: int = ROUNDS) -> tuple[float, float]:
    """(images per second, milliseconds of a single one), medians; a photo comes alone anyway."""
    together, alone = inputs[0], inputs[0][:1] if inputs[0].ndim == 4 else inputs[0]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for single, values in ((False, together), (True, alone)):
            started = time.perf_counter()
            run(values)
            seconds[single].append(time.perf_counter() - started)
    count = len(together) if together.ndim == 4 else 1
    return round(count / statistics.median(seconds[False]), 1), round(1000 * statistics.median(seconds[True]), 2)
