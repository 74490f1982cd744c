"""Many files to model input, in order, by threads (Pillow releases the GIL) that work ahead of the arithmetic."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from spectacles.images import MAX_PIXELS, ImageRefused, Source, decode
from spectacles.preprocess import Preprocessing
from spectacles.runtime import cpu_count

LOOK_AHEAD = 4
"""Batches decoded before they are needed: enough to overlap with the arithmetic, few enough for constant memory."""


@dataclass(frozen=True)
class Decoded:
    """A source after decoding: the model's input, or the reason why there is none."""

    name: str
    pixels: np.ndarray | None
    """uint8 (S, S, C)."""
    repairs: tuple[str, ...]
    reason: str


def decode_one(source: Source, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Decoded:
    name = "" if isinstance(source, bytes) else str(source)
    try:
        decoded = decode(source, max_pixels, preprocessing.least_side)
    except ImageRefused as error:
        return Decoded(name, None, (), str(error))
    return Decoded(name, preprocessing.pixels(decoded.image), decoded.repairs, "")


def decoded_batches(
    sources: Iterable[Source],
    preprocessing: Preprocessing,
    batch_size: int,
    num_workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[list[Decoded]]:
    """Batches of decoded sources, in order, at most LOOK_AHEAD batches ahead of the consumer."""
    pending: deque[Future[Decoded]] = deque()
    remaining = iter(sources)
    with ThreadPoolExecutor(num_workers or cpu_count()) as pool:
        while True:
            while len(pending) < LOOK_AHEAD * batch_size and (source := next(remaining, None)) is not None:
                pending.append(pool.submit(decode_one, source, preprocessing, max_pixels))
            if not pending:
                return
            yield [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
