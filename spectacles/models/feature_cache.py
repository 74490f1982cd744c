"""A backbone's features of every image, computed once: kept on disk by network, preprocessing and file content."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
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
from spectacles.models.block_network import BlockNetwork, find_taps
from spectacles.models.engines import Engine
from spectacles.models.feature_blocks import BLOCKS, LAST, BlockNames, FeatureBlocks, Taps
from spectacles.models.feature_store import Features, FeatureStore
from spectacles.models.torch_network import PixelNetwork

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

    def embed_rows(self, rows: pd.DataFrame, num_workers: int | None, blocks: BlockNames = BLOCKS) -> FeatureBlocks:
        """`embed` for `rows` (columns path, sha256)."""
        with Pixels(rows, self.preprocessing, self.cache / "pixels", 0, num_workers) as pixels:
            return self.embed(pixels, blocks=blocks)

    def embed(
        self,
        pixels: Pixels,
        positions: np.ndarray | None = None,
        view: PixelView | None = None,
        blocks: BlockNames = BLOCKS,
    ) -> FeatureBlocks:
        """Features of all images or of those at `positions`; of a view of them where one is given. All blocks that the
        backbone has are computed in one pass and stored, and those of `blocks` returned. Raises UserError for a file
        that has changed since it was indexed."""
        positions = np.arange(len(pixels)) if positions is None else positions
        if not len(positions):
            return self._of_nothing(blocks)
        keys = [view.name(pixels.hashes[at]) if view else pixels.hashes[at] for at in positions]
        first: dict[str, int] = {}
        for position, key in zip(positions, keys, strict=True):
            first.setdefault(key, int(position))
        store = FeatureStore(self.cache / FILE, int(self.config.cache_gb * 2**30))
        known = store.read(identity := self._identity(), [_row(key, block) for key in first for block in blocks])
        if len(known) < len(first) * len(blocks):  # or the backbone has other blocks, which takes a pass to find out
            blocks = tuple(block for block in blocks if block in self.taps.blocks)
        key_of = {position: key for key, position in first.items()}
        # The batches of an empty cache: other batches would change the last digits of what an interrupted run left.
        batches = in_batches(np.array(sorted(key_of), dtype=np.int64), self.config.batch_size)
        missing = {position for position, key in key_of.items() if any(_row(key, name) not in known for name in blocks)}
        batches = [batch for batch in batches if not missing.isdisjoint(batch.tolist())]
        if batches:
            computed = self._compute(pixels, batches, view, images=len(first))
            for part in _in_parts(zip(np.concatenate(batches).tolist(), computed, strict=True), missing):
                rows = {_row(key_of[at], block): values for at, found in part for block, values in found.items()}
                store.write(identity, {row: values for row, values in rows.items() if row not in known})
                known |= {_row(key_of[at], block): found[block] for at, found in part for block in blocks}
        return FeatureBlocks({block: np.stack([known[_row(key, block)] for key in keys]) for block in blocks})

    def _compute(
        self, pixels: Pixels, batches: list[np.ndarray], view: PixelView | None, images: int
    ) -> Iterable[Features]:
        """Name of a block -> (D,) float32, of one position after the other."""
        choice = engine_choice.choice_file(self.cache, self.name, self.preprocessing)
        _, run = engine_choice.choose(self._network, choice, self.config.engine, images=images)
        return progress(_embed(run, pixels, batches, view), "embedding", sum(map(len, batches)))

    @cached_property
    def taps(self) -> Taps:
        return find_taps(self.backbone, self.preprocessing.in_chans, self.preprocessing.image_size)

    def _of_nothing(self, blocks: BlockNames) -> FeatureBlocks:
        outputs = self._network.torch_engine()(np.zeros((1, *self.preprocessing.shape), dtype=np.uint8))
        return FeatureBlocks({name: values[:0] for name, values in outputs.items() if name in blocks})

    @property
    def _network(self) -> PixelNetwork:
        return PixelNetwork(BlockNetwork(self.backbone, self.taps), self.preprocessing, self.device)

    def _identity(self) -> str:
        name = self.name.replace("/", "_").replace(":", "_")
        return f"{name}-{_fingerprint(self.backbone, self.name, self.preprocessing)}"


def _row(key: str, block: str) -> str:
    """The name in the table of features."""
    return key if block == LAST else f"{key}/{block}"


def _in_parts(computed: Iterable[tuple[int, Features]], missing: set[int]) -> Iterator[list[tuple[int, Features]]]:
    """Those that are missing, SAVE_EVERY images at a time."""
    part = []
    for position, found in computed:
        if position in missing:
            part.append((position, found))
        if len(part) == SAVE_EVERY:
            yield part
            part = []
    if part:
        yield part


def _embed(run: Engine, pixels: Pixels, batches: list[np.ndarray], view: PixelView | None) -> Iterator[Features]:
    for positions, batch in zip(batches, pixels.batches(batches), strict=True):
        seen = view(batch, [pixels.hashes[position] for position in positions]) if view else batch
        outputs = run(seen)
        yield from ({name: values[row] for name, values in outputs.items()} for row in range(len(seen)))


def _fingerprint(backbone: nn.Module, name: str, preprocessing: Preprocessing) -> str:
    """16 hex digits that depend on everything that determines the features besides the file."""
    digest = hashlib.sha256(json.dumps([name, RESIZER, preprocessing.to_json()], sort_keys=True).encode())
    for tensor_name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{tensor_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
