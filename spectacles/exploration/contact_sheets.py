"""Explore's galleries: a sample of each class, outliers, duplicates side by side, and shortcuts.

Only these show photos: with --no_galleries none is drawn, and those of an earlier run in the folder are removed.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from spectacles.core.device import derive_seed
from spectacles.core.fileio import safe_name
from spectacles.core.progress import progress
from spectacles.core.value_ranges import ValueRanges
from spectacles.core.wording import count_of, noun_of, plural
from spectacles.data import label_sets
from spectacles.data.label_text import NONE, escape
from spectacles.exploration.outliers import MAX_Z, UNLIKE_OTHERS
from spectacles.exploration.shortcuts import Shortcut
from spectacles.report.image_grid import THUMBNAIL, image_grid
from spectacles.report.thumbnails import load_thumbnail

SAMPLE, ALL_SAMPLES = 200, 1200
"""Most images decoded for a class's mean image, and for all of them together."""
MAX_MEANS, MAX_CONTACT_SHEETS = 40, 12
"""Most classes shown, the largest first."""
MAX_SHORTCUTS = 3
Load = Callable[[Iterable[str]], list[Image.Image]]
"""Paths -> `thumbnails`."""
NO_LABEL = "(no label)"
NAMES = ("contact_*.png", "mean_images.png", "outliers.png", "feature_outliers.png", "duplicates.png", "shortcuts.png")


def clear(folder: Path) -> None:
    """Removes every gallery that an earlier run of the stage left."""
    for pattern in NAMES:
        for stale in folder.glob(pattern):
            stale.unlink()


def draw_classes(
    labelled: pd.DataFrame, size: int, seed: int, load: Load, folder: Path, multi_label: bool = False
) -> tuple[list[Path], Path]:
    """(contact sheets, mean images) of the largest classes, from one sample of each. With several labels per image,
    NONE stands for the images without any."""
    sizes = _sizes(labelled["label"], multi_label)
    shown = sizes.index[:MAX_MEANS]
    shape = _mean_shape(labelled)
    sheets, means, captions = [], [], []
    for number, name in enumerate(progress(shown, "drawing classes", len(shown), "class"), start=1):
        on_sheet = size if number <= MAX_CONTACT_SHEETS else 0
        wanted = max(on_sheet, min(SAMPLE, ALL_SAMPLES // len(shown)))
        members = label_sets.belongs(labelled["label"], name, multi_label)
        rows = sample(labelled[members], wanted, derive_seed(seed, "explore", name))
        pictures = load(rows["path"])
        if on_sheet:
            path = folder / f"contact_{number:02d}_{safe_name(name)}.png"
            texts = [
                f"{Path(row['file']).name}\n{row['split']}{', ' + row['label'] if multi_label else ''}"
                for row in rows[:on_sheet].to_dict("records")
            ]
            title = f"{name} ({sizes[name]:,} images in train and val)"
            sheets.append(image_grid(pictures[:on_sheet], texts, path, title=title))
        means.append(mean_image(pictures, shape))
        captions.append(f"{name}\nmean of {len(pictures)}")
    noun = noun_of(multi_label)
    which = f"the {len(shown)} largest of {len(sizes)} {plural(noun)}" if len(shown) < len(sizes) else f"each {noun}"
    return sheets, image_grid(means, captions, folder / "mean_images.png", title=f"Mean images of {which}")


def _sizes(labels: "pd.Series[str]", multi_label: bool) -> "pd.Series[int]":
    """Images of each class or label (as label_sets.join writes it), the largest first."""
    if not multi_label:
        return labels.value_counts()
    counts = pd.Series(label_sets.count(labels, label_sets.names(labels), multi_label)).rename(escape)
    counts[NONE] = int((labels == NONE).sum())
    return counts[counts > 0].sort_values(ascending=False, kind="stable")


def draw_outliers(outliers: pd.DataFrame, size: int, load: Load, path: Path) -> Path:
    """The most extreme of each kind in turn, so that a frequent kind does not push out the others."""
    turn = outliers.groupby("what").cumcount()
    shown = outliers.loc[turn.sort_values(kind="stable").index[:size]].sort_index()
    captions = [
        f"{row['what']} ({row['value']:g})\n{Path(row['file']).name}\n{_label(row['label'], row['split'])}"
        for row in shown.to_dict("records")
    ]
    title = f"Outliers: {len(shown)} of {len(outliers)}"
    return image_grid(load(shown["path"]), captions, path, title=title)


def draw_feature_outliers(ranked: pd.DataFrame, size: int, load: Load, path: Path) -> Path:
    """The images least like the others, outliers or not: what stands out is for a person to judge."""
    shown = ranked[:size]
    beyond = int((ranked["z"] > MAX_Z).sum())
    captions = [
        f"{UNLIKE_OTHERS if row['z'] > MAX_Z else 'within limits'} ({row['z']:g})\n{Path(row['file']).name}\n"
        f"{_label(row['label'], row['split'])}"
        for row in shown.to_dict("records")
    ]
    images = count_of(len(ranked), "image")
    title = f"Least like the others, by features: {beyond} of {images} beyond {MAX_Z:g} deviations"
    return image_grid(load(shown["path"]), captions, path, title=title)


def draw_pairs(pairs: pd.DataFrame, size: int, load: Load, path: Path) -> Path:
    """Duplicates side by side, in the order given."""
    shown = pairs[: max(1, size // 2)]
    paths, captions = [], []
    for number, pair in enumerate(shown.to_dict("records"), start=1):
        flags = {"labels differ": pair["conflict"], "across splits": pair["crosses_split"]}
        faults = ", ".join(text for text, flag in flags.items() if flag)
        for side in "ab":
            name = Path(pair[f"file_{side}"]).name
            label = _label(pair[f"label_{side}"], pair[f"split_{side}"])
            paths.append(pair[f"path_{side}"])
            captions.append("\n".join(filter(None, [f"{number}{side} {_kind(pair)}", faults, name, label])))
    title = f"Duplicates: {len(shown)} of {count_of(len(pairs), 'pair')}"
    return image_grid(load(paths), captions, path, columns=4, title=title)


def _kind(pair: dict[Hashable, Any]) -> str:
    """'near (4 bits)', 'similar (0.971)': the number is the distance or cosine that made them duplicates."""
    if pair["kind"] == "similar":
        return f"similar ({pair['similarity']:.3f})"
    return f"{pair['kind']} ({pair['distance']} bits)" if pair["kind"] in ("near", "mirrored") else str(pair["kind"])


def draw_shortcuts(rows: pd.DataFrame, found: Sequence[Shortcut], size: int, seed: int, load: Load, path: Path) -> Path:
    """For each shortcut some images that its rule matches and some others, of the class and of the rest."""
    shown = found[:MAX_SHORTCUTS]
    per_part = max(2, size // (4 * len(shown)))
    parts, captions = [], []
    for shortcut in shown:
        members = label_sets.has(rows["label"], shortcut.label, shortcut.multi_label).to_numpy(dtype=bool)
        for matches, words in ((shortcut.matches, shortcut.rule), (~shortcut.matches, f"not {shortcut.rule}")):
            for side in (members, ~members):
                part = sample(rows[matches & side], per_part, derive_seed(seed, "shortcuts", shortcut.label))
                parts.append(part)
                captions += [f"{row['label']}\n{words}\n{Path(row['file']).name}" for row in part.to_dict("records")]
    noun = plural(noun_of(shown[0].multi_label))
    title = f"What gives {noun} away: " + "; ".join(f"{shortcut.label}: {shortcut.rule}" for shortcut in shown)
    pictures = load([path for part in parts for path in part["path"]])
    return image_grid(pictures, captions, path, title=title)


def thumbnails(paths: Iterable[str], pool: ThreadPoolExecutor, ranges: ValueRanges) -> list[Image.Image]:
    return list(pool.map(partial(load_thumbnail, side=THUMBNAIL, ranges=ranges), paths))


def mean_image(pictures: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 mean of the pictures, each stretched to `size` (width, height)."""
    total = np.zeros((size[1], size[0], 3))
    for picture in pictures:
        total += np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return np.rint(total / len(pictures)).astype(np.uint8)


def sample(rows: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    return rows.iloc[np.random.default_rng(seed).permutation(len(rows))[:size]]


def _mean_shape(rows: pd.DataFrame) -> tuple[int, int]:
    """(width, height) of the median aspect ratio, as large as galleries show it."""
    aspect = float((rows["width"] / rows["height"]).median())
    return max(1, round(THUMBNAIL * min(1, aspect))), max(1, round(THUMBNAIL * min(1, 1 / aspect)))


def _label(label: str, split: str) -> str:
    return f"{f'label {label}' if label else NO_LABEL}, {split}"
