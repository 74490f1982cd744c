"""A backbone's features of every image, computed once: kept on disk by network, preprocessing and file content."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectacles.core.config import FeatureConfig
from spectacles.core.progress import progress
from spectacles.data.pixel_cache import RESIZER, Pixels, in_batches
from spectacles.data.preprocessing import Preprocessing
from spectacles.models import engine_choice
from spectacles.models.engines import Engine
from spectacles.models.feature_store import Features, FeatureStore
from spectacles.models.torch_network import ONLY_OUTPUT, PixelNetwork

SAVE_EVERY = 4096
"""Images between two writes, which is what a crash can cost."""
FILE = "features.sqlite"


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
    """Of the run. What is stored belongs to (name, weights, preprocessing)."""
    device: torch.device
    config: FeatureConfig

    def embed_rows(self, rows: pd.DataFrame, num_workers: int | None) -> np.ndarray:
        """Features (N, D) float32 of `rows` (columns path, sha256). Raises UserError for a file that has changed since
        it was indexed."""
        with Pixels(rows, self.preprocessing, self.cache / "pixels", 0, num_workers) as pixels:
            return self.embed(pixels)

    def embed(self, pixels: Pixels, positions: np.ndarray | None = None, view: PixelView | None = None) -> np.ndarray:
        """Features (N, D) float32, not normalised, of all images or of those at `positions`; of a view of them where
        one is given. Raises UserError for a file that has changed since it was indexed."""
        positions = np.arange(len(pixels)) if positions is None else positions
        if not len(positions):
            return self._run_torch(np.zeros((1, *self.preprocessing.shape), dtype=np.uint8))[:0]
        keys = [view.name(pixels.hashes[at]) if view else pixels.hashes[at] for at in positions]
        first: dict[str, int] = {}
        for position, key in zip(positions, keys, strict=True):
            first.setdefault(key, int(position))
        store = FeatureStore(self.cache / FILE, int(self.config.cache_gb * 2**30))
        known = store.read(identity := self._identity(), list(first))
        key_of = {position: key for key, position in first.items()}
        # The batches of an empty cache: other batches would change the last digits of what an interrupted run left.
        batches = in_batches(np.array(sorted(key_of), dtype=np.int64), self.config.batch_size)
        batches = [batch for batch in batches if any(key_of[int(position)] not in known for position in batch)]
        if batches:
            vectors = self._compute(pixels, batches, view, images=len(first))
            for computed in _in_parts(key_of, np.concatenate(batches), vectors, known):
                store.write(identity, computed)
                known |= computed
        return np.stack([known[key] for key in keys])

    def _compute(
        self, pixels: Pixels, batches: list[np.ndarray], view: PixelView | None, images: int
    ) -> Iterable[np.ndarray]:
        """Features (D,) float32 of one position after the other."""
        choice = engine_choice.choice_file(self.cache, self.name, self.preprocessing)
        _, run = engine_choice.choose(self._network, choice, self.config.engine, images=images)
        return progress(_embed(run, pixels, batches, view), "embedding", sum(map(len, batches)))

    @property
    def _network(self) -> PixelNetwork:
        return PixelNetwork(self.backbone, self.preprocessing, self.device)

    def _identity(self) -> str:
        name = self.name.replace("/", "_").replace(":", "_")
        return f"{name}-{_fingerprint(self.backbone, self.name, self.preprocessing)}"

    def _run_torch(self, pixels: np.ndarray) -> np.ndarray:
        return self._network.torch_engine()(pixels)[ONLY_OUTPUT]


def _in_parts(
    key_of: dict[int, str], positions: np.ndarray, vectors: Iterable[np.ndarray], known: Features
) -> Iterator[Features]:
    """Those that are not known yet, SAVE_EVERY at a time."""
    part: Features = {}
    for position, vector in zip(positions.tolist(), vectors, strict=True):
        if key_of[position] not in known:
            part[key_of[position]] = vector
        if len(part) == SAVE_EVERY:
            yield part
            part = {}
    if part:
        yield part


def _embed(run: Engine, pixels: Pixels, batches: list[np.ndarray], view: PixelView | None) -> Iterator[np.ndarray]:
    for positions, batch in zip(batches, pixels.batches(batches), strict=True):
        seen = view(batch, [pixels.hashes[position] for position in positions]) if view else batch
        yield from run(seen)[ONLY_OUTPUT]


def _fingerprint(backbone: nn.Module, name: str, preprocessing: Preprocessing) -> str:
    """16 hex digits that depend on everything that determines the features besides the file."""
    digest = hashlib.sha256(json.dumps([name, RESIZER, preprocessing.to_json()], sort_keys=True).encode())
    for tensor_name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{tensor_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
