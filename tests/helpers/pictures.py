"""Small pictures of every kind, drawn on the spot, and files and tables made of them."""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from spectacles.data.schemas import SPLIT_ROWS

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Every seed another picture, and far from every other one's perceptual hash."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.NEAREST)


def photo(seed: int, width: int, height: int) -> Image.Image:
    """As smooth as a photo, with values in the middle of the range."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 196, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def blocks() -> Image.Image:
    """48 x 32, six blocks of different colours: no mirroring and no turning maps it to itself."""
    colours = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 0, 0), (160, 160, 160)]])
    return Image.fromarray(colours.astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def frames() -> dict[str, object]:
    """Options that make a red picture the first of three frames: red, green, blue."""
    others = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, BLUE)]
    return {"save_all": True, "append_images": others}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large and holds next to nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ihdr = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(bytes(64))
    idat = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + ihdr + idat


def odd_files() -> dict[str, bytes]:
    """Name -> content: what people's folders hold besides plain photos. The first letters give the expected status."""
    red = Image.new("RGB", (8, 8), RED)
    grey16 = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    grey32 = Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8) * 1000)
    grey_float = Image.fromarray(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8))
    half = noise(1).convert("RGBA")
    half.putalpha(128)
    palette = noise(2).quantize(16)
    photo = encoded(noise(3), "JPEG", quality=90)
    turned = {f"converted_exif_{o}.jpg": encoded(blocks(), "JPEG", exif=exif(o)) for o in range(2, 9)}
    return turned | {
        "used_exif_1.jpg": encoded(blocks(), "JPEG", exif=exif(1)),
        "used_exif_99.jpg": encoded(noise(4), "JPEG", exif=exif(99)),
        "used_exif_broken.jpg": encoded(noise(5), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense"),
        "used_photo.jpg": photo,
        "used_photo_named.txt": encoded(noise(6), "JPEG"),
        "used_progressive.jpg": encoded(noise(7), "JPEG", progressive=True),
        "used_grey.jpg": encoded(noise(8).convert("L"), "JPEG"),
        "used_grey.png": encoded(noise(9).convert("L")),
        "used_one_bit.png": encoded(noise(10).convert("1")),
        "used_palette.png": encoded(palette),
        "used_one_pixel.png": encoded(Image.new("RGB", (1, 1), BLUE)),
        "used_thin.png": encoded(noise(11, 300, 1)),
        "used_bitmap.bmp": encoded(noise(12), "BMP"),
        "used_lossless.webp": encoded(noise(13), "WEBP", lossless=True),
        "used_still.gif": encoded(noise(14), "GIF"),
        "used_plain.tiff": encoded(noise(15), "TIFF"),
        "used_opaque_alpha.png": encoded(noise(16).convert("RGBA")),
        "used_two_pictures.mpo": encoded(red, "MPO", **frames()),
        "converted_cmyk.jpg": encoded(noise(17).convert("CMYK"), "JPEG"),
        "converted_16_bit.png": encoded(grey16),
        "converted_16_bit.tiff": encoded(grey16, "TIFF"),
        "converted_32_bit.tiff": encoded(grey32, "TIFF"),
        "converted_float.tiff": encoded(grey_float, "TIFF"),
        "converted_alpha.png": encoded(half),
        "converted_grey_alpha.png": encoded(half.convert("LA")),
        "converted_palette_alpha.png": encoded(palette, transparency=0),
        "converted_colour_key.png": encoded(red, transparency=RED),
        "converted_animated.gif": encoded(red, "GIF", **frames()),
        "converted_animated.webp": encoded(red, "WEBP", **frames()),
        "converted_animated.png": encoded(red, "PNG", **frames()),
        "converted_pages.tiff": encoded(red, "TIFF", **frames()),
        "rejected_empty.jpg": b"",
        "rejected_text.jpg": b"this is not a picture\n",
        "rejected_truncated.jpg": photo[: len(photo) // 2],
        "rejected_truncated.png": encoded(noise(18))[:90],
        "rejected_only_a_start.jpg": photo[:20],
        "rejected_zeros.png": bytes(1000),
        "rejected_huge.png": png_header(30000, 30000),
        "rejected_bomb.png": png_header(60000, 60000),
        "rejected_other.ppm": encoded(red, "PPM"),
        "rejected_icon.ico": encoded(red, "ICO"),
        "rejected_vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
        "rejected_page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "rejected_document.pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    }


def write_noise(folder: Path, names: Sequence[str], first_seed: int = 0) -> list[str]:
    """Different pictures under these names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(first_seed + number).save(path)
    return list(names)


def write_rows(folder: Path, count: int, first_seed: int = 0) -> pd.DataFrame:
    """Different pictures as rows of splits.csv: path, file, sha256, bytes and modified are right, the rest is empty."""
    names = write_noise(folder, [f"{number}.png" for number in range(count)], first_seed)
    facts = [(folder / name).stat() for name in names]
    table = pd.DataFrame(
        {
            "path": [str(folder / name) for name in names],
            "file": names,
            "sha256": [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names],
            "bytes": [fact.st_size for fact in facts],
            "modified": [fact.st_mtime_ns for fact in facts],
        }
    )
    empty = {name: dtype() for name, dtype in SPLIT_ROWS.columns.items() if name not in table}
    return table.assign(**empty)[SPLIT_ROWS.names]


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path
