"""Pictures that are always available and always the same, on which engines are compared and measured."""

import numpy as np

from spectacles.data.preprocessing import Preprocessing

CONTRAST, COLOUR = 24, 8
"""Largest change of the brightness, and of each channel, at one scale, in steps of 0..255."""


def sample_pictures(preprocessing: Preprocessing, count: int = 32) -> np.ndarray:
    """uint8 (count, S, S, C). As in photos, each doubling of the scale brings as much contrast (Field 1987).

    Bundles hold what a network answers to them, so they must not change: integers of a generator that numpy has frozen.
    """
    random = np.random.RandomState(0)
    places = np.arange(preprocessing.image_size)
    pictures = np.full((count, *preprocessing.shape), 128)
    cells = 1
    while cells <= preprocessing.image_size:
        nearest = places * cells // preprocessing.image_size
        for most, channels in ((CONTRAST, 1), (COLOUR, preprocessing.in_chans)):
            drawn = random.randint(-most, most + 1, size=(count, cells, cells, channels), dtype=np.int64)
            pictures += drawn[:, nearest][:, :, nearest]
        cells *= 2
    return pictures.clip(0, 255).astype(np.uint8)
