"""A backbone's features of every image, computed once: kept on disk by network, preprocessing and file content."""

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectacles.core.fileio import atomic_path
from spectacles.core.progress import progress
from spectacles.data.pixel_cache import Pixels, in_batches
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import engine_choice
from spectacles.models.engines import Engine, PixelNetwork

log = logging.getLogger("spectacles")

SAVE_EVERY = 4096
"""Images between two writes, which is what a crash can cost."""
Table = dict[str, np.ndarray]
"""Name of an image's content (and view) -> features (D,) float32."""


class PixelView(Protocol):
    """A fixed change of every image whose features are computed too, such as mirroring."""

    def name(self, digest: str) -> str:
        """The key in the table for this view of the file with `digest`."""

    def __call__(self, pixels: np.ndarray, digests: list[str]) -> np.ndarray:
        """uint8 (B, S, S, C) -> the same."""


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes the features of a backbone, or reads them from the cache where they were computed before."""

    backbone: nn.Module
    """Is moved to `device` and set to evaluation mode."""
    name: str
    preprocessing: Preprocessing
    cache: Path
    """Of the run. There is one folder of tables for each (name, weights, preprocessing)."""
    device: torch.device
    batch_size: int = 32
    engine: str = "auto"

    def embed_rows(self, rows: pd.DataFrame, num_workers: int | None) -> np.ndarray:
        """Features (N, D) float32 of `rows` (columns path, sha256). Raises UserError for a file that has changed since
        it was indexed."""
        with Pixels(rows, self.preprocessing, self.cache / "pixels", 0, num_workers) as pixels:
            return self.embed(pixels)

    def embed(self, pixels: Pixels, positions: np.ndarray | None = None, view: PixelView | None = None) -> np.ndarray:
        """Features (N, D) float32, not normalised, of all images or of those at `positions`; of a view of them where
        one is given. Raises UserError for a file that has changed since it was indexed."""
        folder = self._folder()
        table = _read(folder)
        positions = np.arange(len(pixels)) if positions is None else positions
        keys = [view.name(pixels.hashes[at]) if view else pixels.hashes[at] for at in positions]
        first: dict[str, int] = {}
        for position, key in zip(positions, keys, strict=True):
            first.setdefault(key, int(position))
        key_of = {position: key for key, position in first.items()}
        # The batches of an empty cache: other batches would change the last digits of what an interrupted run left.
        batches = in_batches(np.array(sorted(key_of), dtype=np.int64), self.batch_size)
        batches = [batch for batch in batches if any(key_of[int(position)] not in table for position in batch)]
        if batches:
            network = PixelNetwork(self.backbone, self.preprocessing, self.device)
            _, run = engine_choice.choose(network, folder / "engine.json", self.engine, images=len(first))
            missing = np.concatenate(batches)
            computed: Table = {}
            vectors = progress(_compute(run, pixels, batches, view), "embedding", len(missing))
            for position, vector in zip(missing, vectors, strict=True):
                if key_of[int(position)] not in table:
                    computed[key_of[int(position)]] = vector
                if len(computed) == SAVE_EVERY or position == missing[-1]:
                    _write(folder, computed)
                    table |= computed
                    computed = {}
        return np.stack([table[key] for key in keys])

    def _folder(self) -> Path:
        name = self.name.replace("/", "_").replace(":", "_")
        return self.cache / "embeddings" / f"{name}-{_fingerprint(self.backbone, self.name, self.preprocessing)}"


def _compute(run: Engine, pixels: Pixels, batches: list[np.ndarray], view: PixelView | None) -> Iterator[np.ndarray]:
    """Features (D,) float32 of one position after the other."""
    for positions, batch in zip(batches, pixels.batches(batches), strict=True):
        yield from run(view(batch, [pixels.hashes[position] for position in positions]) if view else batch)


def _fingerprint(backbone: nn.Module, name: str, preprocessing: Preprocessing) -> str:
    """16 hex digits that depend on everything that determines the features besides the file."""
    digest = hashlib.sha256(json.dumps([name, preprocessing.to_json()], sort_keys=True).encode())
    for tensor_name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{tensor_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path) -> Table:
    """The undamaged parts of the table."""
    table: Table = {}
    for path in sorted(folder.glob("[!.]*.npz")):
        try:
            # The zip's checksums find flipped bits.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                names, features = stored["names"].astype(str), stored["features"]
            if features.ndim != 2 or features.dtype != np.float32 or len(names) != len(features):
                raise ValueError("not a table of features")
        except Exception as error:  # noqa: BLE001 - a damaged zip raises zipfile's, struct's, numpy's and OS errors
            log.warning("warning: %s cannot be read (%s); its features are computed again.", path, error)
            path.unlink(missing_ok=True)
            continue
        table |= dict(zip(names.tolist(), features, strict=True))
    return table


def _write(folder: Path, table: Table) -> None:
    """As a separate part: earlier ones are not written again, and two processes do not collide."""
    with atomic_path(folder / f"{uuid.uuid4().hex}.npz") as temporary:
        np.savez(temporary, names=np.array(list(table), dtype=bytes), features=np.stack(list(table.values())))
