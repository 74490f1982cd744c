"""Explanations of single files as pictures, for predict's --explain and the server's /explain."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path, safe_name
from spectacles.data import label_sets
from spectacles.data.addresses import locate
from spectacles.data.images import MAX_PIXELS, ImageRejected, Source, decode
from spectacles.data.preprocessing import Preprocessing, to_picture
from spectacles.evaluation.attribution import REMEDY, explain
from spectacles.evaluation.saliency import CannotExplain
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.models.bundle import BundleInfo
from spectacles.report.saliency import overlay_saliency

SIDE = 384
"""Of an overlay, in pixels, where the model's input is not larger: that is often too small to look at."""


def view(source: Source, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """The model's input (S, S, C) and the same cut of the photo for people (V, V, 3), uint8. Raises ImageRejected."""
    image = decode(source, max_pixels, preprocessing.least_side, preprocessing.value_ranges).image
    return preprocessing.pixels(image), to_picture(for_people(preprocessing).pixels(image))


def for_people(preprocessing: Preprocessing) -> Preprocessing:
    """The same cut of a photo, large enough to look at."""
    return preprocessing.at(max(SIDE, preprocessing.image_size))


def write_overlays(
    outcomes: Iterable[Prediction], names: Sequence[str], predictor: Predictor, methods: Sequence[str], folder: Path
) -> Iterator[tuple[Prediction, str]]:
    """Passes the outcome of each of `names` on, with the file in `folder` (its name, '' for a rejected image) that
    shows the saliency for its label, the methods side by side. Constant memory. Raises UserError."""
    numbered = zip(range(1, len(names) + 1), names, outcomes, strict=True)
    while chunk := list(islice(numbered, predictor.batch_size)):
        read = {number: found for number, _, outcome in chunk if (found := _reread(outcome, predictor))}
        guesses = [explained(outcome, predictor.info) for number, _, outcome in chunk if number in read]
        pictures = dict(zip(read, _overlays(list(read.values()), guesses, predictor, methods), strict=True))
        for number, name, outcome in chunk:
            file = file_name(number, name) if number in pictures else ""
            if file:
                with atomic_path(folder / file) as unfinished:
                    Image.fromarray(pictures[number]).save(unfinished, "PNG")
            yield outcome, file


def explained(outcome: Prediction, info: BundleInfo) -> int:
    """Index of the class that a prediction is explained for: its label, of several the most probable one."""
    return label_sets.most_probable(outcome.label, outcome.probabilities, info.classes, info.multi_label)


def _reread(outcome: Prediction, predictor: Predictor) -> tuple[np.ndarray, np.ndarray] | None:
    """The pixels once more, as predictions do not carry them; None where there are none (any more)."""
    try:
        return None if outcome.reason else view(locate(outcome.path), predictor.info.preprocessing)
    except ImageRejected:
        return None


def _overlays(
    read: Sequence[tuple[np.ndarray, np.ndarray]], guesses: Sequence[int], predictor: Predictor, methods: Sequence[str]
) -> list[np.ndarray]:
    if not read:
        return []
    pixels = np.stack([pixels for pixels, _ in read])
    saliency = []
    for method in methods:
        try:
            saliency.append(explain(method, predictor, pixels, guesses))
        except CannotExplain as reason:
            raise UserError(f"--explain_with {method} cannot explain this model: {reason}; {REMEDY}.") from reason
    return [
        np.concatenate([overlay_saliency(picture, maps[place]) for maps in saliency], axis=1)
        for place, (_, picture) in enumerate(read)
    ]


def file_name(number: int, name: str) -> str:
    """A name that no other row has and that no folder can be left with, by which a person still finds the photo."""
    return f"{number:06d}-{safe_name(Path(name).stem)}.png"
