"""Show what is in the data, warn of what is wrong with it, and suggest what to try.

The dataset stage has measured every file and computed its features; only samples are decoded again, for galleries.
"""

from spectacles import cli
from spectacles.core.config import ExploreConfig, to_plain

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("explore", ExploreConfig, __doc__)

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from spectacles.core.csv_cells import protect, write_csv
from spectacles.core.device import cpu_count, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_write, write_json
from spectacles.core.results import DatasetReport, ExploreReport
from spectacles.core.run_dir import RunDir
from spectacles.core.value_ranges import ValueRanges
from spectacles.core.wording import count_of, noun_of
from spectacles.data import label_sets, schemas, stratification
from spectacles.data.label_text import NONE, escape
from spectacles.exploration import baseline, contact_sheets, label_cooccurrence, shortcuts, statistics, suggestions
from spectacles.exploration.findings import Findings
from spectacles.exploration.outliers import find_outliers, rank_by_distance
from spectacles.models import backbones, pretrained, recipes
from spectacles.models.feature_blocks import FeatureBlocks, blocks_for
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.torch_device import prepare_device
from spectacles.report import data_plots

log = logging.getLogger("spectacles")

MAX_OVERLAYS = 6
MAX_SHORTCUTS = 5
"""Shortcuts that get a warning each, the strongest first."""


def run(config: ExploreConfig, run_dir: RunDir) -> ExploreReport:
    """Writes charts, tables, galleries, baseline.json, warnings.txt and suggestions.txt into explore/."""
    findings = find(config, run_dir)
    data, folder = findings.data, run_dir.folder("explore")
    write_tables(findings, config.spreadsheet_safe, folder)
    draw_charts(data, findings.used, folder)
    settings = run_dir.load_config() | to_plain(config)
    pair_sentences, pair_warnings = describe_label_pairs(data, findings.labelled, config.spreadsheet_safe, folder)
    contact_sheets.clear(folder)
    galleries = draw_galleries(findings, config, folder) if config.galleries else []
    warnings = [
        *statistics.check_files(findings.index, findings.pairs),
        *statistics.check_classes(data, settings.get("test_fraction")),
        *pair_warnings,
        *[shortcut.sentence() for shortcut in findings.shortcuts[:MAX_SHORTCUTS]],
        *statistics.check_shift(findings.used),
    ]
    advice = suggest(findings, config, settings)
    for name, lines in (("warnings", warnings), ("suggestions", advice)):
        atomic_write(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    counts = f"{count_of(len(warnings), 'warning')}, {count_of(len(advice), 'suggestion')}"
    return ExploreReport(
        summary=[
            *describe(findings, pair_sentences),
            f"{counts}; charts and lists in {folder}",
            *[f"warning: {line}" for line in warnings],
            *[f"suggestion: {line}" for line in advice],
        ],
        metrics=_metrics(findings) | {"warnings": float(len(warnings))},
        artifacts=run_dir.relative(*_main_files(folder), *galleries),
        warnings=warnings,
        suggestions=advice,
    )


def find(config: ExploreConfig, run_dir: RunDir) -> Findings:
    data = run_dir.load_result("dataset", DatasetReport)
    index, pairs = schemas.load_index(run_dir), load_pairs(run_dir)
    used = index[index["status"] != "rejected"].reset_index(drop=True)
    labelled = used[(used["label"] != "") & (used["split"] != "test")]
    features, why_no_baseline = frozen_features(used, data.value_ranges, config, run_dir)
    file_outliers = find_outliers(used)
    by_distance = rank_by_distance(used, features and features.last, config.seed)
    rules, separation = shortcuts.find(labelled, config.seed, data.multi_label)
    return Findings(
        data=data,
        index=index,
        used=used,
        pairs=pairs,
        file_outliers=file_outliers,
        by_distance=by_distance,
        shortcuts=rules,
        separation=separation,
        baseline=None if features is None else measure_baseline(labelled, features, data, config.seed),
        why_no_baseline=why_no_baseline,
    )


def load_pairs(run_dir: RunDir) -> pd.DataFrame:
    """The dataset stage's duplicate pairs: first those in two splits, then those with different labels."""
    pairs = schemas.DUPLICATE_PAIRS.read(run_dir.duplicates)
    order = ["crosses_split", "conflict"]
    return pairs.sort_values(order, ascending=False, kind="stable", ignore_index=True)


def frozen_features(
    used: pd.DataFrame, ranges: ValueRanges, config: ExploreConfig, run_dir: RunDir
) -> tuple[FeatureBlocks | None, str]:
    """The features that the dataset stage left in the cache; or None and the reason."""
    if config.no_pretrained:
        return None, "with --no_pretrained there are no features to measure with"
    try:
        backbone, preprocessing = pretrained.frozen_backbone(config)
    except UserError as error:
        return None, str(error)
    preprocessing = replace(preprocessing, value_ranges=ranges)
    device = prepare_device(resolve_device(config.device))
    extractor = FeatureExtractor(backbone, config.backbone, preprocessing, run_dir.cache, device, config)
    return extractor.embed_rows(used, config.num_workers, blocks_for(len(used))), ""


def measure_baseline(labelled: pd.DataFrame, features: FeatureBlocks, data: DatasetReport, seed: int) -> dict[str, Any]:
    """See baseline.measure. `features` are of the table that `labelled` was selected from, by its index."""
    limit = baseline.most_rows(len(data.classes) if data.multi_label else 1)
    rows = labelled.iloc[stratification.sample_clusters(labelled["cluster"].to_numpy(), limit, seed)]
    log.info("  measuring the baseline on %d images", len(rows))
    labels = label_sets.encode(rows["label"], data.classes, data.multi_label)
    return baseline.measure(features.rows(rows.index.to_numpy()), labels, rows["cluster"].to_numpy(), seed)


def write_tables(findings: Findings, spreadsheet_safe: bool, folder: Path) -> None:
    data, used, pairs = findings.data, findings.used, findings.pairs
    modes = used.groupby(["format", "mode", "label"]).size().rename("images").reset_index()
    tables = {
        "class_distribution": statistics.distribution(data, statistics.counts_of(data, used)),
        "modes": modes.rename(columns={"label": "class"}),
        "shortcuts": shortcuts.table(findings.shortcuts),
    }
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", protect(table, spreadsheet_safe))
    conflicts = pairs[pairs["conflict"]]
    schemas.DUPLICATE_PAIRS.write(folder / "conflicting_duplicates.csv", conflicts, spreadsheet_safe)
    schemas.OUTLIERS.write(folder / "outliers.csv", findings.outliers, spreadsheet_safe)
    if findings.baseline is None:
        (folder / "baseline.json").unlink(missing_ok=True)  # of an earlier run with other weights
    else:
        write_json(folder / "baseline.json", findings.baseline)


def describe_label_pairs(
    data: DatasetReport, labelled: pd.DataFrame, spreadsheet_safe: bool, folder: Path
) -> tuple[list[str], list[str]]:
    """(sentences, warnings) about labels that occur together, and a table and a chart of them; nothing where an image
    has one class."""
    table_path, chart = folder / "label_pairs.csv", folder / "label_pairs.png"
    if not data.multi_label:
        for stale in (table_path, chart):
            stale.unlink(missing_ok=True)
        return [], []
    together = label_cooccurrence.count(labelled["label"], data.classes)
    table = label_cooccurrence.table(together, data.classes, len(labelled))
    write_csv(table_path, protect(table, spreadsheet_safe))
    data_plots.label_pairs(together, data.classes, chart)
    return label_cooccurrence.sentences(table), label_cooccurrence.check(together, table)


def draw_charts(data: DatasetReport, used: pd.DataFrame, folder: Path) -> None:
    """Histograms overlay the classes where these are few enough."""
    counts = statistics.counts_of(data, used)
    counts = {split: per_class for split, per_class in counts.items() if data.images[split]}
    data_plots.class_distribution(counts, data.images, folder / "class_distribution.png", noun_of(data.multi_label))
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
        groups = {label: values[chosen].to_numpy() for label, chosen in members.items()} or {"": values.to_numpy()}
        data_plots.histogram(groups, title, xlabel, folder / f"{name}.png", log_scale, of_what)


def _members(labels: "pd.Series[str]", data: DatasetReport) -> dict[str, "pd.Series[bool]"]:
    """Name in a chart -> the images that belong to it (with several labels an image may be in several); empty where a
    chart cannot hold them all."""
    if len(data.classes) > MAX_OVERLAYS:
        return {}
    names = [*map(escape, data.classes), NONE] if data.multi_label else sorted(data.classes)
    members = {contact_sheets.NO_LABEL: labels == ""}
    members |= {name: label_sets.belongs(labels, name, data.multi_label) for name in names}
    members = {name: chosen for name, chosen in members.items() if chosen.any()}
    return members if 1 < len(members) <= MAX_OVERLAYS else {}


def draw_galleries(findings: Findings, config: ExploreConfig, folder: Path) -> list[Path]:
    """Everything that shows photos; returns the galleries worth showing in a report, the most important first."""
    size, seed = config.gallery_size, config.seed
    labelled = findings.labelled
    with ThreadPoolExecutor(max(1, config.num_workers or cpu_count())) as pool:
        load = partial(contact_sheets.thumbnails, pool=pool, ranges=findings.data.value_ranges)
        class_sheets, means = contact_sheets.draw_classes(labelled, size, seed, load, folder, findings.data.multi_label)
        galleries = [
            means,
            contact_sheets.draw_outliers(findings.file_outliers, size, load, folder / "outliers.png"),
            contact_sheets.draw_pairs(findings.pairs, size, load, folder / "duplicates.png"),
        ]
        if len(findings.by_distance):
            path = folder / "feature_outliers.png"
            galleries.append(contact_sheets.draw_feature_outliers(findings.by_distance, size, load, path))
        if findings.shortcuts:
            path = folder / "shortcuts.png"
            galleries.append(contact_sheets.draw_shortcuts(labelled, findings.shortcuts, size, seed, load, path))
    return [*reversed(galleries), *class_sheets[:2]]


def suggest(findings: Findings, config: ExploreConfig, settings: Mapping[str, Any]) -> list[str]:
    """What to try, each with its reason; `settings` are all that are known of the run."""
    data, used = findings.data, findings.used
    train, noun = data.counts["train"], noun_of(data.multi_label)
    listed_in = "explore/outliers.png and feature_outliers.png" if config.galleries else "explore/outliers.csv"
    size, native = recipes.image_size(config), backbones.native_size(config.backbone)
    lines = [
        *dict.fromkeys(
            f"{shortcut.remedy} (images {shortcut.rule} give a {noun} away)"
            for shortcut in findings.shortcuts[:MAX_SHORTCUTS]
        ),
        *suggestions.group_column(used),
        *(suggestions.rare_label(train, data.images["train"]) if data.multi_label else suggestions.balance(train)),
        *suggestions.more_images(data),
        *suggestions.learning_curve(findings.baseline, data.multi_label),
        *suggestions.review_outliers(findings.outliers, listed_in),
        *suggestions.resize(used, config.resize),
        *suggestions.image_size(used, size, native),
        *suggestions.size_mix(used, settings),
    ]
    return suggestions.unless_set(lines, settings)


def describe(findings: Findings, pair_sentences: list[str]) -> list[str]:
    """What there is, for the summary."""
    data, noun = findings.data, noun_of(findings.data.multi_label)
    sheets = []
    if len(data.classes) > contact_sheets.MAX_CONTACT_SHEETS:
        sheets = [f"contact sheets: the {contact_sheets.MAX_CONTACT_SHEETS} largest of "
                  f"{count_of(len(data.classes), noun)}"]  # fmt: skip
    if findings.baseline is None:
        baseline_sentences = [f"the baseline was not measured: {findings.why_no_baseline}"]
    else:
        baseline_sentences = baseline.sentences(findings.baseline, data.multi_label)
    return [
        *statistics.describe(data, findings.used, findings.pairs, findings.outliers),
        *pair_sentences,
        *sheets,
        *shortcuts.summarise(findings.shortcuts, findings.separation, noun),
        *baseline_sentences,
    ]


def _metrics(findings: Findings) -> dict[str, float | None]:
    used, pairs, train = findings.used, findings.pairs, findings.data.counts["train"]
    metrics: dict[str, float | None] = {
        "outliers": float(findings.outliers["file"].nunique()),
        "duplicate_pairs": float(len(pairs)),
        "conflicting_duplicates": float(pairs["conflict"].sum()),
        "imbalance_ratio": round(suggestions.imbalance(train), 3),
        "smallest_class": float(min(train.values())),
        "median_width": float(used["width"].median()),
        "median_height": float(used["height"].median()),
        "median_brightness": float(used["brightness"].median()),
        "shortcut_balanced_accuracy": findings.separation,
    }
    if findings.baseline is not None:
        for name in ("grouped_split", "random_split"):
            metrics[f"baseline_{name}"] = findings.baseline[name]["accuracy"]
    return metrics


def _main_files(folder: Path) -> list[Path]:
    """Charts and lists worth showing in a report, those that exist."""
    names = ("class_distribution.png", "label_pairs.png", "sizes.png", "brightness.png", "outliers.csv",
             "shortcuts.csv", "conflicting_duplicates.csv", "label_pairs.csv", "baseline.json", "warnings.txt",
             "suggestions.txt")  # fmt: skip
    return [folder / name for name in names if (folder / name).is_file()]
