"""What stands beside the pixels of a file is left alone or a reason to reject it, in little memory, however large."""

import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from pictures import encoded, exif, frames, noise
from PIL import Image

from spectacles.data import images
from spectacles.data.images import TOO_MANY_PARTS
from spectacles.data.preprocessing import Preprocessing, decode_one
from spectacles.server.decoders import Decoders

SQUARE = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)
MEMORY = 256 << 20
"""A quarter of what a decoder of the server may take."""
LARGE = 30_000_000
TOO_MUCH_TEXT = "too much text, or too large a colour profile, in its metadata"
JPEG, PNG = encoded(noise(1), "JPEG"), encoded(noise(1))


def segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def icc_segments(size: int) -> bytes:
    numbers = (bytes([number % 255 + 1, 255]) for number in range(size // 65_000))
    return b"".join(segment(0xE2, b"ICC_PROFILE\0" + number + bytes(65_000)) for number in numbers)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    """Between the header and the pixels."""
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def png_end(*chunks: bytes) -> bytes:
    return PNG[:-12] + b"".join(chunks) + PNG[-12:]


@cache
def unfolding(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes << 20), 9)


def tags(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF with one directory of (tag, type, count, value or offset)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)


def exif_segment(block: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + block)


def deep_directories() -> bytes:
    """Each leads to the next one, twice, for 64 KB."""
    size, start = 2 + 2 * 12 + 4, b"II*\0" + struct.pack("<I", 8)
    nested = (struct.pack("<H", 2) + b"".join(struct.pack("<HHII", tag, 4, 1, 8 + (number + 1) * size)
              for tag in (0x8769, 0x8825)) + bytes(4) for number in range(64_000 // size))  # fmt: skip
    return start + b"".join(nested)


LOOP = tags((0x0112, 3, 1, 6), *((tag, 4, 1, 8) for tag in (0x8769, 0x8825, 0xA005, 0x014A)), following=8)
OVERLAPPING = tags(*((tag + 1, 5, 7_000, 8) for tag in range(5_000)))
"""5,000 tags of 56 KB each, in a block of 60 KB."""

LEFT_ALONE = {
    "jpeg-profile": lambda: jpeg(icc_segments(LARGE)),
    "jpeg-comments": lambda: jpeg(segment(0xFE, bytes(65_000)) * (LARGE // 65_000)),
    "jpeg-exif-large": lambda: jpeg(exif_segment(bytes(65_000)) * 100),
    "jpeg-exif-deep": lambda: jpeg(exif_segment(deep_directories())),
    "jpeg-exif-overlapping": lambda: jpeg(exif_segment(OVERLAPPING)),
    "jpeg-exif-endless-tag": lambda: jpeg(exif_segment(tags((0x0112, 3, 0xFFFFFFFF, 8)))),
    "png-profile": lambda: png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(900_000)))),
    "png-profile-behind": lambda: png_end(chunk(b"iCCP", b"p\0\0" + unfolding(100))),
    "png-text-behind": lambda: png_end(chunk(b"zTXt", b"p\0\0" + unfolding(100))),
    "png-exif": lambda: png(chunk(b"eXIf", bytes(LARGE))),
    "png-exif-overlapping": lambda: png(chunk(b"eXIf", OVERLAPPING)),
    "png-palettes": lambda: png(chunk(b"sPLT", bytes(LARGE))),
    "webp-profile": lambda: encoded(noise(1), "WEBP", lossless=True, icc_profile=bytes(LARGE)),
    "webp-exif": lambda: encoded(noise(1), "WEBP", lossless=True, exif=bytes(LARGE)),
    "webp-xmp": lambda: encoded(noise(1), "WEBP", lossless=True, xmp=bytes(LARGE)),
    "tiff-profile": lambda: encoded(noise(1), "TIFF", icc_profile=bytes(LARGE)),
    "gif-comment": lambda: encoded(noise(1), "GIF", comment=bytes(5_000_000)),
}
REJECTED = {
    "jpeg-exif-pieces": (lambda: jpeg(exif_segment(b"a") * 2_000), TOO_MANY_PARTS),
    "jpeg-profile-pieces": (lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1") * 2_000), TOO_MANY_PARTS),
    "jpeg-padding": (lambda: JPEG[:2] + b"\xff" * 10_000 + JPEG[2:], TOO_MANY_PARTS),
    "png-profile": (lambda: png(chunk(b"iCCP", b"p\0\0" + unfolding(100))), TOO_MUCH_TEXT),
    "png-profiles": (lambda: png_end(chunk(b"iCCP", b"p\0\0" + unfolding(1)) * 1_000), TOO_MANY_PARTS),
    "png-text": (lambda: png(chunk(b"zTXt", b"p\0\0" + unfolding(100))), TOO_MUCH_TEXT),
    "png-xmp": (lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + unfolding(100))), TOO_MUCH_TEXT),
    "png-texts": (lambda: png(*[chunk(b"tEXt", b"p\0" + bytes(100_000))] * 100), TOO_MUCH_TEXT),
    "png-private-chunks": (lambda: png(chunk(b"prVt", b"") * 130_000), TOO_MANY_PARTS),
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    with Decoders(1, 25_000_000, MEMORY) as started:
        started.warm(SQUARE)
        yield started


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_metadata_is_left_alone(pool: Decoders, name: str) -> None:
    found = pool(LEFT_ALONE[name](), SQUARE)
    assert (found.reason, found.conversions) == ("", ())
    of_format = {"jpeg": JPEG, "png": PNG, "webp": PNG, "tiff": PNG, "gif": encoded(noise(1), "GIF")}
    np.testing.assert_array_equal(found.pixels, decode_one(of_format[name.partition("-")[0]], SQUARE).pixels)


@pytest.mark.parametrize("name", REJECTED)
def test_metadata_that_would_cost_too_much_is_a_reason(pool: Decoders, name: str) -> None:
    content, reason = REJECTED[name]
    assert pool(content(), SQUARE).reason == reason


def test_directories_that_lead_to_themselves_still_tell_how_a_photo_is_held(pool: Decoders) -> None:
    found = pool(jpeg(exif_segment(LOOP)), SQUARE)
    assert (found.reason, found.conversions) == ("", ("EXIF orientation applied",))


@pytest.mark.parametrize(("format", "start"), [("GIF", b"GI"), ("TIFF", b"II")])
def test_frames_without_end_are_a_reason(monkeypatch: pytest.MonkeyPatch, format: str, start: bytes) -> None:
    many = [Image.new("L", (8, 8), number) for number in range(100)]
    content = encoded(noise(1, 8, 8).convert("L"), format, save_all=True, append_images=many)
    assert decode_one(content, SQUARE).conversions == ("first of 101 frames",)
    monkeypatch.setitem(images.MOST_READS_OF, start, 500)
    assert decode_one(content, SQUARE).reason == TOO_MANY_PARTS
    few = encoded(Image.new("RGB", (8, 8)), format, **frames())
    assert decode_one(few, SQUARE).conversions == ("first of 3 frames",)


def test_the_fullest_honest_jpeg_is_read() -> None:
    full = segment(0xE2, bytes(65_533))
    content = jpeg(*[full] * ((images.MAX_BYTES - len(JPEG)) // len(full)), exif_segment(exif(3).tobytes()[6:]))
    assert decode_one(content, SQUARE).conversions == ("EXIF orientation applied",)
