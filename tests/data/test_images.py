"""Every kind of file becomes upright 8-bit RGB, or is rejected with its reason; nothing else ever happens."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import BLUE, GREEN, RED, blocks, encoded, exif, frames, noise, odd_files, photo, png_header
from PIL import Image

from spectacles.data import images
from spectacles.data.images import DecodedImage, ImageRejected, decode
from spectacles.data.preprocessing import Preprocessing

LOSSLESS = [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]

# TIFF 6.0, tag 274: which side of the picture the first stored row and the first stored column are.
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content).image)


def rejection(source: bytes | Path, **options: int | None) -> str:
    with pytest.raises(ImageRejected) as rejected:
        decode(source, **options)
    return str(rejected.value)


def grey(values: list[list[float]], dtype: str) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=dtype))


def test_every_exif_orientation_of_a_jpeg_comes_out_upright():
    for orientation, stored in stored_pictures():
        decoded = decode(encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif(orientation)))
        assert decoded.image.size == blocks().size
        np.testing.assert_allclose(np.asarray(decoded.image, int), np.asarray(blocks(), int), atol=6)
        assert decoded.conversions == (() if orientation == 1 else ("EXIF orientation applied",)), orientation


def stored_pictures() -> Iterator[tuple[int, Image.Image]]:
    """Every orientation, and `blocks` as a camera held that way stores it."""
    upright = np.asarray(blocks())
    for orientation, turn in STORED.items():
        yield orientation, Image.fromarray(np.ascontiguousarray(turn(upright)))


@pytest.mark.parametrize(("format", "options"), LOSSLESS)
def test_every_exif_orientation_of_other_formats_comes_out_upright(format, options):
    """Also of a TIFF, which Pillow turns itself while it loads it."""
    for orientation, stored in stored_pictures():
        decoded = decode(encoded(stored, format, exif=exif(orientation), **options))
        np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(blocks()))
        assert decoded.conversions == (() if orientation == 1 else ("EXIF orientation applied",)), orientation


@pytest.mark.parametrize("block", [exif(0), exif(9), exif(65535), b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xffjunk"])
def test_an_invalid_orientation_is_ignored(block):
    content = encoded(blocks(), "JPEG", quality=100, subsampling=0, exif=block)
    np.testing.assert_allclose(pixels(content).astype(int), np.asarray(blocks(), int), atol=6)


@pytest.mark.parametrize(("format", "options"), [*LOSSLESS, ("BMP", {})])
def test_rgb_is_unchanged_and_needs_no_conversion(format, options):
    decoded = decode(encoded(noise(0), format, **options))
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(noise(0)))
    assert (decoded.format, decoded.mode, decoded.conversions) == (format, "RGB", ())


def test_a_path_and_its_content_decode_to_the_same_pixels(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(noise(0), "JPEG"))
    np.testing.assert_array_equal(np.asarray(decode(path).image), pixels(path.read_bytes()))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg_becomes_its_colour(ink, colour):
    decoded = decode(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100))
    np.testing.assert_allclose(decoded.image.getpixel((8, 8)), colour, atol=3)
    assert decoded.conversions == ("CMYK converted to RGB",)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_are_scaled_to_8(format, dtype):
    levels = np.arange(256).reshape(16, 16)
    decoded = decode(encoded(Image.fromarray((257 * levels).astype(dtype)), format))
    for channel in range(3):
        np.testing.assert_array_equal(np.asarray(decoded.image)[..., channel], levels)
    assert decoded.conversions == ("16 bits reduced to 8",)


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_becomes_its_colours(format):
    flat = blocks().quantize(8)
    decoded = decode(encoded(flat, format))
    assert decoded.mode == "P"
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(flat.convert("RGB")))
    assert decoded.conversions == ()


def test_transparent_palette_entries_become_white():
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, 100, 0, 255])
    for x in range(3):
        picture.putpixel((x, 0), x)
    decoded = decode(encoded(picture, transparency=bytes([0, 255, 51])))
    assert pixels_of(decoded.image) == [(255, 255, 255), GREEN, (224, 204, 255)]
    assert decoded.conversions == ("transparency put on white",)


def pixels_of(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def test_rgba_is_put_on_white():
    picture = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(*RED, 0), (*GREEN, 255), (100, 0, 255, 51)]):  # 51 is a fifth
        picture.putpixel((x, 0), pixel)
    decoded = decode(encoded(picture))
    assert pixels_of(decoded.image) == [(255, 255, 255), GREEN, (224, 204, 255)]
    assert decoded.conversions == ("transparency put on white",)


def test_grey_with_alpha_is_put_on_white():
    picture = Image.new("LA", (3, 1))
    for x, pixel in enumerate([(9, 0), (9, 255), (100, 51)]):
        picture.putpixel((x, 0), pixel)
    assert pixels_of(decode(encoded(picture)).image) == [(255,) * 3, (9,) * 3, (224,) * 3]


@pytest.mark.parametrize(("mode", "key", "other"), [("RGB", RED, GREEN), ("L", 7, 200)])
def test_a_transparent_colour_becomes_white(mode, key, other):
    picture = Image.new(mode, (2, 1), key)
    picture.putpixel((1, 0), other)
    white, kept = pixels_of(decode(encoded(picture, transparency=key)).image)
    assert (white, kept) == ((255,) * 3, other if mode == "RGB" else (other,) * 3)


def test_opaque_alpha_needs_no_conversion():
    decoded = decode(encoded(noise(0).convert("RGBA")))
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(noise(0)))
    assert decoded.conversions == ()


@pytest.mark.parametrize(("mode", "values"), [("1", [0, 255]), ("L", [3, 250])])
def test_grey_and_two_level_pictures_keep_their_values(mode, values):
    picture = Image.new(mode, (2, 1), values[0])
    picture.putpixel((1, 0), values[1])
    decoded = decode(encoded(picture))
    assert pixels_of(decoded.image) == [(value,) * 3 for value in values]
    assert decoded.conversions == ()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_counts(format):
    options = frames() | ({"lossless": True} if format == "WEBP" else {})
    decoded = decode(encoded(Image.new("RGB", (8, 8), RED), format, **options))
    assert set(pixels_of(decoded.image)) == {RED}
    assert decoded.conversions == ("first of 3 frames",)


def test_a_second_image_in_a_phone_photo_needs_no_conversion():
    decoded = decode(encoded(noise(0), "MPO", save_all=True, append_images=[noise(1)]))
    assert (decoded.format, decoded.conversions) == ("MPO", ())


def facts(decoded: DecodedImage) -> tuple[object, ...]:
    return decoded.width, decoded.height, decoded.format, decoded.mode, decoded.conversions


JPEGS = {
    "plain": {},
    "progressive": {"progressive": True},
    "not_subsampled": {"subsampling": 0},
    "upside_down": {"exif": exif(3)},
    "on_its_side": {"exif": exif(6)},
    "mirrored_on_its_side": {"exif": exif(7)},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller_and_keeps_its_stated_size(mode):
    for options in JPEGS.values():
        content = encoded(photo(0, 1200, 900).convert(mode), "JPEG", **options)
        whole, reduced = decode(content), decode(content, least_side=100)
        assert (whole.width, whole.height) == whole.image.size
        assert facts(reduced) == facts(whole)
        assert (whole.width > whole.height) == (reduced.image.width > reduced.image.height)
        assert sorted(reduced.image.size) == [113, 150]


@settings(max_examples=60)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300), st.sampled_from(["plain", "on_its_side"]))
def test_a_jpeg_is_reduced_as_far_as_the_least_side_allows(width, height, least_side, name):
    reduced = decode(encoded(Image.new("RGB", (width, height)), "JPEG", **JPEGS[name]), least_side=least_side)
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(width, height) // s >= least_side)
    expected = [-(-width // scale), -(-height // scale)]
    assert list(reduced.image.size) == (expected if name == "plain" else expected[::-1])
    assert min(reduced.image.size) >= min(least_side, width, height)
    assert {reduced.width, reduced.height} == {width, height}


@settings(max_examples=40)
@given(
    st.sampled_from(["squash", "crop", "pad"]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.integers(16, 64),
    st.integers(13, 80),
    st.integers(13, 80),
    st.sampled_from(list(JPEGS)),
)
def test_the_models_input_hardly_shows_that_a_jpeg_was_decoded_smaller(resize, kind, size, across, down, name):
    """Sides that 8 divides: others become up to a pixel longer, which may move the border of a padded picture."""
    preprocessing = Preprocessing(size, resize, kind, (0.5,) * 3, (0.5,) * 3, 3)
    content = encoded(photo(size, 8 * across, 8 * down), "JPEG", quality=90, **JPEGS[name])
    expected, seen = (
        preprocessing.pixels(decode(content, least_side=least).image).astype(int)
        for least in (None, preprocessing.least_side)
    )
    assert np.abs(seen - expected).mean() < 1.5
    assert np.abs(seen - expected).max() < 20


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_never_decoded_smaller(format):
    content = encoded(photo(0, 400, 300), format)
    whole, asked = decode(content), decode(content, least_side=20)
    np.testing.assert_array_equal(np.asarray(asked.image), np.asarray(whole.image))
    assert facts(asked) == facts(whole)


def test_a_phone_photo_with_a_second_picture_in_it_is_decoded_smaller_too():
    content = encoded(photo(0, 400, 300), "MPO", save_all=True, append_images=[noise(1)], exif=exif(6))
    decoded = decode(content, least_side=100)
    assert (decoded.width, decoded.height, decoded.image.size) == (300, 400, (150, 200))


@pytest.mark.parametrize("least_side", [None, 1, 1000])
def test_odd_files_get_their_expected_status(least_side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        statuses = {name: status_of(content, least_side) for name, content in odd_files().items()}
    assert statuses == {name: name.partition("_")[0] for name in odd_files()}


def status_of(content: bytes, least_side: int | None) -> str:
    try:
        return "converted" if decode(content, least_side=least_side).conversions else "used"
    except ImageRejected as rejected:
        return "rejected" if str(rejected) else "rejected without a reason"


JPEG, PNG = encoded(noise(0), "JPEG"), encoded(noise(0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (b"", "empty file"),
        (b"no picture at all", images.UNKNOWN_FORMAT),
        (encoded(noise(0), "PPM"), images.UNKNOWN_FORMAT),
        (encoded(noise(0), "ICO"), images.UNKNOWN_FORMAT),
        (encoded(noise(0), "PDF"), images.UNKNOWN_FORMAT),
        (png_header(60000, 60000), "too many pixels"),
        (png_header(9000, 9000), "9000 x 9000 pixels is more than 80 million"),
    ],
)
def test_a_rejection_gives_its_reason(content, reason):
    assert rejection(content) == reason


def test_the_caller_sets_the_pixel_limit():
    assert "32 x 32 pixels" in rejection(PNG, max_pixels=32 * 32 - 1)
    assert decode(PNG, max_pixels=32 * 32).image.size == (32, 32)


def test_a_file_over_the_byte_limit_is_rejected_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    path = tmp_path / "large.png"
    path.write_bytes(bytes((1 << 20) + 5))
    assert rejection(path) == rejection(path.read_bytes()) == "larger than 1 MiB"
    assert len(images.read_file(path)) == (1 << 20) + 1


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.png", "file not found"), ("", "cannot be read"), ("nul\0.png", "cannot be read")]
)
def test_a_path_that_cannot_be_read_is_rejected(tmp_path, name, reason):
    assert rejection(tmp_path / name).startswith(reason)


def assert_picture_or_rejection(content: bytes) -> None:
    outcome = outcome_of(content)
    if isinstance(outcome, str):
        assert outcome
    else:
        assert outcome.mode == "RGB" and min(outcome.size) > 0
        assert np.asarray(outcome).shape == (outcome.height, outcome.width, 3)
    smaller = outcome_of(content, least_side=8)
    assert isinstance(smaller, str) == isinstance(outcome, str)


def outcome_of(content: bytes, least_side: int | None = None) -> Image.Image | str:
    try:
        return decode(content, 1_000_000, least_side).image
    except ImageRejected as rejected:
        return str(rejected)


MAGIC = [
    b"",
    JPEG[:20],
    PNG[:33],
    b"GIF89a\x08\0\x08\0",
    b"BM",
    b"II*\0\x08\0\0\0",
    b"MM\0*",
    b"RIFF\x40\0\0\0WEBPVP8 ",
]


@settings(max_examples=150)
@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_random_bytes_are_rejected_or_decoded(magic, content):
    assert_picture_or_rejection(magic + content)


VALID = [content for name, content in sorted(odd_files().items()) if not name.startswith("rejected")]


@settings(max_examples=300)
@given(
    st.sampled_from([JPEG, PNG, *VALID]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_damaged_files_are_rejected_or_decoded(content, changes, kept):
    damaged = bytearray(content)
    for position, value in changes:
        damaged[int(position * len(damaged))] = value
    assert_picture_or_rejection(bytes(damaged[: max(1, round(kept * len(damaged)))]))
