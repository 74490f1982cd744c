"""What is in the data, and what is wrong with it. The dataset stage measured every file; only samples are decoded."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import dataset
from spectacles import cli, exploration, plots
from spectacles.config import ExploreConfig
from spectacles.errors import UserError
from spectacles.exploration import count_of, percent
from spectacles.galleries import THUMBNAIL, image_grid
from spectacles.images import ImageRefused, decode
from spectacles.progress import progress
from spectacles.records import DatasetReport, ExploreReport
from spectacles.run_dir import RunDir, atomic_write, write_csv
from spectacles.runtime import cpu_count, derive_seed

SAMPLE, ALL_SAMPLES = 200, 1200
"""Images decoded for a class's mean image, and for all of them together."""
MAX_MEANS, MAX_CONTACT_SHEETS = 40, 12
"""Classes shown, the largest first."""
MAX_OVERLAYS = 6
GREY = 3.0
"""A picture whose channels differ by less than this (mean of largest minus smallest, of 255) has no colour."""
NO_LABEL = "(no label)"


def run(config: ExploreConfig, run_dir: RunDir) -> ExploreReport:
    """Writes charts, galleries, outliers.csv, conflicting_duplicates.csv and warnings.txt into explore/."""
    data = run_dir.load_result("dataset", DatasetReport)
    index = dataset.load_index(run_dir)
    pairs = load_pairs(run_dir)
    used = index[index["status"] != "refused"]
    outliers = exploration.find_outliers(used)
    folder = run_dir.folder("explore")
    write_tables(data, used, pairs, outliers, folder)
    draw_charts(data, used, folder)
    with ThreadPoolExecutor(max(1, config.num_workers or cpu_count())) as pool:
        sheets, grey_shares = draw_classes(used, config, pool, folder)
        draw_outliers(outliers, config.gallery_size, pool, folder)
        draw_pairs(pairs, config.gallery_size, pool, folder)
    warnings = [
        *exploration.check_files(index, pairs, outliers),
        *exploration.check_classes(data.counts),
        *exploration.check_shortcuts(used[used["label"] != ""], grey_shares),
        *exploration.check_shift(used),
        *exploration.check_sizes(used),
    ]
    atomic_write(folder / "warnings.txt", "".join(f"{warning}\n" for warning in warnings))
    return _report(data, used, pairs, outliers, warnings, sheets, run_dir)


def load_pairs(run_dir: RunDir) -> pd.DataFrame:
    """The dataset stage's duplicate pairs, those with different labels first."""
    text = dict.fromkeys(["label_a", "label_b", "file_a", "file_b", "split_a", "split_b", "path_a", "path_b"], str)
    types = {**text, "conflict": bool, "crosses_border": bool}
    pairs = pd.read_csv(run_dir.duplicates, dtype=types, keep_default_na=False)
    return pairs.sort_values("conflict", ascending=False, kind="stable", ignore_index=True)


def write_tables(
    data: DatasetReport, used: pd.DataFrame, pairs: pd.DataFrame, outliers: pd.DataFrame, folder: Path
) -> None:
    modes = used.groupby(["format", "mode", "label"]).size().rename("images").reset_index()
    tables = {
        "class_distribution.csv": exploration.distribution(data.counts, data.unlabelled),
        "modes.csv": modes.rename(columns={"label": "class"}),
        "conflicting_duplicates.csv": pairs[pairs["conflict"]],
        "outliers.csv": outliers.drop(columns="path"),
    }
    for name, table in tables.items():
        write_csv(folder / name, table)


def draw_charts(data: DatasetReport, used: pd.DataFrame, folder: Path) -> None:
    """Histograms overlay the classes while there are few enough to tell apart."""
    counts = {split: per_class for split, per_class in data.counts.items() if any(per_class.values())}
    plots.class_distribution(counts, folder / "class_distribution.png")
    plots.scatter_sizes(used["width"].to_numpy(), used["height"].to_numpy(), folder / "sizes.png")
    columns = {
        "aspect_ratios": (used["width"] / used["height"], "Aspect ratios", "width / height", True),
        "brightness": (used["brightness"], "Brightness", "mean grey value (0 black, 255 white)", False),
        "contrast": (used["contrast"], "Contrast", "standard deviation of grey values", False),
        "sharpness": (used["sharpness"].clip(lower=0.01), "Sharpness (small: blurred)", "variance of Laplacian", True),
    }
    names = used["label"].where(used["label"] != "", NO_LABEL)
    for name, (values, title, xlabel, log) in columns.items():
        by = {str(label): part.to_numpy() for label, part in values.groupby(names)}
        overlaid = by if 1 < len(by) <= MAX_OVERLAYS else None
        plots.histogram(values.to_numpy(), title, xlabel, folder / f"{name}.png", overlaid, log)


def draw_classes(
    used: pd.DataFrame, config: ExploreConfig, pool: ThreadPoolExecutor, folder: Path
) -> tuple[list[Path], dict[str, tuple[float, int]]]:
    """Contact sheets and mean images of the largest classes, from one sample each, without test images.

    Returns the sheets, and class -> (share of pictures without colour, pictures looked at).
    """
    for stale in folder.glob("contact_*.png"):
        stale.unlink()
    seen = used[(used["label"] != "") & (used["split"] != "test")]
    sizes = seen["label"].value_counts()
    shown, shape = sizes.index[:MAX_MEANS], _mean_shape(used)
    sheets, means, captions, grey_shares = [], [], [], {}
    for number, name in enumerate(progress(shown, "looking at classes", len(shown), "class"), start=1):
        on_sheet = config.gallery_size if number <= MAX_CONTACT_SHEETS else 0
        wanted = max(on_sheet, min(SAMPLE, ALL_SAMPLES // len(shown)))
        rows = _sample(seen[seen["label"] == name], wanted, derive_seed(config.seed, "explore", name))
        pictures = thumbnails(rows["path"], pool)
        if on_sheet:
            path = folder / f"contact_{number:02d}_{safe_name(name)}.png"
            texts = [f"{Path(row.file).name}\n{row.split}" for row in rows[:on_sheet].itertuples()]
            title = f"{name} ({sizes[name]:,} images in train and val)"
            sheets.append(image_grid(pictures[:on_sheet], texts, path, title=title))
        means.append(mean_image(pictures, shape))
        captions.append(f"{name}\nmean of {len(pictures)}")
        grey_shares[name] = (float(np.mean([is_grey(picture) for picture in pictures])), len(pictures))
    which = f" of the {len(shown)} largest of {len(sizes)} classes" if len(shown) < len(sizes) else " of each class"
    image_grid(means, captions, folder / "mean_images.png", title=f"Mean images{which}")
    return sheets, grey_shares


def draw_outliers(outliers: pd.DataFrame, size: int, pool: ThreadPoolExecutor, folder: Path) -> None:
    """The most extreme of each kind in turn, so that a frequent kind does not push out the others."""
    turn = outliers.groupby("what").cumcount()
    shown = outliers.loc[turn.sort_values(kind="stable").index[:size]].sort_index()
    captions = [
        f"{row.what} ({row.value:g})\n{Path(row.file).name}\n{_label(row.label, row.split)}"
        for row in shown.itertuples()
    ]
    title = f"Unusual images: {len(shown)} of {len(outliers)}"
    image_grid(thumbnails(shown["path"], pool), captions, folder / "outliers.png", title=title)


def draw_pairs(pairs: pd.DataFrame, size: int, pool: ThreadPoolExecutor, folder: Path) -> None:
    """Duplicates side by side, those with different labels first."""
    shown = pairs[: max(1, size // 2)]
    paths, captions = [], []
    for number, pair in enumerate(shown.to_dict("records"), start=1):
        kind = f"{pair['kind']}, labels differ" if pair["conflict"] else pair["kind"]
        for side in "ab":
            name, belongs = Path(pair[f"file_{side}"]).name, _label(pair[f"label_{side}"], pair[f"split_{side}"])
            paths.append(pair[f"path_{side}"])
            captions.append(f"{number}{side} {kind}\n{name}\n{belongs}")
    title = f"Duplicates: {len(shown)} of {count_of(len(pairs), 'pair')}"
    image_grid(thumbnails(paths, pool), captions, folder / "duplicates.png", columns=4, title=title)


def thumbnails(paths: Sequence[str], pool: ThreadPoolExecutor) -> list[Image.Image]:
    return list(pool.map(thumbnail, paths))


def thumbnail(path: str) -> Image.Image:
    """RGB, as large as galleries show it. Raises UserError where a file is gone or changed since it was checked."""
    try:
        image = decode(Path(path)).image
    except ImageRefused as error:
        raise UserError(f"{path}: {error}, but dataset.py could read it: run dataset.py again.") from error
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    return image


def mean_image(pictures: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 mean of the pictures, each stretched to `size` (width, height)."""
    total = np.zeros((size[1], size[0], 3))
    for picture in pictures:
        total += np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return np.rint(total / len(pictures)).astype(np.uint8)


def is_grey(picture: Image.Image) -> bool:
    pixels = np.asarray(picture)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean()) < GREY


def safe_name(name: str) -> str:
    """A class name as part of a file name that every file system, URL and shell takes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")[:40] or "class"


def _sample(rows: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    return rows.iloc[np.random.default_rng(seed).permutation(len(rows))[:size]]


def _mean_shape(used: pd.DataFrame) -> tuple[int, int]:
    """(width, height) of the median aspect ratio, as large as galleries show it."""
    aspect = float((used["width"] / used["height"]).median())
    return max(1, round(THUMBNAIL * min(1, aspect))), max(1, round(THUMBNAIL * min(1, 1 / aspect)))


def _label(label: str, split: str) -> str:
    return f"{f'label {label}' if label else NO_LABEL}, {split}"


def _report(
    data: DatasetReport,
    used: pd.DataFrame,
    pairs: pd.DataFrame,
    outliers: pd.DataFrame,
    warnings: list[str],
    sheets: list[Path],
    run_dir: RunDir,
) -> ExploreReport:
    folder = run_dir.folder("explore")
    summary = _summary(data, used, pairs, outliers)
    if len(sheets) < len(data.classes):
        summary.append(f"contact sheets: the {len(sheets)} largest of {len(data.classes)} classes")
    summary.append(f"{count_of(len(warnings), 'warning')}; charts, galleries and lists in {folder}")
    telling = ["class_distribution.png", "sizes.png", "brightness.png", "mean_images.png", "outliers.png",
               "duplicates.png", "outliers.csv", "conflicting_duplicates.csv", "warnings.txt"]  # fmt: skip
    train = data.counts["train"]
    return ExploreReport(
        summary=summary + [f"warning: {warning}" for warning in warnings],
        metrics={
            "outliers": float(outliers["file"].nunique()),
            "duplicate_pairs": float(len(pairs)),
            "conflicting_duplicates": float(pairs["conflict"].sum()),
            "imbalance_ratio": round(exploration.imbalance(train), 3),
            "smallest_class": float(min(train.values())),
            "median_width": float(used["width"].median()),
            "median_height": float(used["height"].median()),
            "median_brightness": float(used["brightness"].median()),
            "warnings": float(len(warnings)),
        },
        artifacts=run_dir.relative(*(folder / name for name in telling), *sheets[:2]),
        warnings=warnings,
    )


def _summary(data: DatasetReport, used: pd.DataFrame, pairs: pd.DataFrame, outliers: pd.DataFrame) -> list[str]:
    sizes = [f"{name!r} {count}" for name, count in sorted(data.counts["train"].items(), key=lambda item: -item[1])]
    shown = sizes if len(sizes) <= 5 else [*sizes[:2], "...", *sizes[-2:]]
    width, height, light = used["width"], used["height"], used["brightness"]
    return [
        f"{len(used)} usable images ({data.ledger.refused} refused) of {len(data.classes)} classes; "
        f"training images: {', '.join(shown)}",
        f"{width.median():.0f} x {height.median():.0f} pixels in the median (widths {width.min()} to {width.max()}, "
        f"heights {height.min()} to {height.max()}); {_shares(used['format'])}; {_shares(used['mode'])}",
        f"medians: brightness {light.median():.0f} of 255, contrast {used['contrast'].median():.0f}, "
        f"sharpness {used['sharpness'].median():.0f}",
        f"unusual images: {exploration.kinds(outliers) or 'none'}",
        f"duplicate pairs: {len(pairs)}, {pairs['conflict'].sum()} of them with different labels",
    ]


def _shares(values: "pd.Series[str]") -> str:
    """'JPEG 98 %, PNG 2 %'."""
    return ", ".join(f"{name} {percent(share)}" for name, share in values.value_counts(normalize=True).items())


if __name__ == "__main__":
    cli.main("explore", run, ExploreConfig, "Show what is in the data, and warn of what is wrong with it.")
