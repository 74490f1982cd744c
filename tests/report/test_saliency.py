"""Saliency maps laid over photos."""

import numpy as np
from matplotlib import colormaps

from spectacles.report.saliency import colour_table, overlay_saliency


def test_overlay_saliency():
    image = np.full((30, 50, 3), 100, dtype=np.uint8)
    saliency = np.array([[0.0, np.nan], [2.0, -1.0]])
    blended = overlay_saliency(image, saliency)
    assert blended.shape == image.shape and blended.dtype == np.uint8
    assert (image == 100).all(), "the photo itself is not changed"
    hot, cold = blended[-1, 0].astype(int), blended[0, 0].astype(int)
    assert hot[0] > hot[2] and cold[2] > cold[0]  # turbo runs from blue to red
    np.testing.assert_array_equal(overlay_saliency(image, saliency, opacity=0.0), image)


def test_the_colours_are_those_of_matplotlib():
    expected = colormaps["turbo"](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(colour_table() - expected).max() <= 6
