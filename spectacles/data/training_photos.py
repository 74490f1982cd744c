"""Training photos for what is measured on them: ranges of int8, statistics of BatchNorm."""

from pathlib import Path

import numpy as np

from spectacles.core.run_dir import RunDir
from spectacles.data import schemas
from spectacles.data.preprocessing import Preprocessing, decoded_batches


def pixels_of(run_dir: RunDir, preprocessing: Preprocessing, most: int, num_workers: int | None = None) -> np.ndarray:
    """uint8 (N, S, S, C), of at most so many labelled ones. Raises UserError."""
    rows = schemas.load_labelled(run_dir, "train", most)
    decoded = decoded_batches(map(Path, rows["path"]), preprocessing, len(rows), num_workers)
    return np.stack([photo.pixels for batch in decoded for photo in batch if photo.pixels is not None])
