"""Files with other values than 0..255: one range for the data set, whatever the bit depth and the format."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, photo
from PIL import Image

from spectacles.core.value_ranges import PER_FILE, ValueRanges
from spectacles.data.file_index import inspect_files
from spectacles.data.images import decode
from spectacles.data.preprocessing import Preprocessing, decode_one
from spectacles.data.value_ranges import Extremes, measure, range_of

LEVELS = np.asarray(photo(3, 48, 40).convert("L"))
"""uint8, in the middle of the range."""


def seen(content: bytes, ranges: ValueRanges = PER_FILE) -> np.ndarray:
    picture = np.asarray(decode(content, ranges=ranges).image)
    assert (picture == picture[..., :1]).all()
    return picture[..., 0].astype(int)


STORED = {
    "10 bits": ("PNG", LEVELS.astype(np.uint16) * 4),
    "12 bits": ("PNG", LEVELS.astype(np.uint16) * 16),
    "14 bits": ("TIFF", LEVELS.astype(np.uint16) * 64),
    "16 bits": ("PNG", LEVELS.astype(np.uint16) * 257),
    "16 bits, the other byte order": ("TIFF", (LEVELS.astype(np.uint16) * 257).astype(">u2")),
    "8 bits in 16": ("PNG", LEVELS.astype(np.uint16)),
    "32 bits": ("TIFF", LEVELS.astype(np.int32) * 257),
    "0 to 1": ("TIFF", LEVELS.astype(np.float32) / 255),
    "floating point to 255": ("TIFF", LEVELS.astype(np.float32)),
    "floating point to 65535": ("TIFF", LEVELS.astype(np.float32) * 257),
}


@pytest.mark.parametrize("name", STORED)
def test_every_bit_depth_looks_like_8_bits(tmp_path, name):
    """To a level: ten bits divide 0..1023 where eight divide 0..255."""
    format, values = STORED[name]
    dark, bright = tmp_path / "dark", tmp_path / "bright"
    bright.write_bytes(encoded(Image.fromarray(values), format))
    dark.write_bytes(encoded(Image.fromarray((values / 8).astype(values.dtype)), format))
    table, ranges, [sentence] = inspect_files([str(dark), str(bright)], 1)
    assert "become black to white" in sentence
    assert np.abs(seen(bright.read_bytes(), ranges) - LEVELS).max() <= 1
    assert np.abs(seen(dark.read_bytes(), ranges) - LEVELS // 8).max() <= 1  # not by itself: it stays dark
    assert table["brightness"].tolist() == pytest.approx([LEVELS.mean() / 8, LEVELS.mean()], abs=1)


@pytest.mark.parametrize("dtype", ["<i2", ">i2"])
def test_signed_values_keep_their_order_over_the_whole_data_set(dtype):
    """As a computed tomograph stores them: water is 0, air -1000."""
    bone, air = (encoded(_signed(values, dtype), "TIFF") for values in ([-1000, 0, 3000], [-1000, -900, -800]))
    found = [decode(content).extremes for content in (bone, air)]
    ranges = measure(filter(None, found))
    assert ranges.integer == (-1000, 3000)
    assert seen(bone, ranges).tolist() == [[0, 64, 255]]
    assert seen(air, ranges).tolist() == [[0, 6, 13]]
    assert decode(bone).conversions == ("16 bits reduced to 8",)


def _signed(values: list[int], dtype: str) -> Image.Image:
    """Pillow writes 16-bit TIFFs unsigned: what is saved is retagged as signed (tag 339, SampleFormat 2)."""
    return _Signed(values, dtype)


class _Signed:
    def __init__(self, values: list[int], dtype: str) -> None:
        self.values = np.array([values], dtype=dtype)

    def save(self, file, format: str) -> None:
        picture = Image.fromarray(self.values.view(self.values.dtype.str.replace("i", "u")))
        picture.save(file, format, tiffinfo={339: 2})


@pytest.mark.parametrize("photometric", [0, 1])
def test_one_bit_is_black_and_white(photometric):
    two = Image.fromarray((LEVELS > 120).astype(np.uint8) * 255).convert("1")
    content = encoded(two, "TIFF", tiffinfo={262: photometric}) if photometric else encoded(two)
    assert set(np.unique(seen(content))) == {0, 255}


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint8, "byte"), (np.uint16, "integer"), (np.float32, "real")])
def test_masks_of_0_and_1_are_black_and_white(tmp_path, dtype, kind):
    mask = (LEVELS > 120).astype(dtype)
    path = tmp_path / "mask.tiff"
    path.write_bytes(encoded(Image.fromarray(mask), "TIFF"))
    _, ranges, _ = inspect_files([str(path)], 1)
    assert getattr(ranges, kind) == (0, 1)
    np.testing.assert_array_equal(seen(path.read_bytes(), ranges), 255 * mask.astype(int))


def test_ordinary_files_have_no_range_to_speak_of(tmp_path):
    paths = []
    for number, picture in enumerate([photo(0, 40, 40), photo(1, 40, 40).convert("L"), Image.new("L", (9, 9))]):
        picture.save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    table, ranges, sentences = inspect_files(paths, 1)
    assert sentences == [] and set(table["status"]) == {"used"}
    assert (ranges.integer, ranges.real) == (None, None)
    np.testing.assert_array_equal(seen(Path(paths[1]).read_bytes(), ranges), np.asarray(photo(1, 40, 40).convert("L")))


@pytest.mark.parametrize(
    ("extremes", "expected"),
    [
        (("integer", 0, 0), (0, 65535)),
        (("integer", 0, 1023), (0, 1023)),
        (("integer", 0, 1024), (0, 4095)),
        (("integer", 5, 100_000), (0, 100_000)),
        (("integer", -32768, 32767), (-32768, 32767)),
        (("byte", 0, 15), (0, 15)),
        (("byte", 0, 16), (0, 255)),
        (("real", -0.02, 1.04), (0, 1)),
        (("real", -1, 1), (-1, 1)),
        (("real", 0, 5.5), (0, 5.5)),
        (("real", 0, 200), (0, 255)),
        (("real", 0, 60_000), (0, 65535)),
        (("real", 0, 1e6), (0, 1e6)),
    ],
)
def test_a_range_is_that_of_the_bit_depth_or_of_the_values(extremes, expected):
    assert range_of(Extremes(*extremes)) == expected


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), min_size=1), st.randoms())
def test_the_range_holds_every_file_whatever_their_order(pairs, random):
    files = [Extremes("integer", min(pair), max(pair)) for pair in pairs]
    shuffled = random.sample(files, len(files))
    ranges = measure(files)
    assert ranges == measure(shuffled) and ranges.integer is not None
    assert all(ranges.integer[0] <= file.low and file.high <= ranges.integer[1] for file in files)


def test_test_files_do_not_choose_the_range(tmp_path):
    for name, top in (("train", 1000), ("test", 60_000)):
        Image.fromarray(np.full((9, 9), top, dtype=np.uint16)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "train.png"), str(tmp_path / "test.png")]
    table, ranges, _ = inspect_files(paths, 1, training=[paths[0]])
    assert ranges.integer == (0, 1023)
    assert table["reason"].tolist() == [
        "16 bits reduced to 8",
        "16 bits reduced to 8, values outside 0 to 1023 cut off",
    ]


def test_a_few_files_that_darken_all_others_are_named(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(201)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((2, 2), 60_000 if number == 77 else 900, dtype=np.uint16)).save(path)
    _, _, [_, sentence] = inspect_files(paths, 2)
    assert sentence.startswith(f"only 1 of them, such as {paths[77]}, holds values above 16383")


def rgb16(values: np.ndarray, alpha: bool = False) -> bytes:
    """A PNG of 16 bits for each colour, which Pillow cannot write."""
    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 6 if alpha else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    ends = [(struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(name + data))) for name, data in chunks]
    parts = [length + name + data + check for (name, data), (length, check) in zip(chunks, ends, strict=True)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("alpha", [False, True])
def test_16_bits_for_each_colour_have_a_range_too(tmp_path, alpha):
    colours = np.asarray(photo(5, 30, 20)).astype(np.uint16)
    opaque = np.full((20, 30, 1), 65535, dtype=np.uint16)
    for factor, off in ((257, 1), (64, 5)):
        values = np.concatenate([colours * factor, opaque], axis=2) if alpha else colours * factor
        path = tmp_path / f"{factor}.png"
        path.write_bytes(rgb16(values, alpha))
        table, ranges, sentences = inspect_files([str(path)], 1)
        assert table["reason"].tolist() == ["16 bits reduced to 8"]
        picture = np.asarray(decode(path.read_bytes(), ranges=ranges).image).astype(int)
        assert np.abs(picture - colours).max() <= off
        assert len(sentences) == (1 if factor == 257 else 2)
    assert "64 levels remain" in sentences[1]


def test_the_models_input_carries_the_range(tmp_path):
    content = encoded(Image.fromarray(LEVELS.astype(np.uint16) * 4 // 3), "PNG")
    plain = Preprocessing(32, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3, 3)
    ranged = Preprocessing(32, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3, 3, ValueRanges(integer=(0.0, 1023.0)))
    assert Preprocessing.from_json(json.loads(json.dumps(ranged.to_json()))) == ranged
    by_itself, by_the_data_set = (decode_one(content, each).pixels for each in (plain, ranged))
    expected = decode_one(encoded(Image.fromarray((LEVELS / 3).astype(np.uint8))), plain).pixels
    assert np.abs(by_the_data_set.astype(int) - expected).max() <= 2
    assert by_itself.mean() > 1.5 * by_the_data_set.mean()


@pytest.mark.parametrize("values", [[np.nan, np.inf, 4.0], [np.nan, -np.inf, np.nan]])
def test_values_that_are_not_finite_are_black(values):
    content = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert seen(content)[0].tolist() == [0, 0, 255 if 4.0 in values else 0]
