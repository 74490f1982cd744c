"""Training photos for what is measured on them: ranges of int8, statistics of BatchNorm."""

from pathlib import Path

import numpy as np

from spectacles.core.run_dir import RunDir
from spectacles.data import schemas
from spectacles.data.preprocessing import Preprocessing, decoded_batches
from spectacles.models.quantization import CALIBRATION_IMAGES


def pixels_of(run_dir: RunDir, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 (N, S, S, C), at most CALIBRATION_IMAGES. Raises UserError."""
    rows = schemas.load_labelled(run_dir, "train", CALIBRATION_IMAGES)
    decoded = decoded_batches(map(Path, rows["path"]), preprocessing, len(rows))
    return np.stack([photo.pixels for batch in decoded for photo in batch if photo.pixels is not None])
