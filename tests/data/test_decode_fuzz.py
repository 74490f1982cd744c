"""Files damaged in every way that a file can be: the decoder's process gives pixels or a reason, and lives on."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, exif, frames, noise
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spectacles.data.preprocessing import Decoded, Preprocessing, decode_one
from spectacles.server.decoders import Decoders

Draw = st.DrawFn
SQUARE = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)
MAX_PIXELS = 25_000_000


def comment() -> PngInfo:
    info = PngInfo()
    info.add_text("Comment", "words " * 20, zip=True)
    info.add_itxt("Title", "wörds", zip=True)
    return info


METADATA = {"exif": exif(6), "icc_profile": bytes(range(256))}
FILES = [
    encoded(noise(1), "JPEG", **METADATA, comment=b"words"),
    encoded(noise(2), "JPEG", progressive=True, subsampling=0, restart_marker_blocks=2),
    encoded(noise(3).convert("L"), "JPEG"),
    encoded(noise(4).convert("CMYK"), "JPEG"),
    encoded(noise(5), "MPO", save_all=True, append_images=[noise(6)]),
    encoded(noise(7), "PNG", **METADATA, pnginfo=comment()),
    encoded(noise(8).quantize(16), "PNG", transparency=3),
    encoded(noise(9).convert("RGBA"), "PNG"),
    encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257), "PNG"),
    encoded(noise(10, 8, 8), "PNG", **frames()),
    encoded(noise(11), "WEBP", **METADATA, xmp=b"<x/>"),
    encoded(noise(12).convert("RGBA"), "WEBP", lossless=True),
    encoded(noise(13, 8, 8), "WEBP", **frames()),
    encoded(noise(14), "GIF", comment=b"words"),
    encoded(noise(15, 8, 8), "GIF", **frames()),
    *(encoded(noise(16), "TIFF", compression=each, **METADATA)
      for each in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    encoded(noise(17).convert("1"), "TIFF", compression="group4"),
    encoded(noise(18, 8, 8), "TIFF", **frames()),
    encoded(noise(19), "BMP"),
    encoded(noise(20).quantize(16), "BMP"),
]  # fmt: skip


def pieces(content: bytes, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def parts(content: bytes) -> list[bytes]:
    """As the format takes it apart: chunks of a PNG or a WebP, segments of a JPEG, else pieces of 16 bytes."""
    layouts = {
        b"\x89PNG": (8, 12, 0, 4, "big"),
        b"RIFF": (12, 8, 4, 4, "little"),
        b"\xff\xd8\xff\xe0": (2, 2, 2, 2, "big"),
    }
    if content[:4] not in layouts:
        return pieces(content, 16)
    at, beside, offset, width, order = layouts[content[:4]]
    found = [content[:at]]
    while at < len(content):
        length = beside + int.from_bytes(content[at + offset : at + offset + width], order)
        found.append(content[at : at + length])
        at += length
    return found


def metadata(content: bytes, kind: int, data: bytes) -> bytes:
    """A well-formed part for a file like this, of one of six kinds."""
    if content.startswith(b"\x89PNG"):
        kinds = [b"iCCPp\0\0", b"zTXtp\0\0", b"iTXtp\0\1\0\0\0", b"eXIf", b"tEXtp\0", b"sPLTp\0"]
        body = kinds[kind] + (zlib.compress(data) if kind < 3 else data)
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    if content.startswith(b"RIFF"):
        name = [b"ICCP", b"EXIF", b"XMP ", b"ALPH", b"ANIM", b"JUNK"][kind]
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    if content.startswith(b"\xff\xd8"):
        kinds = [b"\xe2ICC_PROFILE\0\1\1", b"\xe1Exif\0\0", b"\xe2MPF\0", b"\xfe", b"\xedPhotoshop 3.0\0", b"\xeeAdobe"]
        body = (kinds[kind][1:] + data)[:65_533]
        return b"\xff" + kinds[kind][:1] + struct.pack(">H", len(body) + 2) + body
    return b"\x21\xfe" + b"".join(bytes([len(piece)]) + piece for piece in pieces(data, 255)) + b"\0"


LENGTHS = [
    struct.pack(order + kind, value)
    for order in "<>"
    for kind, values in (
        ("B", (0, 1, 255)),
        ("H", (0, 1, 0x7FFF, 0xFFFF)),
        ("I", (0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)),
    )
    for value in values
]
LARGE = st.builds(lambda piece, count: piece * count, st.binary(min_size=1, max_size=9), st.integers(1, 30_000))


def overwrite(draw: Draw, content: bytes) -> bytes:
    """Some bytes, or what may be the length of something."""
    new, at = draw(st.sampled_from(LENGTHS) | st.binary(min_size=1, max_size=4)), draw(place(content))
    return content[:at] + new + content[at + len(new) :]


def cut_off(draw: Draw, content: bytes) -> bytes:
    return content[: draw(place(content))]


def cut_out(draw: Draw, content: bytes) -> bytes:
    at = draw(place(content))
    return content[:at] + content[at + draw(st.integers(1, 100)) :]


def insert(draw: Draw, content: bytes) -> bytes:
    at = draw(place(content))
    return content[:at] + draw(st.binary(max_size=64) | LARGE) + content[at:]


def splice(draw: Draw, content: bytes) -> bytes:
    other = draw(st.sampled_from(FILES))
    return content[: draw(place(content))] + other[draw(place(other)) :]


def repeat_part(draw: Draw, content: bytes) -> bytes:
    found = parts(content)
    at = draw(place(found))
    return b"".join(found[:at] + found[at : at + 1] * draw(st.integers(0, 50)) + found[at + 1 :])


def move_part(draw: Draw, content: bytes) -> bytes:
    found = parts(content)
    found.insert(draw(place(found)), found.pop(draw(place(found))) if found else b"")
    return b"".join(found)


def insert_metadata(draw: Draw, content: bytes) -> bytes:
    found = parts(content)
    data = draw(st.binary(max_size=64) | LARGE)
    found.insert(draw(place(found)), metadata(content, draw(st.integers(0, 5)), data))
    return b"".join(found)


def place(content: bytes | list[bytes]) -> st.SearchStrategy[int]:
    """Behind what tells the format, or most files would be rejected for that."""
    last = max(0, len(content) - 1)
    return st.integers(min(4 if isinstance(content, bytes) else 1, last), last)


DAMAGES = [overwrite, cut_off, cut_out, insert, splice, repeat_part, move_part, insert_metadata]


@st.composite
def damaged(draw: Draw) -> bytes:
    content = draw(st.sampled_from(FILES))
    for _ in range(draw(st.integers(1, 4))):
        content = draw(st.sampled_from(DAMAGES))(draw, content)
    return content


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    with Decoders(1, MAX_PIXELS) as started:
        started.warm(SQUARE)
        yield started


def check(pool: Decoders, content: bytes) -> Decoded:
    """In the decoder's process, which nothing here can break, and in this one, as batch prediction does it."""
    [decoder] = pool._all
    before = decoder.process.pid
    there, here = pool(content, SQUARE), decode_one(content, SQUARE, MAX_PIXELS)
    assert decoder.process.pid == before, "its process has died, or was killed, of this file"
    for found in (there, here):
        if found.pixels is None:
            assert found.reason and not found.conversions
        else:
            assert not found.reason
            assert found.pixels.shape == SQUARE.shape and found.pixels.dtype == np.uint8
    return there


def test_all_files_are_valid_before_they_are_damaged(pool: Decoders) -> None:
    assert not [index for index, content in enumerate(FILES) if check(pool, content).reason]


@settings(max_examples=300)
@given(damaged())
def test_a_damaged_file_gives_pixels_or_a_reason(pool: Decoders, content: bytes) -> None:
    check(pool, content)


@settings(max_examples=50)
@given(st.binary(max_size=500))
def test_random_bytes_give_a_reason(pool: Decoders, content: bytes) -> None:
    assert check(pool, content).reason
