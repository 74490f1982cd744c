"""What an attacker sends: damaged files, decompression bombs, malformed requests."""

import random
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.http_client import BOUNDARY, head, photo_request

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def files(photo: bytes, odd: list[bytes], count: int) -> Iterator[bytes]:
    """`odd` files as they are, and pictures of every format cut short, with bytes changed, doubled or swapped."""
    with Image.open(BytesIO(photo)) as image:
        small = image.convert("RGB").resize((120, 160))
    whole = [photo, *(_encoded(small, name) for name in FORMATS), *odd]
    for number in range(count):
        content = whole[number % len(whole)]
        yield content if number < len(whole) else _damaged(content)


def _encoded(image: Image.Image, name: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, name)
    return buffer.getvalue()


def _damaged(content: bytes) -> bytes:
    data = bytearray(content)
    way = random.randrange(5)
    if way == 0:
        return bytes(data[: random.randrange(len(data) + 1)])
    if way == 1 and data:
        for _ in range(random.randrange(1, 20)):
            data[random.randrange(len(data))] = random.randrange(256)
    elif way == 2 and data:  # what stands in front says what the rest means
        data[random.randrange(min(64, len(data)))] = random.choice((0, 0xFF, random.randrange(256)))
    elif way == 3:
        at = random.randrange(len(data) + 1)
        data[at:at] = random.randbytes(random.randrange(1, 200))
    else:
        data += data[random.randrange(len(data) + 1) :]
    return bytes(data)


def bombs() -> Iterator[bytes]:
    """Small files that unfold."""
    for width, height in ((30_000, 30_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (5000, 5001)):
        yield _png(width, height, zlib.compress(bytes(1 << 20), 9))
    yield _png(4900, 5000, zlib.compress(bytes(4900 * 3 * 5000 + 5000), 9))  # within the limit, and all of it there
    yield _png(16, 16, zlib.compress(bytes(16 * 49), 9), _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9)))
    yield _png(16, 16, zlib.compress(bytes(16 * 49), 9), _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26), 9)))
    for name in ("GIF", "TIFF", "WEBP", "BMP"):
        buffer = BytesIO()
        Image.new("1" if name in ("TIFF", "BMP") else "L", (5200, 5200)).save(buffer, name)
        yield buffer.getvalue()
    buffer = BytesIO()
    frames = [Image.new("L", (2000, 2000), shade) for shade in range(60)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    yield buffer.getvalue()
    grey = Image.fromarray(np.zeros((4000, 4000), dtype=np.float32))
    buffer = BytesIO()
    grey.save(buffer, "TIFF", compression="tiff_adobe_deflate")
    yield buffer.getvalue()


def _png(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width % 2**32, height % 2**32, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def requests(photo: bytes) -> Iterator[bytes]:
    """Bytes on a connection; most are no whole HTTP request."""
    yield b"\0" * 1000
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n"
    yield b"GET / HTTP/1.1\r\nX-Large: " + b"a" * 1_000_000 + b"\r\n\r\n"
    yield b"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield b"GET /%00%ff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
    yield head("/predict", "Content-Length: 1000000000000")
    yield head("/predict", "Content-Length: -1")
    yield head("/predict", "Content-Length: 1, 2") + b"ab"
    yield head("/predict", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n"
    yield head("/predict", "Transfer-Encoding: chunked") + b"zz\r\nabc\r\n"
    yield head("/predict", "Transfer-Encoding: chunked") + b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    yield (
        head("/predict", "Transfer-Encoding: chunked") + (b"100000\r\n" + bytes(1 << 20) + b"\r\n") * 64 + b"0\r\n\r\n"
    )
    yield photo_request(*[photo] * 17)
    yield photo_request(*[b""] * 1200)
    yield photo_request(bytes(33 << 20))
    yield photo_request(photo, path="/predict?" + "a" * 60_000)
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n'.encode()
    for body in (field * 5000, b"--" + BOUNDARY.encode(), b"rubbish", field.replace(b"file", b"f" * 100_000)):
        yield head("/predict", f"Content-Length: {len(body)}") + body
    yield head("/explain", "Content-Length: 0")
    yield head("/admin/reload", "Content-Length: 0")
