"""Random labels, probabilities and decisions for the tests of metrics."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from spectacles.metrics.decisions import Scored, decide


@st.composite
def scored_images(draw, min_classes=2, max_classes=7, every_class=False):
    """`Scored` images with coarse probabilities, so that ties and exact 0 and 1 occur."""
    num_classes = draw(st.integers(min_classes, max_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 60)) + (2 * num_classes if every_class else 0)
    labels = rng.integers(num_classes, size=size)
    if every_class:
        labels[: 2 * num_classes] = np.tile(np.arange(num_classes), 2)
    weights = rng.integers(0, draw(st.sampled_from([2, 4, 1000])), size=(size, num_classes))
    weights[weights.sum(axis=1) == 0, 0] = 1
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return Scored(labels, probabilities, decide(probabilities, None), np.arange(size))
