"""A backbone's features of every file, computed once: kept on disk by network, preprocessing and file content."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from spectacles.errors import UserError
from spectacles.images import ImageRefused, read_file
from spectacles.inference import decoded_batches
from spectacles.preprocess import Preprocessing
from spectacles.progress import progress
from spectacles.run_dir import atomic_path

log = logging.getLogger("spectacles")

SAVE_EVERY = 4096
"""Images between two writes of the table: what a crash can cost."""


def embed(
    backbone: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    rows: pd.DataFrame,
    cache_dir: Path,
    device: torch.device,
    batch_size: int = 32,
    num_workers: int | None = None,
) -> np.ndarray:
    """Features (N, D) float32, as the backbone gives them (not normalised), for `rows` with columns path and sha256.

    `cache_dir` holds one table for each (name, weights, preprocessing); only contents that are not in it are computed.
    The backbone is moved to `device`. Raises UserError for a file that has changed since it was indexed.
    """
    path = cache_dir / f"{name.replace('/', '_').replace(':', '_')}-{_key(backbone, name, preprocessing)}.npz"
    table = _read(path)
    missing = rows[~rows["sha256"].isin(list(table))].drop_duplicates("sha256")
    backbone.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    vectors = _compute(backbone, preprocessing, missing, device, batch_size, num_workers)
    computed = zip(missing["sha256"], progress(vectors, "embedding", len(missing)), strict=True)
    for count, (digest, vector) in enumerate(computed, start=1):
        table[digest] = vector
        if count % SAVE_EVERY == 0 or count == len(missing):
            _write(path, table)
    return np.stack([table[digest] for digest in rows["sha256"]])


def _key(backbone: nn.Module, name: str, preprocessing: Preprocessing) -> str:
    """16 hex digits that change with anything that the features depend on besides the file."""
    digest = hashlib.sha256(json.dumps([name, preprocessing.to_json()], sort_keys=True).encode())
    for tensor_name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{tensor_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _compute(
    backbone: nn.Module,
    preprocessing: Preprocessing,
    rows: pd.DataFrame,
    device: torch.device,
    batch_size: int,
    num_workers: int | None,
) -> Iterator[np.ndarray]:
    """One (D,) float32 vector a row, in order."""
    contents = (_read_unchanged(Path(path), digest) for path, digest in zip(rows["path"], rows["sha256"], strict=True))
    paths = iter(rows["path"])
    for batch in decoded_batches(contents, lambda decoded: preprocessing(decoded.image), batch_size, num_workers):
        tensors = []
        for item, path in zip(batch, paths, strict=False):
            if item.tensor is None:
                raise UserError(f"{path} cannot be read any more ({item.reason}): run the dataset stage again.")
            tensors.append(item.tensor)
        with torch.inference_mode():
            images = torch.stack(tensors).to(device, memory_format=torch.channels_last)
            yield from backbone(images).float().cpu().numpy()


def _read_unchanged(path: Path, digest: str) -> bytes:
    """The file's bytes. Another content under this hash would stay wrong in every later run."""
    try:
        content = read_file(path)
    except ImageRefused as error:
        raise UserError(f"{path} cannot be read any more ({error}): run the dataset stage again.") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path} has changed since it was indexed: run the dataset stage again.")
    return content


def _read(path: Path) -> dict[str, np.ndarray]:
    """sha256 -> (D,) float32; empty where there is no table yet, or none that can be trusted."""
    if not path.is_file():
        return {}
    try:
        # The zip's checksums find flipped bits.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            hashes, features = stored["sha256"].astype(str), stored["features"]
        if features.ndim != 2 or features.dtype != np.float32 or len(hashes) != len(features):
            raise ValueError("not a table of features")
    except Exception as error:  # noqa: BLE001 - a damaged zip raises zipfile's, struct's, numpy's and OS errors
        log.warning("warning: %s cannot be read (%s); its features are computed again.", path, error)
        return {}
    return dict(zip(hashes.tolist(), features, strict=True))


def _write(path: Path, table: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary:
        np.savez(temporary, sha256=np.array(list(table), dtype="S64"), features=np.stack(list(table.values())))
