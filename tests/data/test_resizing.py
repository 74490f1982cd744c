"""The model's input is the same in every version of Pillow: that of a stored reference.

`resized_pictures.json` was written by Pillow 12.3's own single calls (`Image.resize`, `ImageOps.fit`), rows first.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spectacles.data.preprocessing import Preprocessing
from spectacles.data.resizing import resize

REFERENCE = json.loads((Path(__file__).parent / "resized_pictures.json").read_text(encoding="utf-8"))


def drawn(width: int, height: int) -> Image.Image:
    """Noise from SHAKE-256, which no library can change."""
    values = hashlib.shake_256(f"{width}x{height}".encode()).digest(width * height * 3)
    return Image.fromarray(np.frombuffer(values, dtype=np.uint8).reshape(height, width, 3))


def test_forty_pictures_of_odd_sizes_are_those_of_the_stored_reference():
    assert len(REFERENCE) == 40
    for width, height, mode, interpolation, image_size, in_chans, digest in REFERENCE:
        preprocessing = Preprocessing(image_size, mode, interpolation, (0.5,) * in_chans, (0.5,) * in_chans, in_chans)
        pixels = preprocessing.pixels(drawn(width, height))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest, (width, height, mode, interpolation, image_size)


def weights(out: int, start: float, stop: float, length: int) -> np.ndarray:
    """(out, length): Keys' cubic with a = -0.5, widened when shrinking; each row adds up to 1."""
    scale = (stop - start) / out
    centres = start + (np.arange(out) + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    values = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return values / values.sum(axis=1, keepdims=True)


@settings(max_examples=30)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 60), st.integers(1, 60))
def test_rows_come_first_whatever_the_shape(width, height, across, down):
    picture = drawn(width, height)
    values = np.asarray(picture, dtype=np.float64)
    narrow = np.einsum("ow,hwc->hoc", weights(across, 0, width, width), values).round().clip(0, 255)
    expected = np.einsum("oh,hwc->owc", weights(down, 0, height, height), narrow).clip(0, 255)
    seen = np.asarray(resize(picture, (across, down), Image.Resampling.BICUBIC), dtype=np.float64)
    off = np.abs(seen - expected)
    assert (off <= 0.51).mean() > 0.98 and off.max() < 2  # fixed-point weights in Pillow, now and then one level apart


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 400), st.integers(1, 40), st.data())
def test_rows_that_the_part_does_not_need_change_nothing(width, height, size, data):
    top = data.draw(st.integers(0, height - 1)) / 2
    bottom = data.draw(st.floats(top + 0.5, height))
    picture, box = drawn(width, height), (0.0, top, float(width), bottom)
    narrow = picture.resize((size, height), Image.Resampling.BICUBIC, (0, 0, width, height))
    expected = narrow.resize((size, size), Image.Resampling.BICUBIC, (0, top, size, bottom))
    seen = resize(picture, (size, size), Image.Resampling.BICUBIC, box)
    assert np.abs(np.asarray(seen, int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("size", [(60, 20), (30, 40)])
def test_a_side_that_keeps_its_length_is_not_touched(size):
    picture = drawn(60, 40)
    expected = picture.resize(size, Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(resize(picture, size, Image.Resampling.BILINEAR)), np.asarray(expected))
