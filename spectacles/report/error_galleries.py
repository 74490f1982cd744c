"""Contact sheets of errors, of the training images most similar to them, and of doubtful labels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from spectacles.core.device import cpu_count
from spectacles.core.value_ranges import ValueRanges
from spectacles.data import label_text
from spectacles.report.image_grid import THUMBNAIL, image_grid
from spectacles.report.thumbnails import load_thumbnail


def draw(
    errors: pd.DataFrame,
    nearest: pd.DataFrame,
    doubtful: pd.DataFrame,
    folder: Path,
    split: str,
    num_workers: int | None,
    ranges: ValueRanges,
) -> list[Path]:
    """misclassified.png, nearest.png and noisy_labels.png. Raises UserError for a photo that can no longer be read."""
    near = nearest[nearest["file"].isin(errors["file"])]
    names = list(dict.fromkeys([*errors["path"], *near["neighbour_path"], *doubtful["path"]]))
    with ThreadPoolExecutor(num_workers or cpu_count(), "gallery") as pool:
        photos = dict(zip(names, pool.map(partial(load_thumbnail, side=THUMBNAIL, ranges=ranges), names), strict=True))
    return [
        show_errors(errors, photos, folder / "misclassified.png", split),
        show_nearest(errors, near, photos, folder / "nearest.png", split),
        show_doubtful_labels(doubtful, photos, folder / "noisy_labels.png"),
    ]


def show_errors(errors: pd.DataFrame, photos: dict[str, Image.Image], path: Path, split: str) -> Path:
    title = f"Misclassified ({split})" if len(errors) else f"No misclassified images ({split})"
    return image_grid([photos[p] for p in errors["path"]], _captions(errors), path, title=title)


def show_nearest(
    errors: pd.DataFrame, nearest: pd.DataFrame, photos: dict[str, Image.Image], path: Path, split: str
) -> Path:
    """One row per error: the image, then the training images most similar to it."""
    pictures, captions = [], []
    width = 1 + int(nearest["rank"].max()) if len(nearest) else 1
    for place, caption in zip(range(len(errors)), _captions(errors), strict=True):
        error = errors.iloc[place]
        pictures.append(photos[error["path"]])
        captions.append(caption)
        for other in nearest[nearest["file"] == error["file"]].head(width - 1).itertuples():
            pictures.append(photos[str(other.neighbour_path)])
            captions.append(f"{other.neighbour}\nlabel {other.neighbour_label}, similarity {other.similarity:.2f}")
    title = f"Misclassified ({split}), each with the most similar training images"
    return image_grid(
        pictures, captions, path, columns=width, title=title if pictures else f"No misclassified images ({split})"
    )


def show_doubtful_labels(doubtful: pd.DataFrame, photos: dict[str, Image.Image], path: Path) -> Path:
    title = "Labels to review, least credible first" if len(doubtful) else "No label looks wrong"
    captions = [f"{row.file}\n{_doubt(row)}\nscore {row.score:.3f} ({row.split})" for row in doubtful.itertuples()]
    return image_grid([photos[p] for p in doubtful["path"]], captions, path, title=title)


def _doubt(row: Any) -> str:
    """A row of noisy_labels.csv in words; with several labels, of the least credible one, to which the score refers."""
    if not hasattr(row, "doubtful_label"):
        return f"label {row.label}, suggested {row.suggested_label}"
    word = "without" if row.doubtful_label in label_text.parts(row.label) else "with"
    return f"label {row.label}, suggested {word} {row.doubtful_label}"


def _captions(rows: pd.DataFrame) -> Sequence[str]:
    return [f"{row.file}\n{row.label} -> {row.predicted}, {row.confidence:.3f}" for row in rows.itertuples()]
