"""Decoding in separate processes with limited memory and time: a hostile file can kill one, and it is replaced.

Pillow's decoders are C code that reads whatever a stranger sends.
"""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import queue
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
"""Bytes that a decoder may allocate on top of what it starts with: enough for 25 megapixels in any mode."""
MAX_TEXT = 1 << 20
"""Bytes of one comment in a PNG, which may be compressed a thousandfold; eight times as many for all of them."""
TOGETHER = 8
"""Most files that a decoder gets in one call: each call takes time."""
MAX_BYTES = 1 << 24
"""Shared memory for their pixels: 2,300 x 2,300 in colour, more than any network takes. Allocated as it is used."""
SECONDS = 10.0
"""For one file: a hundred times what a photo of 12 megapixels takes."""
TOGETHER_SECONDS = 2.0
"""For several: the files beside a slow one have a deadline."""
START_SECONDS = 60.0
"""For a process to answer, imports of the first one included."""
FAILURES = (OSError, EOFError, ValueError, TypeError, RuntimeError)
"""Of starting a process, or of talking to one that dies or that a file has taken over."""
TOO_SLOW = f"takes longer than {SECONDS:.0f} s to decode"
TOO_LARGE = "takes more memory to decode than a photo may"


class DecoderDied(Exception):
    """A file took too much time or memory, and its decoder was replaced."""


class NoDecoder(Exception):
    """The system gives no process that decodes; that is not the file's fault."""


class Decoder:
    """At most one process; it is replaced when a file breaks it."""

    def __init__(self, context: BaseContext, max_pixels: int, memory: int) -> None:
        self.context = context
        self.limits = (max_pixels, memory)
        self.process: Any = None
        self.connection: Any = None

    def start(self, preprocessing: Preprocessing) -> None:
        """Where no process is alive. Raises NoDecoder unless the new one answers."""
        if self.process is not None and self.process.is_alive():
            return
        self.close()
        if multiprocessing.current_process().daemon:
            raise NoDecoder("a daemon process may not start those that decode images: with hypercorn, use --workers 0")
        try:
            self.connection, there = self.context.Pipe()
            with there:
                shared = self.context.RawArray("B", MAX_BYTES)
                self.shared = np.frombuffer(shared, dtype=np.uint8)
                process = self.context.Process(  # type: ignore[attr-defined]
                    target=_serve, args=(there, shared, *self.limits), name="decoder", daemon=True
                )
                process.start()
            self.process = process
            self._ask([b""], preprocessing, START_SECONDS)
        except FAILURES as error:
            self.close()
            raise NoDecoder(f"no process can be started to decode images ({type(error).__name__}: {error})") from error

    def __call__(self, contents: Sequence[bytes], preprocessing: Preprocessing, seconds: float) -> list[Decoded]:
        """`decode_one` of each. Raises DecoderDied, the reason to reject the file, or one of several; and NoDecoder."""
        self.start(preprocessing)
        try:
            return self._ask(contents, preprocessing, seconds)
        except TimeoutError:
            reason = TOO_SLOW
        except FAILURES:  # it was killed, or a file made it send garbage
            reason = TOO_LARGE
        self.close()
        self.start(preprocessing)
        raise DecoderDied(reason)

    def _ask(self, contents: Sequence[bytes], preprocessing: Preprocessing, seconds: float) -> list[Decoded]:
        self.connection.send((preprocessing, contents))
        if not self.connection.poll(seconds):
            raise TimeoutError(f"no answer within {seconds:.0f} s")
        return self._receive(len(contents), preprocessing)

    def _receive(self, count: int, preprocessing: Preprocessing) -> list[Decoded]:
        """Nothing that comes back is unpickled: a process that a file has taken over must not get further."""
        answers = json.loads(self.connection.recv_bytes(1 << 20))
        found = []
        for picture, (conversions, reason) in zip(_pictures(self.shared, count, preprocessing), answers, strict=True):
            found.append(Decoded("", None if reason else picture.copy(), tuple(map(str, conversions)), str(reason)))
        return found

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process.close()
        self.process = self.connection = None


class Decoders:
    """A pool of `count` decoders, for as many threads; closed by `with`."""

    def __init__(self, count: int, max_pixels: int, memory: int = MEMORY) -> None:
        # Forked from a process that has imported everything and runs no thread: quick to replace, and safe.
        # Windows has none, and starts each from scratch.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["__main__", __name__])
        self.count = count
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._all = [Decoder(context, max_pixels, memory) for _ in range(count)]
        for decoder in self._all:
            self._idle.put(decoder)
        self.problem = ""
        """Why there are fewer than `count` processes, as the last try to start one has it."""

    def __call__(self, content: bytes, preprocessing: Preprocessing) -> Decoded:
        """`decode_one`; a file that breaks the process is rejected. Raises NoDecoder."""
        try:
            [decoded] = self._run([content], preprocessing, SECONDS)
            return decoded
        except DecoderDied as died:
            return Decoded("", None, (), str(died))

    def together(self, contents: Sequence[bytes], preprocessing: Preprocessing) -> list[Decoded]:
        """At most `most_together` files. Raises DecoderDied, without knowing which of them caused it, and NoDecoder."""
        return self._run(contents, preprocessing, TOGETHER_SECONDS)

    def _run(self, contents: Sequence[bytes], preprocessing: Preprocessing, seconds: float) -> list[Decoded]:
        """Waits for a free decoder."""
        decoder = self._idle.get()
        try:
            return decoder(contents, preprocessing, seconds)
        except NoDecoder as error:
            self.problem = str(error)
            raise
        finally:
            self._idle.put(decoder)

    def most_together(self, preprocessing: Preprocessing) -> int:
        """Most files whose pixels fit in the shared memory at once."""
        return max(1, min(TOGETHER, MAX_BYTES // math.prod(preprocessing.shape)))

    def warm(self, preprocessing: Preprocessing) -> None:
        """Starts those that have no process; waits for those at work. Raises NoDecoder."""
        taken: list[Decoder] = []
        try:
            for _ in range(self.count):
                taken.append(self._idle.get())
                taken[-1].start(preprocessing)
            self.problem = ""
        except NoDecoder as error:
            self.problem = str(error)
            raise
        finally:
            for decoder in taken:
                self._idle.put(decoder)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        for decoder in self._all:
            decoder.close()


def _serve(connection: Connection, shared: Any, max_pixels: int, memory: int) -> None:
    """Runs in the decoder's process until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the server, which finishes what it has accepted
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; the conversions and the reason say what matters
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT
    PngImagePlugin.MAX_TEXT_MEMORY = 8 * MAX_TEXT
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
    """Allocations of more than so many bytes on top of now fail with MemoryError; on Linux only."""
    if sys.platform.startswith("linux"):
        import resource

        with open("/proc/self/status", encoding="ascii") as file:
            data = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))
