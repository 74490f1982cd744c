"""Which training images an epoch takes, and how much each weighs: those that still have something to teach come each
time, the others now and then, and count for more when they do.

Once the head is fitted, most images have no loss left. Weights of one over the probability of being drawn keep the
expected gradient that of all images (importance sampling; Katharopoulos & Fleuret 2018; Qin et al. 2024).
"""

import numpy as np

from spectacles.core.device import derive_seed

FEWEST = 800
"""Images that an epoch takes at least, as far as there are so many: fewer would be too few steps, and take seconds."""
LEAST = 0.13
"""Loss that every image counts with at least, relative to the mean loss: what is easy now must not be forgotten."""

NO_LOSS = 1e-9


def images_per_epoch(images: int, share: float) -> int:
    return max(round(share * images), min(images, FEWEST))


def inclusion_probabilities(losses: np.ndarray, count: int) -> np.ndarray:
    """(N,) float64 in 0..1 that sum to `count` (less than N): proportional to the losses (N,), where that is less
    than 1."""
    sizes = np.maximum(losses, max(LEAST * losses.mean(), NO_LOSS)).astype(np.float64)
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        probabilities = np.where(certain, 1.0, sizes * ((count - certain.sum()) / sizes[~certain].sum()))
        if not (more := (probabilities >= 1) & ~certain).any():
            return probabilities
        certain |= more


def draw(probabilities: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Indices in random order, as many as the probabilities (N,) sum to, each drawn with its probability (systematic
    sampling, Madow 1949): a function of (seed, epoch)."""
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    shuffled = rng.permutation(len(probabilities))
    ends = np.floor(np.cumsum(probabilities[shuffled]) + rng.random())
    drawn: np.ndarray = shuffled[np.diff(ends, prepend=0.0) > 0]
    return drawn


def weights(probabilities: np.ndarray) -> np.ndarray:
    """(N,) float32: what the loss of an image counts for when it is drawn, 1 on average over an epoch."""
    counted: np.ndarray = (probabilities.mean() / probabilities).astype(np.float32)
    return counted
