"""An ONNX graph makes of a photo what the bundle's preprocessing makes of it."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from pictures import photo

from spectacles.data.preprocessing import Preprocessing
from spectacles.export import photo_graph
from spectacles.models.file_metadata import PHOTO

SIZES = ((178, 218), (48, 48), (300, 40), (50, 97), (333, 501), (30, 20), (49, 47), (701, 1002))
"""Width and height."""


@pytest.mark.parametrize(
    ("resize", "interpolation", "in_chans"),
    [*itertools.product(("crop", "squash", "pad"), ("bilinear", "bicubic"), (3,)), ("crop", "bicubic", 1)],
)
def test_a_photo_of_any_size_becomes_pillows_pixels(resize, interpolation, in_chans):
    preprocessing = Preprocessing(48, resize, interpolation, (0.5,) * in_chans, (0.5,) * in_chans, in_chans)
    model = photo_graph.graph(preprocessing)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for seed, (width, height) in enumerate(SIZES):
        picture = photo(seed, width, height)
        [[made]] = session.run([photo_graph.PIXELS], {PHOTO: np.asarray(picture)})
        expected = preprocessing.pixels(picture)
        assert made.dtype == np.uint8 and made.shape == expected.shape
        apart = np.abs(made.astype(int) - expected)
        # Where the scale is near 1 or less, many values lie in the middle between two whole numbers. Larger
        # photos are reduced in two steps.
        two_steps = max(width, height) >= 2 * photo_graph.GAP * 48
        assert apart.max() <= (3 if two_steps else 1), (width, height)
        assert apart.mean() < (0.3 if two_steps else 0.03), (width, height)
