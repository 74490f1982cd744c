"""Training's images, decoded and resized once: a memory-mapped file, bounded, safe with several processes."""

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.core.fileio import allocate, temporary_prefix
from spectacles.data.images import ImageRejected, read_file
from spectacles.data.preprocessing import Decoded, Preprocessing, decode_one

log = logging.getLogger("spectacles")

Change = Callable[[int, np.ndarray], np.ndarray]
"""(number of a batch, the batch) -> the batch as the consumer gets it. Called in another thread."""
LOOK_AHEAD = 3
"""Batches prepared before they are needed."""
STALE = 24 * 3600
"""Seconds after which an unfinished file is abandoned."""
RESIZER = "rows first"
"""Part of the name of each file: another order of resizing gives other pixels."""
FREE_SHARE = 0.5
"""Largest part of the disk's free space that the cache takes, whatever --pixel_cache_gb says."""


class Pixels:
    """The images of `rows` (columns path, sha256) as the model's input, uint8 (S, S, C) each.

    An image is decoded when it is first requested and then stored; once all that fit are stored, the file gets its
    final name, by which later runs find it: two processes may build the same file, and either result is complete.
    Images beyond the bound are decoded each time. Closing an unfinished file removes it.
    """

    def __init__(
        self, rows: pd.DataFrame, preprocessing: Preprocessing, folder: Path, max_bytes: int, num_workers: int | None
    ) -> None:
        self.paths, self.hashes = rows["path"].tolist(), rows["sha256"].tolist()
        self.preprocessing = preprocessing
        self.path = folder / f"{_key(self.hashes, preprocessing)}.npy"
        self.pool = ThreadPoolExecutor(num_workers or cpu_count(), "decode")
        self.unfinished: Path | None = None
        stored = _open(self.path, preprocessing)
        if stored is not None and len(stored) < min(len(self.paths), max_bytes // stored[0].nbytes):
            stored = None  # written under a smaller bound
        if stored is None:
            stored = self._begin(max_bytes)
            self.known = np.zeros(len(stored), dtype=bool)
        else:
            self.known = np.ones(len(stored), dtype=bool)
        self.stored = stored

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, C). Raises UserError for a file that has changed since the data were indexed."""
        batch = np.empty((len(indices), *self.preprocessing.shape), dtype=np.uint8)
        inside = np.flatnonzero(indices < len(self.stored))
        known = inside[self.known[indices[inside]]]
        batch[known] = self.stored[indices[known]]
        missing = np.setdiff1d(np.arange(len(indices)), known)
        for place, pixels in zip(missing, self.pool.map(self._decode, indices[missing]), strict=True):
            batch[place] = pixels
            self._store(int(indices[place]), pixels)
        _unmap_pages(self.stored)
        return batch

    def batches(self, order: Iterable[np.ndarray], change: Change | None = None) -> Iterator[np.ndarray]:
        """One batch for each array of indices, prepared ahead of the consumer, and changed there by `change`."""
        pending: deque[Future[np.ndarray]] = deque()
        remaining = enumerate(order)

        def prepare(number: int, indices: np.ndarray) -> np.ndarray:
            batch = self.batch(indices)
            return change(number, batch) if change else batch

        with ThreadPoolExecutor(1, "gather") as ahead:
            while True:
                while len(pending) < LOOK_AHEAD and (numbered := next(remaining, None)) is not None:
                    pending.append(ahead.submit(prepare, *numbered))
                if not pending:
                    return
                yield pending.popleft().result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.stored = np.array(self.stored[:0])  # unmapped, which Windows wants before the file changes
        if self.unfinished is not None and self.known.all():
            self._finish()
        elif self.unfinished is not None:
            self.unfinished.unlink(missing_ok=True)

    def __enter__(self) -> "Pixels":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, max_bytes: int) -> np.ndarray:
        """An empty file for as many images as may be stored; the least recently used files make room."""
        each = int(np.prod(self.preprocessing.shape))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        count = min(len(self.paths), max_bytes // each)
        if count:
            _make_room(self.path.parent, max_bytes - count * each)
            count = min(count, int(FREE_SHARE * shutil.disk_usage(self.path.parent).free) // each)
        if max_bytes and count < len(self.paths):
            log.info("  pixel cache: %d of %d images fit, the others are decoded each time", count, len(self.paths))
        if count == 0:
            return np.empty((0, *self.preprocessing.shape), dtype=np.uint8)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=temporary_prefix(), suffix=".npy")
        os.close(handle)
        self.unfinished = Path(name)
        shape = (count, *self.preprocessing.shape)
        stored: np.ndarray = np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=shape)
        with self.unfinished.open("r+b") as file:
            allocate(file.fileno(), self.unfinished)
        return stored

    def _store(self, index: int, pixels: np.ndarray) -> None:
        if index >= len(self.stored):
            return
        self.stored[index], self.known[index] = pixels, True
        if self.unfinished is not None and self.known.all():
            self.stored.flush()  # type: ignore[attr-defined]  # a memory map
            with suppress(PermissionError):  # of Windows, for a file that is mapped: it is renamed when it is closed
                self._finish()

    def _finish(self) -> None:
        assert self.unfinished is not None
        self.unfinished.replace(self.path)
        self.unfinished = None

    def _decode(self, index: int) -> np.ndarray:
        decoded = decode_unchanged(Path(self.paths[index]), self.hashes[index], self.preprocessing)
        if decoded.pixels is None:
            raise _changed(self.paths[index], f"can no longer be read ({decoded.reason})")
        return decoded.pixels


def in_batches(places: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches of at most `batch_size`."""
    return [places[start : start + batch_size] for start in range(0, len(places), batch_size)]


def decode_unchanged(path: Path, digest: str, preprocessing: Preprocessing) -> Decoded:
    """Raises UserError for another content: cached under this hash it would be wrong in every later run."""
    try:
        content = read_file(path)
    except ImageRejected as error:
        raise _changed(str(path), f"can no longer be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _changed(str(path), "has changed since it was indexed")
    return decode_one(content, preprocessing)


def _changed(path: str, change: str) -> UserError:
    return UserError(f"{path} {change}: restore it, or run the dataset stage again.")


def _key(hashes: list[str], preprocessing: Preprocessing) -> str:
    """16 hex digits of the contents in their order and of the settings that determine the pixels."""
    pixels = {key: value for key, value in preprocessing.to_json().items() if key not in ("mean", "std")}
    digest = hashlib.sha256(json.dumps([RESIZER, pixels], sort_keys=True).encode())
    for content in hashes:
        digest.update(content.encode())
    return digest.hexdigest()[:16]


def _open(path: Path, preprocessing: Preprocessing) -> np.ndarray | None:
    """The finished file, or None. Its modification time is set to now: it records the last use."""
    try:
        stored = np.lib.format.open_memmap(path, mode="r")
        os.utime(path)
    except (OSError, ValueError):
        return None
    return stored if stored.shape[1:] == preprocessing.shape else None


def _unmap_pages(stored: np.ndarray) -> None:
    """What was read or written stays in the system's file cache, but no longer counts as memory of this process."""
    if isinstance(stored.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        stored.base.madvise(mmap.MADV_DONTNEED)


def _make_room(folder: Path, allowed: int) -> None:
    """Removes finished files, the least recently used first, until they take at most `allowed` bytes.

    A process that has mapped one of them keeps its pages until it ends.
    """
    for leftover in folder.glob(".tmp-*.npy"):  # of killed processes; a running one writes to its own
        if time.time() - leftover.stat().st_mtime > STALE:
            leftover.unlink(missing_ok=True)
    files = sorted(folder.glob("[!.]*.npy"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total <= allowed:
            return
        total -= path.stat().st_size
        with suppress(PermissionError):  # of Windows, for a file that another process has mapped
            path.unlink(missing_ok=True)
