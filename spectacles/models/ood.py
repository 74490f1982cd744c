"""Out-of-distribution scores: how unlike the training photos is a photo, compared with the validation photos?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

REFERENCES = 500
"""Training photos that the subspace is fitted to; four times as many separated other photos no better."""
COMPONENTS = 32
ENOUGH = 20
"""Training photos, and validation photos, needed at least to fit a scorer."""
TAIL, IN_THE_TAIL = 0.1, 10
"""Share of the validation photos, those farthest away, that the tail is fitted to, and how many it takes at least."""
QUANTILES = 101
"""Number of quantiles of the validation photos' distances that are stored."""
PREFIX = "ood."
"""Of its tensors in the bundle's weights file."""


@dataclass(frozen=True)
class OODScorer:
    """Distance of last maps, scaled to length one, from the principal subspace of the training photos' maps (Moghaddam
    & Pentland 1997; Wang et al. 2022), ranked among the distances of the validation photos."""

    mean: np.ndarray
    """(E,) float32."""
    components: np.ndarray
    """(k, E) float32, orthonormal rows."""
    distances: np.ndarray
    """(P,) float32, rising: quantiles of the validation photos' distances, evenly spaced from 0 to where the tail
    begins."""
    tail: np.ndarray
    """(2,) float32: the share of the validation photos in the tail, and their mean excess over its beginning."""

    def distance(self, maps: np.ndarray) -> np.ndarray:
        """(B, E) -> (B,) float32, in 0..1 but for rounding."""
        return _distance(maps, self.mean, self.components)

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        """(B, E) -> ood_score (B,) float64 in 0..1: the share of the validation photos that are more like the training
        photos.

        In the tail, where validation photos are few, the share beyond falls exponentially with the distance, as
        excesses over a high threshold do (Pickands 1975), so that photos farther away than all of them are ranked too.
        """
        distance = self.distance(maps).astype(np.float64)
        share, scale = self.tail.tolist()
        tail_start = float(self.distances[-1])
        inside = np.interp(distance, self.distances, np.linspace(0, 1 - share, len(self.distances)))
        beyond = 1 - share * np.exp(-np.maximum(distance - tail_start, 0) / scale)
        scores: np.ndarray = np.where(distance > tail_start, beyond, inside)
        return scores

    def ranked_among(self, validation: np.ndarray) -> OODScorer:
        """The same subspace, with the distances of these validation photos' maps (V, E), V >= ENOUGH."""
        distances, tail = _quantiles(self.distance(validation))
        return replace(self, distances=distances, tail=tail)

    def tensors(self) -> dict[str, np.ndarray]:
        """For the bundle, beside the network's weights."""
        return {PREFIX + name: value for name, value in vars(self).items()}


def fit(references: np.ndarray, validation: np.ndarray) -> OODScorer | None:
    """From the maps (R, E) of training photos and (V, E) of validation photos; None for fewer than ENOUGH of either."""
    if min(len(references), len(validation)) < ENOUGH:
        return None
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # serving does not need it

    units = _unit(references).astype(np.float64)
    mean = units.mean(axis=0)
    count = min(COMPONENTS, len(units) // 2, units.shape[1] // 4)
    with threadpool_limits(1):  # beside other busy processes, threads that wait for each other are slower than one
        components = np.linalg.svd(units - mean, full_matrices=False)[2][:count].astype(np.float32)
    distances, tail = _quantiles(_distance(validation, mean.astype(np.float32), components))
    return OODScorer(mean.astype(np.float32), components, distances, tail)


def _quantiles(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The validation photos' distances (V,) -> `OODScorer.distances` and `OODScorer.tail`."""
    share = max(TAIL, min(0.5, IN_THE_TAIL / len(measured)))
    distances = np.quantile(measured, np.linspace(0, 1 - share, QUANTILES)).astype(np.float32)
    excesses = measured[measured > distances[-1]] - distances[-1]
    # Where all photos are alike, the smallest difference must not count as out of distribution.
    scale = max(float(excesses.mean()) if len(excesses) else 0.0, 1e-3 * float(distances[-1]), 1e-4)
    return distances, np.array([share, scale], dtype=np.float32)


def from_tensors(tensors: Mapping[str, np.ndarray]) -> OODScorer | None:
    """From those of a bundle whose names start with PREFIX; None where it has no scorer."""
    parts = {name.removeprefix(PREFIX): values for name, values in tensors.items() if name.startswith(PREFIX)}
    return OODScorer(**parts) if parts else None


def _distance(maps: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    centred = _unit(maps) - mean
    distance: np.ndarray = np.linalg.norm(centred - centred @ components.T @ components, axis=1)
    return distance


def _unit(maps: np.ndarray) -> np.ndarray:
    unit: np.ndarray = maps / np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1e-12)
    return unit
