"""Occlusion (Zeiler & Fergus 2014): how much a class loses when a part of the photo is hidden; on any engine."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from spectacles.evaluation.saliency import Explainable, to_saliency

BLUR = 8
"""A blurred image is one seen through a grid of so many cells a side."""
WINDOW, STRIDE = 1 / 5, 1 / 10
"""Of the image's side. Windows overlap: a cell of the map is hidden by up to four of them."""
AT_ONCE = 32
"""Images that go through the network in one batch."""

Window = tuple[slice, slice]


def occlusion(network: Explainable, pixels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """uint8 (B, S, S, C) and class indices (B,) -> saliency (B, 10, 10): the drop of the class's log odds, of each
    pixel the mean over all windows that hide it.

    A window is blurred instead of blanked (Fong & Vedaldi 2017): a grey square is itself something to be seen.
    """
    return to_saliency(np.stack([_explain(network, *each) for each in zip(pixels, targets, strict=True)]))


def _explain(network: Explainable, image: np.ndarray, target: int) -> np.ndarray:
    """(S, S, C) -> mean drop (10, 10)."""
    side, places = len(image), windows(len(image))
    hidden = np.repeat(image[None], 1 + len(places), axis=0)
    soft = blurred(image)
    for copy, window in zip(hidden[1:], places, strict=True):
        copy[window] = soft[window]
    parts = [hidden[start : start + AT_ONCE] for start in range(0, len(hidden), AT_ONCE)]
    scores = log_odds(np.concatenate([network.outputs(part)["logits"] for part in parts]), target,
                      network.info.multi_label)  # fmt: skip
    drops, times = np.zeros((side, side)), np.zeros((side, side))
    for score, window in zip(scores[1:], places, strict=True):
        drops[window] += scores[0] - score
        times[window] += 1
    # Pixels within a stride are hidden by the same windows: one value says all.
    cells = round(1 / STRIDE)
    edges = [slice(cell * side // cells, -(-(cell + 1) * side // cells)) for cell in range(cells)]
    return np.array([[(drops[row, column] / times[row, column]).mean() for column in edges] for row in edges])


def windows(side: int) -> list[Window]:
    """Squares that cover an image of `side` pixels; those at its end may be narrower."""
    size, stride = max(1, round(side * WINDOW)), max(1, round(side * STRIDE))
    starts = range(0, -(-(side - size) // stride) * stride + 1, stride)
    return [np.s_[top : top + size, left : left + size] for top in starts for left in starts]


def blurred(image: np.ndarray) -> np.ndarray:
    """uint8 (S, S, C) -> the same without detail."""
    return np.stack(list(_blurred_channels(image)), axis=2)


def _blurred_channels(image: np.ndarray) -> Iterator[np.ndarray]:
    for channel in np.moveaxis(image.astype(np.float32), 2, 0):
        cells = Image.fromarray(channel).resize((BLUR, BLUR), Image.Resampling.BILINEAR)
        yield np.asarray(cells.resize(channel.shape, Image.Resampling.BILINEAR)).round().astype(np.uint8)


def log_odds(logits: np.ndarray, target: int, multi_label: bool) -> np.ndarray:
    """(B, K) -> (B,): log p / (1 - p) of a class, which unlike p does not saturate, and unlike a logit is blind to
    evidence for all classes alike. With any number of labels this is the logit itself."""
    own = logits[:, target].astype(np.float64)
    if multi_label:
        return own
    others = np.delete(logits, target, axis=1).astype(np.float64)
    most = others.max(axis=1)
    odds: np.ndarray = own - most - np.log(np.exp(others - most[:, None]).sum(axis=1))
    return odds
