"""Decoding in processes of its own: what a hostile file can break is a process that is replaced.

Pillow's decoders are C code that reads whatever a stranger sends. Here they have little memory and little time.
"""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import queue
import resource
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from spectacles.data.preprocessing import Decoded, Preprocessing, decode_one

MEMORY = 1 << 30
"""Bytes that a decoder may allocate beyond what it starts with: enough for 25 megapixels in any mode."""
MOST_TEXT = 1 << 20
"""Bytes of one comment in a PNG, which may be compressed a thousandfold; and an eighth of all of them."""
TOGETHER = 8
"""Files that a decoder is given at once, at most: each hand-over takes time."""
MOST_BYTES = 1 << 24
"""Of their pictures: 2,300 x 2,300 pixels, more than any network sees. Memory is taken as it is used."""
SECONDS = 10.0
"""For one file: a hundred times what a photo of 12 megapixels takes."""
TOGETHER_SECONDS = 2.0
"""For several: those beside a slow one have a deadline."""
TOO_SLOW = f"takes longer than {SECONDS:.0f} s to decode"
TOO_LARGE = "takes more memory to decode than a photo may"


class Died(Exception):
    """A decoder, of a file."""


class Decoder:
    """One process, one file after the other; a new process takes the place of one that was killed."""

    def __init__(self, context: BaseContext, max_pixels: int, memory: int) -> None:
        self.context, self.limits = context, (max_pixels, memory)
        self._start()

    def _start(self) -> None:
        self.connection, there = self.context.Pipe()
        shared = self.context.RawArray("B", MOST_BYTES)
        self.shared = np.frombuffer(shared, dtype=np.uint8)
        self.process = self.context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(there, shared, *self.limits), name="decoder", daemon=True
        )
        self.process.start()
        there.close()

    def __call__(self, contents: Sequence[bytes], preprocessing: Preprocessing, seconds: float) -> list[Decoded]:
        """What `decode_one` gives of each. Raises Died, which is a reason to reject the file, or one of them."""
        try:
            self.connection.send((preprocessing, contents))
            if self.connection.poll(seconds):
                return self._receive(len(contents), preprocessing)
            reason = TOO_SLOW
        except (EOFError, OSError, ValueError, TypeError):  # it was killed, or a file has it say nonsense
            reason = TOO_LARGE
        self._replace()
        raise Died(reason)

    def _receive(self, count: int, preprocessing: Preprocessing) -> list[Decoded]:
        """Nothing that comes back is unpickled: a process that a file has taken over must not get further."""
        answers, found = json.loads(self.connection.recv_bytes(1 << 20)), []
        for picture, (conversions, reason) in zip(_pictures(self.shared, count, preprocessing), answers, strict=True):
            found.append(Decoded("", None if reason else picture.copy(), tuple(map(str, conversions)), str(reason)))
        return found

    def _replace(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()


class Decoders:
    """So many decoders, for as many threads; closed by `with`."""

    def __init__(self, count: int, max_pixels: int, memory: int = MEMORY) -> None:
        # Forked from a process that has imported everything and runs no thread: quick to replace, and safe.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        self.count = count
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._all = [Decoder(context, max_pixels, memory) for _ in range(count)]
        for decoder in self._all:
            self._idle.put(decoder)

    def __call__(self, content: bytes, preprocessing: Preprocessing) -> Decoded:
        """What `decode_one` gives; whatever happens to the process is a reason to reject the file."""
        try:
            [decoded] = self._ask([content], preprocessing, SECONDS)
            return decoded
        except Died as died:
            return Decoded("", None, (), str(died))

    def together(self, contents: Sequence[bytes], preprocessing: Preprocessing) -> list[Decoded]:
        """Of `most_together` files at most. Raises Died, and nobody knows of which of them."""
        return self._ask(contents, preprocessing, TOGETHER_SECONDS)

    def _ask(self, contents: Sequence[bytes], preprocessing: Preprocessing, seconds: float) -> list[Decoded]:
        """Waits for a free decoder."""
        decoder = self._idle.get()
        try:
            return decoder(contents, preprocessing, seconds)
        finally:
            self._idle.put(decoder)

    def most_together(self, preprocessing: Preprocessing) -> int:
        """Files whose pictures find room at once."""
        return max(1, min(TOGETHER, MOST_BYTES // math.prod(preprocessing.shape)))

    def warm(self, preprocessing: Preprocessing) -> None:
        """Waits until all have started."""
        for decoder in self._all:
            decoder([b""], preprocessing, seconds=60.0)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        for decoder in self._all:
            decoder.close()


def _serve(connection: Connection, shared: Any, max_pixels: int, memory: int) -> None:
    """The decoder's process: one file after the other until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the server, which finishes what it has accepted
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters is in the answer
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT, 8 * MOST_TEXT
    pixels = np.frombuffer(shared, dtype=np.uint8)
    limit_memory(memory)
    gc.freeze()
    with suppress(EOFError, OSError):
        while True:
            preprocessing, contents = connection.recv()
            answers = []
            for content, picture in zip(contents, _pictures(pixels, len(contents), preprocessing), strict=True):
                decoded = decode_one(content, preprocessing, max_pixels)
                if decoded.pixels is not None:
                    picture[:] = decoded.pixels
                answers.append((decoded.conversions, decoded.reason))
            connection.send_bytes(json.dumps(answers).encode())


def _pictures(pixels: np.ndarray, count: int, preprocessing: Preprocessing) -> np.ndarray:
    """A view of the first (count, S, S, C) bytes."""
    shape = (count, *preprocessing.shape)
    return pixels[: math.prod(shape)].reshape(shape)


def limit_memory(more: int) -> None:
    """Allocations beyond so many bytes more than now fail with MemoryError; on Linux only."""
    if sys.platform.startswith("linux"):
        with open("/proc/self/status", encoding="ascii") as file:
            data = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))
