"""Index the images, check every file once, and split them without leaks."""

from spectacles import cli
from spectacles.core.config import DatasetConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("dataset", DatasetConfig, __doc__)

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
from torch import nn

from spectacles.core.device import cpu_count, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.results import DatasetReport
from spectacles.core.run_dir import RunDir
from spectacles.core.value_ranges import ValueRanges
from spectacles.data import (
    duplicates,
    label_corrections,
    label_sets,
    label_text,
    leakage,
    row_accounting,
    schemas,
    splits,
)
from spectacles.data.preprocessing import Preprocessing
from spectacles.data.sources import Rows, read_rows
from spectacles.models import backbones, pretrained, recipes
from spectacles.models.feature_blocks import LAST
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.models.torch_device import prepare_device
from spectacles.tracking import tracking

log = logging.getLogger("spectacles")

Frozen = tuple[nn.Module, Preprocessing]


def run(config: DatasetConfig, run_dir: RunDir) -> DatasetReport:
    """Writes index.csv (every row given, with its status), splits.csv, duplicates.csv and issues.csv."""
    splits.check_fractions(config)
    backbone, notes = load_frozen(config)
    rows = read_rows(config)
    notes += rows.notes
    frame, reviewed_run = rows.frame.assign(review=""), ""
    if config.label_fixes is not None:
        frame, reviewed_run = label_corrections.apply_fixes(frame, config.label_fixes, rows.multi_label)
        notes.append(label_corrections.summarise_fixes(frame["review"]))
    index, ranges, remarks = row_accounting.check_files(frame, config.num_workers or cpu_count())
    notes += remarks
    row_accounting.reject_contradictions(index)
    classes, about_positive = row_accounting.order_classes(
        row_accounting.find_classes(index, rows), rows.multi_label, config.positive_class
    )
    notes += about_positive
    notes += label_text.look_alikes(classes) + row_accounting.lost_classes(index, rows.multi_label)
    if rows.multi_label:
        notes += row_accounting.constant_labels(index, classes)
    used = index[index["status"] != "rejected"].copy()
    pairs, used["cluster"] = find_duplicates(used, backbone, ranges, config, run_dir)
    previous = pd.Series("", index=used.index)
    if config.label_fixes is not None:
        previous, note = splits.previous_splits(used["sha256"], reviewed_run, config.output_dir)
        notes.append(note)
    index.loc[used.index, "cluster"] = used["cluster"]
    index.loc[used.index, "split"] = splits.assign_splits(used, previous, classes, rows.multi_label, config)
    notes += splits.explain_empty_test(index[index["split"] != ""], rows.multi_label, config)
    pairs = leakage.describe_pairs(pairs, index)
    issues = leakage.list_issues(index, pairs)
    _save(index, pairs, issues, config.spreadsheet_safe, run_dir)
    _track(index, str(config.train_csv or config.image_dir), run_dir)
    remarks = [*leakage.summarise(pairs, issues), *notes]
    return replace(_report(index, pairs, classes, rows, remarks, run_dir), value_ranges=ranges)


def load_frozen(config: DatasetConfig) -> tuple[Frozen | None, list[str]]:
    """The pretrained backbone whose features are compared; None where there is none, and a sentence with the reason.

    Raises UserError, before any file is read, for a backbone or weights that were named but cannot be loaded.
    """
    size = recipes.image_size(config)
    hash_only = "near duplicates are found by perceptual hash alone"
    if config.duplicate_similarity >= 1:
        return None, [f"{hash_only} (--duplicate_similarity 1)"]
    if config.no_pretrained:
        return None, [f"{hash_only}: with --no_pretrained there are no features to compare"]
    try:
        backbone, preprocessing = pretrained.frozen_backbone(config)
    except UserError as error:
        if config.weights is not None:
            raise
        return None, [f"{hash_only}: {error}"]
    backbones.fitting_feature_dim(config.backbone, backbone, config.in_chans, size)
    return (backbone, preprocessing), []


def find_duplicates(
    used: pd.DataFrame, backbone: Frozen | None, ranges: ValueRanges, config: DatasetConfig, run_dir: RunDir
) -> tuple[pd.DataFrame, np.ndarray]:
    """(pairs as duplicates.find returns them, but with index labels of `used`; cluster of each row). Without a backbone
    by hash alone."""
    features = None
    if backbone is not None:
        device = prepare_device(resolve_device(config.device))
        log.info("  comparing %d images by features of %s", len(used), config.backbone)
        network, preprocessing = backbone
        # Test rows too; training finds its own in the cache.
        preprocessing = replace(preprocessing, value_ranges=ranges)
        extractor = FeatureExtractor(network, config.backbone, preprocessing, run_dir.cache, device, config)
        features = extractor.embed_rows(used, config.num_workers, (LAST,)).last
    pairs = duplicates.find(used, features, config.duplicate_distance, config.duplicate_similarity)
    positions = pairs[["a", "b"]].to_numpy()
    cluster = duplicates.clusters(len(used), [positions, duplicates.links(used["group"])])
    pairs[["a", "b"]] = used.index.to_numpy()[positions]
    return pairs, cluster


def _save(
    index: pd.DataFrame, pairs: pd.DataFrame, issues: pd.DataFrame, spreadsheet_safe: bool, run_dir: RunDir
) -> None:
    schemas.INDEX.write(run_dir.index, index, spreadsheet_safe)
    schemas.SPLIT_ROWS.write(run_dir.splits, index[index["split"] != ""], spreadsheet_safe)
    schemas.DUPLICATE_PAIRS.write(run_dir.duplicates, pairs, spreadsheet_safe)
    schemas.ISSUES.write(run_dir.issues, issues, spreadsheet_safe)


def _track(index: pd.DataFrame, source: str, run_dir: RunDir) -> None:
    for split, part in index[index["split"] != ""].groupby("split"):
        tracking.log_dataset(part[["file", "label", "split"]], source, f"{run_dir.name}-{split}", str(split))


def _report(
    index: pd.DataFrame, pairs: pd.DataFrame, classes: list[str], rows: Rows, remarks: list[str], run_dir: RunDir
) -> DatasetReport:
    """`remarks` are further sentences of the summary."""
    accounting = row_accounting.account_for_rows(index)
    labelled = index[(index["split"] != "") & (index["label"] != "")]
    counts, images = label_sets.count_splits(labelled, splits.SPLITS, classes, rows.multi_label)
    unlabelled = int(((index["split"] == "test") & (index["label"] == "")).sum())
    sizes = ", ".join(f"{split} {count}" for split, count in images.items())
    summary = [
        f"{accounting.rows} rows = {accounting.used} used + {accounting.converted} converted + "
        f"{accounting.rejected} rejected",
        *(f"rejected {count}: {reason}" for reason, count in accounting.rejections.items()),
        f"{'labels, any number per image' if rows.multi_label else 'classes'}: {', '.join(classes[:20])}"
        f"{' ...' if len(classes) > 20 else ''} (column {rows.label_column!r})",
        f"images: {sizes}" + (f", unlabelled test {unlabelled}" if unlabelled else ""),
        *label_sets.rare(counts, rows.multi_label),
        *remarks,
    ]
    metrics = {f"images_{split}": float(count) for split, count in images.items()}
    metrics |= {"rows": float(accounting.rows), "rejected": float(accounting.rejected)}
    metrics |= {"duplicate_pairs": float(len(pairs)), "crossing_pairs": float(pairs["crosses_split"].sum())}
    return DatasetReport(
        summary=summary,
        metrics=metrics,
        artifacts=run_dir.relative(run_dir.splits, run_dir.issues, run_dir.duplicates, run_dir.index),
        classes=classes,
        multi_label=rows.multi_label,
        row_accounting=accounting,
        counts=counts,
        images=images,
        unlabelled=unlabelled,
        fingerprint=row_accounting.fingerprint(index, classes),
        label_column=rows.label_column,
        id_column=rows.id_column,
    )
