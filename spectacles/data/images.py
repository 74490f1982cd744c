"""The only place where a file becomes pixels. Files are untrusted: capped, allow-listed, rejected with a reason."""

import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from spectacles.core.value_ranges import PER_FILE, Range, ValueRanges
from spectacles.data.addresses import RemoteFile
from spectacles.data.value_ranges import FULL, OVERSHOOT, Extremes, extremes_of, range_of, to_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""By content; MPO, which many phones write, opens as JPEG. Pillow's other formats are rejected: less attack surface."""

UNKNOWN_FORMAT = "not an image of a known format (JPEG, PNG, WebP, BMP, GIF, TIFF)"

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 80_000_000
"""Below Pillow's own decompression-bomb warning (89 million)."""

MOST_READS = 250_000
"""Read calls that a file may take: 64 MiB of PNG in chunks of 1 KiB, or about 5,000 pages of a TIFF."""
MOST_READS_OF = {b"\xff\xd8": 6_000, b"GI": 600_000}
"""By the first two bytes. JPEG: Pillow copies all EXIF data so far for each further segment; 64 MiB are 1,000 full
segments of five reads. GIF: blocks have at most 255 bytes."""
MOST_PROFILES = 10
"""Colour profiles of a PNG: a valid one has one, which may be compressed a thousandfold."""
TOO_MANY_PARTS = "made of more parts (metadata or frames) than an image may have"

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (TIFF 6.0, tag 274)."""
BITS_PER_SAMPLE = 258
"""TIFF's tag."""

Source = Path | RemoteFile | bytes


class ImageRejected(Exception):
    """The file cannot be used as an image; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class DecodedImage:
    image: Image.Image
    """RGB, 8 bit, upright; smaller than the file's where `least_side` allowed it."""
    width: int
    height: int
    """Of the file's picture, upright, in pixels."""
    format: str
    mode: str
    """Pillow's mode as stored, before any conversion."""
    conversions: tuple[str, ...]
    """Conversions that lost or changed something, in words; empty for an ordinary image."""
    extremes: Extremes | None = None
    """Of the stored values, where they may be other ones than 0..255."""


class _LimitedReads(BytesIO):
    """Raises ImageRejected when the content is read in too many small pieces, which would take minutes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads_left = MOST_READS_OF.get(content[:2], MOST_READS)

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.reads_left:
            raise ImageRejected(TOO_MANY_PARTS)
        self.reads_left -= 1
        return super().read(size)


def decode(
    source: Source, max_pixels: int = MAX_PIXELS, least_side: int | None = None, ranges: ValueRanges = PER_FILE
) -> DecodedImage:
    """The first frame as upright 8-bit RGB. Raises ImageRejected, and nothing else, whatever the file contains.

    `ranges`: what becomes black and white in files with other values than 0..255; see `value_ranges`.

    With `least_side`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as both sides stay at least that long: a
    photo of 12 megapixels takes a fifth of the time.
    """
    content = source if isinstance(source, bytes) else read_file(source)
    if not content:
        raise ImageRejected("empty file")
    if len(content) > MAX_BYTES:
        raise ImageRejected(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        return _decode(content, max_pixels, least_side, ranges)
    except ImageRejected:
        raise
    except Exception as error:  # hostile bytes make Pillow's decoders raise almost anything, down to ZeroDivisionError
        raise ImageRejected(_reason(error)) from error


def read_file(path: Path | RemoteFile) -> bytes:
    """At most MAX_BYTES + 1 bytes, so that a huge file does not fill the memory. Raises ImageRejected, or UserError
    where a store does not answer."""
    try:
        if isinstance(path, RemoteFile):
            from spectacles.data import remote_files  # imports fsspec, which decoders of the server do without

            return remote_files.read(path.address, MAX_BYTES + 1)
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise ImageRejected("not a regular file but a device, a pipe or a socket")  # opening one may block
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageRejected("file not found") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageRejected(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _decode(content: bytes, max_pixels: int, least_side: int | None, ranges: ValueRanges) -> DecodedImage:
    if content.startswith(b"\x89PNG") and content.count(b"iCCP") > MOST_PROFILES:
        raise ImageRejected(TOO_MANY_PARTS)
    with Image.open(_LimitedReads(content), formats=FORMATS) as opened:
        if opened.width * opened.height > max_pixels:
            raise ImageRejected(f"{opened.width} x {opened.height} pixels is more than {max_pixels / 1e6:g} million")
        frames = getattr(opened, "n_frames", 1)
        conversions = [f"first of {frames} frames"] if frames > 1 and opened.format != "MPO" else []
        opened.seek(0)
        turned = _orientation(opened)  # before load(): Pillow turns a TIFF itself and forgets the tag
        stored = opened.size
        drafted = least_side is not None and opened.draft(None, (least_side, least_side)) is not None
        opened.load()
        image_format, mode = opened.format or "", opened.mode
        picture, extremes, conversion = _in_8_bits(opened, _stored_bits(opened, content), ranges)
        conversions += [conversion] if conversion else []
        rgb, conversion = to_rgb(picture)
        conversions += [conversion] if conversion else []
        orientation = _orientation(opened)
        if orientation in UPRIGHT:
            rgb = rgb.transpose(UPRIGHT[orientation])
        if orientation in UPRIGHT or turned in UPRIGHT:
            conversions.append("EXIF orientation applied")
        sideways = orientation in UPRIGHT and orientation >= 5
        width, height = (stored[::-1] if sideways else stored) if drafted else rgb.size
    return DecodedImage(rgb, width, height, image_format, mode, tuple(conversions), extremes)


def jpeg_round_trip(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 (H, W, C), C 1 or 3, compressed at `quality` (1 to 95) and decoded again: the same shape."""
    buffer = BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(pixels.shape)


def _stored_bits(image: Image.Image, content: bytes) -> int:
    """Of each value in the file, which Pillow does not keep for colours of 16 bits."""
    if image.format == "PNG":
        return content[24]  # in the header chunk, which comes first
    bits = image.tag_v2.get(BITS_PER_SAMPLE, 8) if isinstance(image, TiffImageFile) else 8
    return int(max(bits) if isinstance(bits, tuple) else bits)


def _in_8_bits(image: Image.Image, bits: int, ranges: ValueRanges) -> tuple[Image.Image, Extremes | None, str]:
    """(a picture with values 0..255, the extremes of the stored ones, the conversion in words or '')."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        extremes = extremes_of("real" if image.mode == "F" else "integer", values)
        black_white, cut = _black_white(extremes, ranges)
        conversion = "floating point reduced to 8 bits" if image.mode == "F" else f"{bits} bits reduced to 8"
        return Image.fromarray(to_bytes(values, black_white)), extremes, conversion + cut
    if bits > 8 and image.mode in ("RGB", "RGBA"):  # Pillow has kept the upper half of each value
        return _upper_bytes(image, ranges)
    if image.mode != "L" or "transparency" in image.info:
        return image, None, ""
    values = np.asarray(image)
    extremes = extremes_of("byte", values)
    if ranges.byte in (None, FULL):
        return image, extremes, ""
    black_white, cut = _black_white(extremes, ranges)
    return Image.fromarray(to_bytes(values, black_white)), extremes, cut.removeprefix(", ")


def _upper_bytes(image: Image.Image, ranges: ValueRanges) -> tuple[Image.Image, Extremes, str]:
    values = np.array(image)
    colours = values[..., :3].astype(np.uint16) * 257
    measured = extremes_of("integer", colours)
    extremes = Extremes("integer", measured.low, measured.high, colour=True)
    black_white, cut = _black_white(extremes, ranges)
    values[..., :3] = to_bytes(colours, black_white)
    return Image.fromarray(values), extremes, f"16 bits reduced to 8{cut}"


def _black_white(extremes: Extremes, ranges: ValueRanges) -> tuple[Range, str]:
    """The data set's range, or the file's, and '' or what happens to values outside."""
    found: Range | None = getattr(ranges, extremes.kind)
    if found is None:
        return range_of(extremes), ""
    tolerated = (found[1] - found[0]) * OVERSHOOT if extremes.kind == "real" else 0
    if extremes.low >= found[0] - tolerated and extremes.high <= found[1] + tolerated:
        return found, ""
    return found, f", values outside {found[0]:g} to {found[1]:g} cut off"


def to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """(RGB, the conversion in words; '' for RGB, grey, two-level and palette images, which lose nothing)."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB"), "transparency put on white"
        return rgba.convert("RGB"), ""
    lossless = image.mode in ("RGB", "L", "1", "P")
    return image.convert("RGB"), "" if lossless else f"{image.mode} converted to RGB"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - broken EXIF blocks raise anything; a picture without orientation is upright
        return 1


def _reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text or "Truncated" in text:
        return "truncated"
    if "cannot identify image file" in text:
        return UNKNOWN_FORMAT
    if "MAX_TEXT_" in text:
        return "too much text, or too large a colour profile, in its metadata"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too many pixels"
    return f"cannot be decoded ({type(error).__name__}: {text.splitlines()[0][:80] if text else 'no reason given'})"
