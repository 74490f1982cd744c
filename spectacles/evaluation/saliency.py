"""What all attribution methods share: what they explain, and what a saliency map is."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from spectacles.models.bundle import BundleInfo
from spectacles.models.engines import Outputs

if TYPE_CHECKING:
    from spectacles.models.classifier import Classifier


class CannotExplain(Exception):
    """A method cannot explain this network, or not here; the message says why."""


class Explainable(Protocol):
    """A `Predictor`, as the methods see it."""

    @property
    def info(self) -> BundleInfo: ...

    @property
    def head_weight(self) -> np.ndarray | None:
        """(K, D) float32; None where the features are not known."""

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """uint8 (B, S, S, C) -> those of `all_outputs.AllOutputs`."""

    def torch_network(self) -> "AbstractContextManager[Classifier]":
        """Raises UserError where torch is not installed."""


def to_saliency(scores: np.ndarray) -> np.ndarray:
    """Attribution scores (B, h, w) on any scale -> saliency (B, h, w) float32: negative scores become 0, each image's
    maximum 1; an image without positive scores is 0 everywhere."""
    positive = np.maximum(scores, 0, dtype=np.float32)
    maximum = positive.max(axis=(1, 2), keepdims=True)
    scaled: np.ndarray = np.divide(positive, maximum, out=np.zeros_like(positive), where=maximum > 0)
    return scaled
