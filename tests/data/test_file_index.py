"""One look at a file measures what independent code measures."""

from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, noise, photo
from PIL import Image, ImageOps

from spectacles.data.file_index import BORDER, FileFacts, inspect_file, inspect_files

COLOURS = ("red", "green", "blue")


def look(folder: Path, picture: Image.Image, format: str = "PNG", **options: object) -> FileFacts:
    path = folder / f"picture.{format.lower()}"
    path.write_bytes(encoded(picture, format, **options))
    return inspect_file(path)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 300), height=st.integers(1, 300))
def test_hashes_are_those_of_imagehash(tmp_path_factory, seed, width, height):
    picture = photo(seed, width, height)
    facts = look(tmp_path_factory.getbasetemp(), picture)
    assert facts.phash == str(imagehash.phash(picture))
    small = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    assert facts.phash_mirrored == str(imagehash.phash(ImageOps.mirror(small)))


def test_the_mirrored_file_has_the_two_hashes_exchanged(tmp_path):
    one, other = (look(tmp_path, picture) for picture in (photo(1, 200, 150), ImageOps.mirror(photo(1, 200, 150))))
    bits = [int(a, 16) ^ int(b, 16) for a, b in ((one.phash, other.phash_mirrored), (one.phash_mirrored, other.phash))]
    assert max(value.bit_count() for value in bits) <= 2
    assert (int(one.phash, 16) ^ int(other.phash, 16)).bit_count() > 10


@pytest.mark.parametrize("size", [(50, 50), (200, 100), (640, 480), (1, 1), (30, 7)])
def test_colours_are_means_of_the_pixels(tmp_path, size):
    picture = photo(2, *size)
    facts = look(tmp_path, picture)
    pixels = np.asarray(picture, dtype=np.float64)
    measured = [getattr(facts, name) for name in COLOURS]
    np.testing.assert_allclose(measured, pixels.mean(axis=(0, 1)), atol=1)
    assert facts.saturation == pytest.approx((pixels.max(axis=2) - pixels.min(axis=2)).mean(), abs=2)


def test_the_border_is_measured_separately(tmp_path):
    pixels = np.full((500, 400, 3), (10, 20, 30), dtype=np.uint8)
    pixels[20:-20, 16:-16] = (200, 150, 100)
    assert 20 / 500 == 16 / 400 == BORDER
    facts = look(tmp_path, Image.fromarray(pixels))
    assert [getattr(facts, f"border_{name}") for name in COLOURS] == [10, 20, 30]
    share = 460 * 368 / (500 * 400)
    assert facts.red == pytest.approx(share * 200 + (1 - share) * 10, abs=0.5)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_grey_has_no_saturation(tmp_path, level):
    facts = look(tmp_path, Image.new("L", (90, 40), level))
    assert (facts.saturation, facts.red, facts.border_blue) == (0, level, level)
    assert (facts.brightness, facts.contrast, facts.sharpness) == (level, 0, 0)


def test_quantisation_is_the_mean_of_the_luminance_table(tmp_path):
    for quality in (30, 90):
        facts = look(tmp_path, noise(3), "JPEG", quality=quality)
        with Image.open(tmp_path / "picture.jpeg") as opened:
            assert facts.quantisation == pytest.approx(np.mean(opened.quantization[0]), abs=0.01)
    assert look(tmp_path, noise(3), "JPEG", quality=30).quantisation > 3 * facts.quantisation
    assert look(tmp_path, noise(3), "PNG").quantisation == look(tmp_path, noise(3), "WEBP").quantisation == 0


def test_brightness_contrast_and_sharpness_are_those_of_the_grey_picture(tmp_path):
    picture = photo(4, 120, 90)
    facts, pixels = look(tmp_path, picture), np.asarray(picture.convert("L"), dtype=np.float64)
    assert facts.brightness == pytest.approx(pixels.mean(), abs=0.01)
    assert facts.contrast == pytest.approx(pixels.std(), abs=0.01)
    five_points = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * pixels[1:-1, 1:-1]
    assert facts.sharpness == pytest.approx(five_points.var(), rel=1e-3)


def test_there_is_one_row_per_path_with_zeros_for_rejected_files(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(5)))
    table = inspect_files([str(path), str(tmp_path / "gone.png")], 2)[0]
    assert table["status"].tolist() == ["used", "rejected"]
    assert table.loc[1, ["red", "saturation", "quantisation", "width"]].tolist() == [0, 0, 0, 0]
    assert list(inspect_files([], 1)[0].columns) == list(table.columns)
