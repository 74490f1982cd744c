"""Many files in threads: in order, rejected ones in their place, and never far ahead of whoever reads."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, exif, noise, photo, write_noise

from spectacles.data.images import decode
from spectacles.data.preprocessing import LOOK_AHEAD, Preprocessing, decode_one, decoded_batches

PREPROCESSING = Preprocessing(16, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@settings(max_examples=30)
@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=20), st.integers(1, 6), st.integers(1, 4))
def test_batches_hold_every_source_in_order_and_rejected_ones_in_their_place(seeds, batch_size, threads):
    sources = [b"no picture" if seed is None else encoded(noise(seed)) for seed in seeds]
    batches = list(decoded_batches(sources, PREPROCESSING, batch_size, threads))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    decoded = [item for batch in batches for item in batch]
    assert len(decoded) == len(seeds)
    for item, seed in zip(decoded, seeds, strict=True):
        if seed is None:
            assert item.pixels is None and item.reason.startswith("not an image")
        else:
            np.testing.assert_array_equal(item.pixels, PREPROCESSING.pixels(noise(seed)))
            assert item.reason == ""


def test_a_file_has_its_name_and_bytes_have_none(tmp_path):
    write_noise(tmp_path, ["a.png"])
    path = tmp_path / "a.png"
    for source, name in ((path, str(path)), (path.read_bytes(), "")):
        assert decode_one(source, PREPROCESSING).name == name
    missing = decode_one(tmp_path / "missing.png", PREPROCESSING)
    assert (missing.name, missing.reason) == (str(tmp_path / "missing.png"), "file not found")


def test_a_large_photo_is_decoded_as_small_as_the_model_allows():
    content = encoded(photo(0, 640, 480), "JPEG", exif=exif(6))
    [[item]] = decoded_batches([content], PREPROCESSING, 1)
    expected = PREPROCESSING.pixels(decode(content, least_side=PREPROCESSING.least_side).image)
    np.testing.assert_array_equal(item.pixels, expected)
    assert not np.array_equal(expected, PREPROCESSING.pixels(decode(content).image))
    assert item.conversions == ("EXIF orientation applied",)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sources_are_asked_for_little_ahead_of_the_reader(batch_size):
    asked, content = 0, encoded(noise(0))

    def sources() -> Iterator[Path | bytes]:
        nonlocal asked
        for _ in range(60):
            asked += 1
            yield content

    batches = decoded_batches(sources(), PREPROCESSING, batch_size, 2)
    for taken in range(1, 6):
        next(batches)
        assert asked <= (taken + LOOK_AHEAD) * batch_size
    batches.close()


def test_the_pixel_limit_is_the_callers():
    [[item]] = decoded_batches([encoded(noise(0))], PREPROCESSING, 4, 1, max_pixels=32 * 32 - 1)
    assert "32 x 32 pixels" in item.reason
