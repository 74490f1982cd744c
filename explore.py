"""Show what is in the data, warn of what is wrong with it, and suggest what to try.

The dataset stage has measured every file and computed its features; only samples are decoded again, for galleries.
"""

from spectacles import cli
from spectacles.core.config import ExploreConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("explore", ExploreConfig, __doc__)

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dataset
from spectacles.core.device import cpu_count, prepare_device, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_write, write_csv, write_json
from spectacles.core.results import DatasetReport, ExploreReport
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import count_of, noun_of
from spectacles.data import label_sets
from spectacles.data.tables import NONE
from spectacles.exploration import baseline, contact_sheets, label_cooccurrence, shortcuts, statistics, suggestions
from spectacles.exploration.outliers import UNLIKE_Z, find_outliers, unlike_others
from spectacles.exploration.shortcuts import Shortcut
from spectacles.models import backbones, pretrained, recipes
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.report import data_plots

log = logging.getLogger("spectacles")

MAX_OVERLAYS = 6
MAX_TOLD = 5
"""Shortcuts that get a sentence each, the strongest first."""


def run(config: ExploreConfig, run_dir: RunDir) -> ExploreReport:
    """Writes charts, tables, galleries, baseline.json, warnings.txt and suggestions.txt into explore/."""
    data = run_dir.load_result("dataset", DatasetReport)
    index, pairs = dataset.load_index(run_dir), load_pairs(run_dir)
    used = index[index["status"] != "rejected"].reset_index(drop=True)
    labelled = used[(used["label"] != "") & (used["split"] != "test")]
    features, left_out = frozen_features(used, config, run_dir)
    odd, unlike = find_outliers(used), unlike_others(used, features, config.seed)
    outliers = pd.concat([odd, unlike[unlike["z"] > UNLIKE_Z]], ignore_index=True) if len(unlike) else odd
    given_away, separation = shortcuts.find(labelled, config.seed, data.multi_label)
    measured_baseline = measure_baseline(labelled, features, data, config.seed)

    folder = run_dir.folder("explore")
    write_tables(data, used, pairs, outliers, given_away, folder)
    write_baseline(measured_baseline, folder)
    draw_charts(data, used, folder)
    about_pairs, suspicious = look_at_label_pairs(data, labelled, folder)
    contact_sheets.clear(folder)
    galleries = []
    if config.galleries:
        galleries = draw_galleries(labelled, pairs, odd, unlike, given_away, config, data.multi_label, folder)

    warnings = [
        *statistics.check_files(index, pairs),
        *statistics.check_classes(data),
        *suspicious,
        *[shortcut.sentence() for shortcut in given_away[:MAX_TOLD]],
        *statistics.check_shift(used),
    ]
    advice = suggest(data, used, outliers, given_away, measured_baseline, config)
    for name, lines in (("warnings", warnings), ("suggestions", advice)):
        atomic_write(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    summary = [
        *statistics.describe(data, used, pairs, outliers),
        *about_pairs,
        *_tell_contact_sheets(data),
        *shortcuts.summarise(given_away, separation, noun_of(data.multi_label)),
        *(
            baseline.sentences(measured_baseline, data.multi_label)
            if measured_baseline
            else [f"the baseline was not measured: {left_out}"]
        ),
        f"{count_of(len(warnings), 'warning')}, {count_of(len(advice), 'suggestion')}; charts and lists in {folder}",
    ]
    return ExploreReport(
        summary=summary + [f"warning: {line}" for line in warnings] + [f"suggestion: {line}" for line in advice],
        metrics=_metrics(data, used, pairs, outliers, separation, measured_baseline)
        | {"warnings": float(len(warnings))},
        artifacts=run_dir.relative(*_telling(folder), *galleries),
        warnings=warnings,
        suggestions=advice,
    )


def load_pairs(run_dir: RunDir) -> pd.DataFrame:
    """The dataset stage's duplicate pairs: first those on two sides of a split, then those with different labels."""
    text = dict.fromkeys(["label_a", "label_b", "file_a", "file_b", "split_a", "split_b", "path_a", "path_b"], str)
    types = {**text, "conflict": bool, "crosses_split": bool}
    pairs = pd.read_csv(run_dir.duplicates, dtype=types, keep_default_na=False)
    order = ["crosses_split", "conflict"]
    return pairs.sort_values(order, ascending=False, kind="stable", ignore_index=True)


def frozen_features(used: pd.DataFrame, config: ExploreConfig, run_dir: RunDir) -> tuple[np.ndarray | None, str]:
    """(N, D) features that the dataset stage left in the cache; or None, and why there are none."""
    if config.no_pretrained:
        return None, "with --no_pretrained there are no features to measure with"
    try:
        backbone, preprocessing = pretrained.frozen_backbone(config)
    except UserError as error:
        return None, str(error)
    device = prepare_device(resolve_device(config.device))
    extractor = FeatureExtractor(
        backbone, config.backbone, preprocessing, run_dir.cache, device, config.batch_size, config.engine
    )
    return extractor.embed_rows(used, config.num_workers), ""


def measure_baseline(
    labelled: pd.DataFrame, features: np.ndarray | None, data: DatasetReport, seed: int
) -> dict[str, Any] | None:
    """See baseline.measure; `labelled` are rows, none of the test split, of the table that `features` stand for."""
    if features is None:
        return None
    most = baseline.most_rows(len(data.classes) if data.multi_label else 1)
    rows = labelled.iloc[baseline.sample_clusters(labelled["cluster"].to_numpy(), most, seed)]
    log.info("  measuring the baseline on %d images", len(rows))
    labels = label_sets.encode(rows["label"], data.classes, data.multi_label)
    return baseline.measure(features[rows.index], labels, rows["cluster"].to_numpy(), seed)


def write_tables(
    data: DatasetReport,
    used: pd.DataFrame,
    pairs: pd.DataFrame,
    outliers: pd.DataFrame,
    given_away: Sequence[Shortcut],
    folder: Path,
) -> None:
    modes = used.groupby(["format", "mode", "label"]).size().rename("images").reset_index()
    tables = {
        "class_distribution.csv": statistics.distribution(data, statistics.counts_of(data, used)),
        "modes.csv": modes.rename(columns={"label": "class"}),
        "conflicting_duplicates.csv": pairs[pairs["conflict"]],
        "outliers.csv": outliers.drop(columns="path"),
        "shortcuts.csv": shortcuts.table(given_away),
    }
    for name, table in tables.items():
        write_csv(folder / name, table)


def write_baseline(measured: dict[str, Any] | None, folder: Path) -> None:
    path = folder / "baseline.json"
    if measured is None:
        path.unlink(missing_ok=True)  # of an earlier run with other weights
    else:
        write_json(path, measured)


def look_at_label_pairs(data: DatasetReport, labelled: pd.DataFrame, folder: Path) -> tuple[list[str], list[str]]:
    """What is to be told of labels that go together, and to be warned of; nothing where an image has one class."""
    table, chart = folder / "label_pairs.csv", folder / "label_pairs.png"
    if not data.multi_label:
        for stale in (table, chart):
            stale.unlink(missing_ok=True)
        return [], []
    together = label_cooccurrence.count(labelled["label"], data.classes)
    found = label_cooccurrence.table(together, data.classes, len(labelled))
    write_csv(table, found)
    data_plots.label_pairs(together, data.classes, chart)
    return label_cooccurrence.sentences(found), label_cooccurrence.check(together, found)


def draw_charts(data: DatasetReport, used: pd.DataFrame, folder: Path) -> None:
    """Histograms overlay the classes while there are few enough to tell apart."""
    noun, every = noun_of(data.multi_label), statistics.counts_of(data, used)
    counts = {split: per_class for split, per_class in every.items() if data.images[split]}
    data_plots.class_distribution(counts, data.images, folder / "class_distribution.png", noun)
    data_plots.scatter_sizes(used["width"].to_numpy(), used["height"].to_numpy(), folder / "sizes.png")
    columns = {
        "aspect_ratios": (used["width"] / used["height"], "Aspect ratios", "width / height", True),
        "brightness": (used["brightness"], "Brightness", "mean grey value (0 black, 255 white)", False),
        "contrast": (used["contrast"], "Contrast", "standard deviation of grey values", False),
        "sharpness": (used["sharpness"].clip(lower=0.01), "Sharpness (small: blurred)", "variance of Laplacian", True),
    }
    members = _members(used["label"], data)
    of_what = "label's images" if data.multi_label else "class"
    for name, (values, title, xlabel, log_scale) in columns.items():
        groups = {label: values[own].to_numpy() for label, own in members.items()} or {"": values.to_numpy()}
        data_plots.histogram(groups, title, xlabel, folder / f"{name}.png", log_scale, of_what)


def _members(labels: "pd.Series[str]", data: DatasetReport) -> dict[str, "pd.Series[bool]"]:
    """Name in a chart -> which images it stands for, of several labels each; empty where they are too many for one."""
    if len(data.classes) > MAX_OVERLAYS:
        return {}
    names = [*data.classes, NONE] if data.multi_label else sorted(data.classes)
    found = {name: label_sets.has(labels, name, data.multi_label and name != NONE) for name in names}
    found = {name: own for name, own in ({contact_sheets.NO_LABEL: labels == ""} | found).items() if own.any()}
    return found if 1 < len(found) <= MAX_OVERLAYS else {}


def draw_galleries(
    labelled: pd.DataFrame,
    pairs: pd.DataFrame,
    odd: pd.DataFrame,
    unlike: pd.DataFrame,
    given_away: Sequence[Shortcut],
    config: ExploreConfig,
    multi_label: bool,
    folder: Path,
) -> list[Path]:
    """Everything that shows photos; returns those worth showing in a report, the most telling first."""
    size, seed = config.gallery_size, config.seed
    with ThreadPoolExecutor(max(1, config.num_workers or cpu_count())) as pool:
        class_sheets, means = contact_sheets.draw_classes(labelled, size, seed, pool, folder, multi_label)
        shown = [
            means,
            contact_sheets.draw_outliers(odd, size, pool, folder / "outliers.png"),
            contact_sheets.draw_pairs(pairs, size, pool, folder / "duplicates.png"),
        ]
        if len(unlike):
            shown.append(contact_sheets.draw_unlike(unlike, size, pool, folder / "unlike_others.png"))
        if given_away:
            shown.append(
                contact_sheets.draw_shortcuts(labelled, given_away, size, seed, pool, folder / "shortcuts.png")
            )
    return [*reversed(shown), *class_sheets[:2]]


def suggest(
    data: DatasetReport,
    used: pd.DataFrame,
    outliers: pd.DataFrame,
    given_away: Sequence[Shortcut],
    measured_baseline: dict[str, Any] | None,
    config: ExploreConfig,
) -> list[str]:
    """What to try, each with its reason."""
    train = data.counts["train"]
    look_at = "explore/outliers.png and unlike_others.png" if config.galleries else "explore/outliers.csv"
    size, native = recipes.image_size(config), backbones.native_size(config.backbone)
    return [
        *dict.fromkeys(
            f"{shortcut.remedy} (images {shortcut.rule} give a {noun_of(data.multi_label)} away)"
            for shortcut in given_away[:MAX_TOLD]
        ),
        *suggestions.group_column(used),
        *(suggestions.rare_label(train, data.images["train"]) if data.multi_label else suggestions.balance(train)),
        *suggestions.more_images(data),
        *suggestions.learning_curve(measured_baseline, data.multi_label),
        *suggestions.unusual(outliers, look_at),
        *suggestions.resize(used, config.resize),
        *suggestions.image_size(used, size, native),
        *suggestions.size_mix(used),
    ]


def _tell_contact_sheets(data: DatasetReport) -> list[str]:
    if len(data.classes) <= contact_sheets.MAX_CONTACT_SHEETS:
        return []
    of_all = count_of(len(data.classes), noun_of(data.multi_label))
    return [f"contact sheets: the {contact_sheets.MAX_CONTACT_SHEETS} largest of {of_all}"]


def _metrics(
    data: DatasetReport,
    used: pd.DataFrame,
    pairs: pd.DataFrame,
    outliers: pd.DataFrame,
    separation: float | None,
    measured_baseline: dict[str, Any] | None,
) -> dict[str, float | None]:
    train = data.counts["train"]
    metrics: dict[str, float | None] = {
        "outliers": float(outliers["file"].nunique()),
        "duplicate_pairs": float(len(pairs)),
        "conflicting_duplicates": float(pairs["conflict"].sum()),
        "imbalance_ratio": round(suggestions.imbalance(train), 3),
        "smallest_class": float(min(train.values())),
        "median_width": float(used["width"].median()),
        "median_height": float(used["height"].median()),
        "median_brightness": float(used["brightness"].median()),
        "shortcut_balanced_accuracy": separation,
    }
    scores = ("grouped_split", "random_split") if measured_baseline else ()
    return metrics | {f"baseline_{name}": measured_baseline[name]["accuracy"] for name in scores if measured_baseline}


def _telling(folder: Path) -> list[Path]:
    """Charts and lists worth showing that exist."""
    names = ("class_distribution.png", "label_pairs.png", "sizes.png", "brightness.png", "outliers.csv",
             "shortcuts.csv", "conflicting_duplicates.csv", "label_pairs.csv", "baseline.json", "warnings.txt",
             "suggestions.txt")  # fmt: skip
    return [folder / name for name in names if (folder / name).is_file()]
