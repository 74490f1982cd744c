"""A backbone's features of every file, computed once: kept on disk by network, preprocessing and file content."""

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectacles.core.config import ComputeConfig, ModelConfig
from spectacles.core.fileio import atomic_path
from spectacles.core.progress import progress
from spectacles.core.run_dir import RunDir
from spectacles.data.pixel_cache import Pixels, in_batches
from spectacles.data.preprocessing import Preprocessing, resolve_preprocessing
from spectacles.models import backbones, engines, recipes
from spectacles.models.bundle import BundleInfo

log = logging.getLogger("spectacles")

SAVE_EVERY = 4096
"""Images between two writes: what a crash can cost."""
Table = dict[str, np.ndarray]


class PixelView(Protocol):
    """A fixed change of every picture that features are computed of too."""

    def name(self, digest: str) -> str:
        """What the table calls the view of a file with this digest."""

    def __call__(self, pixels: np.ndarray, digests: list[str]) -> np.ndarray:
        """uint8 (B, S, S, C) -> the same."""


def embed(
    backbone: nn.Module,
    name: str,
    pixels: Pixels,
    cache_dir: Path,
    device: torch.device,
    batch_size: int = 32,
    engine: str = "auto",
    places: np.ndarray | None = None,
    view: "PixelView | None" = None,
) -> np.ndarray:
    """Features (N, D) float32, as the backbone gives them (not normalised), of all pictures or of those at `places`;
    of a view of them where one is given.

    `cache_dir` holds one folder for each (name, weights, preprocessing); only contents that are not in it are
    computed, by the fastest engine. The backbone is moved to `device` and set to evaluation. Raises UserError for a
    file that has changed since it was indexed.
    """
    folder = cache_dir / f"{name.replace('/', '_').replace(':', '_')}-{_key(backbone, name, pixels.preprocessing)}"
    table = _read(folder)
    places = np.arange(len(pixels)) if places is None else places
    wanted = {int(place): view.name(pixels.hashes[place]) if view else pixels.hashes[place] for place in places}
    first = {name: place for place, name in reversed(wanted.items())}
    # As if nothing were known yet: another batch or another engine would change the last digits of what a crash left.
    batches = in_batches(np.array(sorted(first.values()), dtype=np.int64), batch_size)
    batches = [batch for batch in batches if any(wanted[int(place)] not in table for place in batch)]
    if batches:
        _, run = engines.choose(
            backbone, pixels.preprocessing, device, folder / "engine.json", engine, images=len(first)
        )
        fresh: Table = {}
        places_left = np.concatenate(batches)
        vectors = progress(_compute(run, pixels, batches, view), "embedding", len(places_left))
        for place, vector in zip(places_left, vectors, strict=True):
            if wanted[int(place)] not in table:
                fresh[wanted[int(place)]] = vector
            if len(fresh) == SAVE_EVERY or place == places_left[-1]:
                _write(folder, fresh)
                table |= fresh
                fresh = {}
    return np.stack([table[wanted[int(place)]] for place in places])


def _compute(
    run: engines.Engine, pixels: Pixels, batches: list[np.ndarray], view: PixelView | None
) -> Iterator[np.ndarray]:
    """One (D,) float32 vector a place, in order."""
    for indices, batch in zip(batches, pixels.batches(batches), strict=True):
        yield from run(view(batch, [pixels.hashes[index] for index in indices]) if view else batch)


def _key(backbone: nn.Module, name: str, preprocessing: Preprocessing) -> str:
    """16 hex digits that change with anything that the features depend on besides the file."""
    digest = hashlib.sha256(json.dumps([name, preprocessing.to_json()], sort_keys=True).encode())
    for tensor_name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{tensor_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path) -> Table:
    """Content -> (D,) float32, from every part that can be trusted."""
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
    """A part of its own: what stands is not written again, and two processes do not meet."""
    with atomic_path(folder / f"{uuid.uuid4().hex}.npz") as temporary:
        np.savez(temporary, names=np.array(list(table), dtype=bytes), features=np.stack(list(table.values())))


def load(config: ModelConfig) -> tuple[nn.Module, Preprocessing]:
    """The pretrained backbone and its preprocessing. Raises UserError where its weights cannot be had; with
    --no_pretrained there is nothing to ask for."""
    backbone: Any = backbones.build_pretrained(
        config.backbone, config.in_chans, recipes.image_size(config), config.weights
    )
    return backbone, resolve_preprocessing(
        backbone.pretrained_cfg, recipes.image_size(config), config.resize, config.in_chans
    )


def of_run(run_dir: RunDir, info: BundleInfo) -> nn.Module | None:
    """The backbone that the run's model started from; None where that was random. Raises UserError where its weights
    cannot be had."""
    saved, preprocessing = run_dir.load_config(), info.preprocessing
    if saved.get("no_pretrained"):
        return None
    weights = Path(saved["weights"]) if saved.get("weights") else None
    return backbones.build_pretrained(info.backbone, preprocessing.in_chans, preprocessing.image_size, weights)


def features(
    rows: pd.DataFrame,
    backbone: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    cache: Path,
    device: torch.device,
    config: ComputeConfig,
    num_workers: int | None,
) -> np.ndarray:
    """(N, D) float32 for `rows` (columns path, sha256); from the cache where another stage or run computed them."""
    with Pixels(rows, preprocessing, cache / "pixels", 0, num_workers) as pixels:
        return embed(backbone, name, pixels, cache / "embeddings", device, config.batch_size, config.engine)
