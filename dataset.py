"""Index the images, check every file once, and split them without leaks."""

from spectacles import cli
from spectacles.core.config import DatasetConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("dataset", DatasetConfig, __doc__)

import hashlib
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from spectacles.core.device import cpu_count, prepare_device, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_csv
from spectacles.core.results import DatasetReport, RowAccounting
from spectacles.core.run_dir import RunDir
from spectacles.data import duplicates, label_corrections, label_sets, leakage
from spectacles.data.file_index import look_at_all
from spectacles.data.preprocessing import Preprocessing
from spectacles.data.sources import SLICE, Rows, read_rows
from spectacles.data.splits import kept_splits, stratified_split
from spectacles.data.tables import natural_sort
from spectacles.models import backbones, pretrained, recipes
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.tracking import tracking

log = logging.getLogger("spectacles")

SPLITS = ("train", "val", "test")
MEASURES = ["brightness", "contrast", "sharpness", "red", "green", "blue", "border_red", "border_green", "border_blue",
            "saturation", "quantisation", "width", "height", "bytes", "modified", "format"]  # fmt: skip
SPLIT_COLUMNS = ["file", "path", "label", "split", "group", "cluster", "id", "sha256", *MEASURES]
"""Of splits.csv; a column slice_<name> for each of --slice_columns follows."""
TEXT = {"file": str, "path": str, "label": str, "group": str, "id": str, "reason": str, "phash": str, "sha256": str,
        "phash_mirrored": str, "source": str, "given_split": str, "split": str, "status": str, "format": str,
        "mode": str}  # fmt: skip
Frozen = tuple[nn.Module, Preprocessing]


def run(config: DatasetConfig, run_dir: RunDir) -> DatasetReport:
    """Writes index.csv (every row given, with its status), splits.csv, duplicates.csv and issues.csv."""
    _check_fractions(config)
    backbone, notes = load_frozen(config)
    rows = read_rows(config)
    frame, reviewed_run = rows.frame.assign(review=""), ""
    if config.label_fixes is not None:
        frame, reviewed_run = label_corrections.apply(frame, config.label_fixes, rows.multi_label)
        notes.append(label_corrections.summarise(frame["review"]))
    index = check_files(frame, config)
    reject_contradictions(index)
    classes = _classes(index, rows)
    notes += _constant_labels(index, classes) if rows.multi_label else []
    used = index[index["status"] != "rejected"]
    pairs = find_duplicates(used, backbone, config, run_dir)
    cluster = duplicates.clusters(len(used), [pairs[["a", "b"]].to_numpy(), duplicates.links(used["group"])])
    pairs[["a", "b"]] = used.index.to_numpy()[pairs[["a", "b"]].to_numpy()]
    kept = pd.Series("", index=used.index)
    if config.label_fixes is not None:
        kept, note = kept_splits(used["sha256"], reviewed_run, config.output_dir)
        notes.append(note)
    index.loc[used.index, "cluster"] = cluster
    index.loc[used.index, "split"] = assign_splits(used, cluster, kept, classes, rows.multi_label, config)
    pairs = leakage.describe_pairs(pairs, index)
    issues = leakage.list_issues(index, pairs)
    _save(index, pairs, issues, run_dir)
    for split, part in index[index["split"] != ""].groupby("split"):
        source = str(config.train_csv or config.image_dir)
        tracking.log_dataset(part[["file", "label", "split"]], source, f"{run_dir.name}-{split}", str(split))
    return _report(index, pairs, issues, classes, rows, notes, run_dir)


def load_frozen(config: DatasetConfig) -> tuple[Frozen | None, list[str]]:
    """The pretrained backbone whose features are compared; None where there is none, and a sentence that says so.

    Raises UserError, before any file is looked at, for a backbone or weights that are named but cannot be.
    """
    size, alone = recipes.image_size(config), "near duplicates are found by perceptual hash alone"
    if config.duplicate_similarity >= 1:
        return None, [f"{alone} (--duplicate_similarity 1)"]
    if config.no_pretrained:
        return None, [f"{alone}: with --no_pretrained there are no features to compare"]
    try:
        backbone, preprocessing = pretrained.frozen_backbone(config)
    except UserError as error:
        if config.weights is not None:
            raise
        return None, [f"{alone}: {error}"]
    backbones.fitting_feature_dim(config.backbone, backbone, config.in_chans, size)
    return (backbone, preprocessing), []


def find_duplicates(
    used: pd.DataFrame, backbone: Frozen | None, config: DatasetConfig, run_dir: RunDir
) -> pd.DataFrame:
    """Pairs of positions in `used`, as duplicates.find gives them; by hash alone without a backbone."""
    features = None
    if backbone is not None:
        device = prepare_device(resolve_device(config.device))
        log.info("  comparing %d images by features of %s", len(used), config.backbone)
        network, preprocessing = backbone
        # Test rows too; training finds its own in the cache.
        extractor = FeatureExtractor(
            network, config.backbone, preprocessing, run_dir.cache, device, config.batch_size, config.engine
        )
        features = extractor.embed_rows(used, config.num_workers)
    return duplicates.find(used, features, config.duplicate_distance, config.duplicate_similarity)


def check_files(frame: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """The rows with each file's facts and status; a file that several rows name is looked at once."""
    paths = frame["path"].unique()
    facts = look_at_all(paths, config.num_workers or cpu_count())
    facts.insert(0, "path", paths)
    index = frame.merge(facts, on="path", how="left", validate="many_to_one")
    index.loc[index["path"] == "", ["status", "reason"]] = ["rejected", "its path is not UTF-8 text: rename it"]
    index.loc[index["file"] == "", ["status", "reason"]] = ["rejected", "no file name"]
    unlabelled = (index["source"] == "train") & (index["label"] == "") & (index["given_split"] != "test")
    _reject(index, unlabelled, "no label")
    removed = index["review"] == label_corrections.REMOVED
    _reject(index, removed, label_corrections.REMOVED)
    changed = (index["review"] != "") & (index["status"] != "rejected")
    reasons = index.loc[changed, "reason"]
    index.loc[changed, "reason"] = reasons.where(reasons == "", reasons + "; ") + index.loc[changed, "review"]
    index.loc[changed, "status"] = "converted"
    return index.drop(columns="review").assign(split="", cluster=-1)


def reject_contradictions(index: pd.DataFrame) -> None:
    """A file listed again is counted once; listed under two labels it cannot be used at all. In place."""
    labelled = index[(index["source"] == "train") & (index["status"] != "rejected")]
    labels = labelled.groupby("path")["label"].nunique()
    contradictory = index["path"].isin(labels.index[labels > 1]) & (index["source"] == "train")
    _reject(index, contradictory, "listed with different labels")
    alive = index["status"] != "rejected"
    # Test rows may repeat a file: each row of a submission wants its answer.
    training = alive & (index["source"] == "train")
    repeated = training & index[training].duplicated("path").reindex(index.index, fill_value=False)
    _reject(index, repeated, "listed more than once")


def _reject(index: pd.DataFrame, rows: "pd.Series[bool]", reason: str) -> None:
    fresh = rows & (index["status"] != "rejected")
    index.loc[fresh, ["status", "reason"]] = ["rejected", reason]


def _classes(index: pd.DataFrame, rows: Rows) -> list[str]:
    """Class names in natural order; test rows with another label are rejected, in place."""
    texts = index.loc[(index["status"] != "rejected") & (index["given_split"] != "test"), "label"].unique()
    classes = label_sets.names(texts) if rows.multi_label else natural_sort([label for label in texts if label])
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no usable labelled image"
        raise UserError(f"the training data hold {found}: at least two classes with readable images are needed.")
    if rows.multi_label:
        columns = rows.label_column.split(",")
        if len(columns) > 1 and (never := [name for name in columns if name not in classes]):
            raise UserError(f"no usable training image has the label {never[0]!r}: leave it out of --label_column.")
        known = {text for text in index["label"].unique() if set(label_sets.parts(text)) <= set(classes)}
    else:
        known = {"", *classes}
    _reject(index, ~index["label"].isin(known), "its label does not occur in the training data")
    return classes


def _constant_labels(index: pd.DataFrame, classes: list[str]) -> list[str]:
    """Labels that every training image has: there is nothing to learn about them."""
    texts = index.loc[(index["status"] != "rejected") & (index["source"] == "train"), "label"]
    counts = label_sets.count(texts, classes, multi_label=True)
    return [f"every training image has the label {name!r}" for name in classes if counts[name] == len(texts)]


def assign_splits(
    used: pd.DataFrame, cluster: np.ndarray, kept: "pd.Series[str]", classes: list[str], multi_label: bool,
    config: DatasetConfig,
) -> "pd.Series[str]":  # fmt: skip
    """Given splits stay, then those that are kept from another run; what is missing is divided off so that clusters
    stay whole and classes keep their shares."""
    split = used["given_split"].copy()
    given = set(split)
    val_fraction = 0.0 if "val" in given else config.val_fraction
    test_fraction = config.test_fraction if config.test_fraction is not None else 0.0 if "test" in given else 0.15
    divided = split.isin(["", "train"])
    split = split.mask(divided, kept)
    member = pd.Series(cluster, index=used.index)
    settled = split[divided & (split != "")].groupby(member).first()
    beside = (split == "") & member.isin(settled.index)
    split[beside] = settled.reindex(member[beside]).to_numpy()
    open_rows = (split == "").to_numpy()
    codes = label_sets.encode(used.loc[open_rows, "label"], classes, multi_label)
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    # By content, not by row: the same images are split the same way in whatever order they are listed.
    order = np.argsort(used.loc[open_rows, "sha256"].to_numpy(dtype=str), kind="stable")
    ordered = pd.factorize(cluster[open_rows][order])[0]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = stratified_split(codes[order], ordered, fractions, config.seed)
    split[open_rows] = np.array(SPLITS)[numbers]
    for name in ("train", "val"):
        if not (split == name).any():
            raise UserError(
                f"no image is left for the {name} split: give more images of each class, or another --val_fraction."
            )
    return split


def _save(index: pd.DataFrame, pairs: pd.DataFrame, issues: pd.DataFrame, run_dir: RunDir) -> None:
    slices = [column for column in index.columns if column.startswith(SLICE)]
    splits = index.loc[index["split"] != "", [*SPLIT_COLUMNS, *slices]]
    tables = {run_dir.index: index, run_dir.splits: splits, run_dir.duplicates: pairs, run_dir.issues: issues}
    for path, table in tables.items():
        write_csv(path, table)


def _report(
    index: pd.DataFrame,
    pairs: pd.DataFrame,
    issues: pd.DataFrame,
    classes: list[str],
    rows: Rows,
    notes: list[str],
    run_dir: RunDir,
) -> DatasetReport:
    accounting = _account_for_rows(index)
    labelled = index[(index["split"] != "") & (index["label"] != "")]
    counts, images = label_sets.count_splits(labelled, SPLITS, classes, rows.multi_label)
    unlabelled = int(((index["split"] == "test") & (index["label"] == "")).sum())
    sizes = ", ".join(f"{split} {count}" for split, count in images.items())
    summary = [
        f"{accounting.rows} rows = {accounting.used} used + {accounting.converted} converted + "
        f"{accounting.rejected} rejected",
        f"{'labels, any number an image' if rows.multi_label else 'classes'}: {', '.join(classes[:20])}"
        f"{' ...' if len(classes) > 20 else ''} (column {rows.label_column!r})",
        f"images: {sizes}" + (f", unlabelled test {unlabelled}" if unlabelled else ""),
        *label_sets.rare(counts, rows.multi_label),
        *leakage.summarise(pairs, issues),
        *(f"rejected {count}: {reason}" for reason, count in accounting.rejections.items()),
        *notes,
    ]
    metrics = {f"images_{split}": float(count) for split, count in images.items()}
    metrics |= {
        "rows": float(accounting.rows),
        "rejected": float(accounting.rejected),
        "duplicate_pairs": float(len(pairs)),
    }
    metrics["crossing_pairs"] = float(pairs["crosses_split"].sum())
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
        fingerprint=_fingerprint(index),
        label_column=rows.label_column,
        id_column=rows.id_column,
    )


def _account_for_rows(index: pd.DataFrame) -> RowAccounting:
    reasons = {status: Counter(index.loc[index["status"] == status, "reason"]) for status in ("converted", "rejected")}
    status = index["status"].value_counts()
    return RowAccounting(
        rows=len(index),
        used=int(status.get("used", 0)),
        converted=int(status.get("converted", 0)),
        rejected=int(status.get("rejected", 0)),
        conversions=dict(reasons["converted"].most_common()),
        rejections=dict(reasons["rejected"].most_common()),
    )


def _fingerprint(index: pd.DataFrame) -> str:
    """Changes with any used file's content, label or split; not with paths or the order of rows."""
    used = index[index["split"] != ""]
    lines = sorted(used["sha256"] + " " + used["label"] + " " + used["split"])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_fractions(config: DatasetConfig) -> None:
    test_fraction = config.test_fraction or 0.0
    if not (0 < config.val_fraction < 1 and 0 <= test_fraction < 1 and config.val_fraction + test_fraction < 0.95):
        raise UserError(
            f"--val_fraction {config.val_fraction} and --test_fraction {test_fraction}: both must be shares of the "
            "images (0.15 is 15 %), validation above 0, together below 0.95."
        )


def load_index(run_dir: RunDir) -> pd.DataFrame:
    """Every row given, rejected ones too. Text columns hold '' where nothing is known."""
    run_dir.load_result("dataset", DatasetReport)
    return _read(run_dir.index)


def load_split(run_dir: RunDir, *splits: str) -> pd.DataFrame:
    """Used rows of the splits with SPLIT_COLUMNS, and slice_<name> for each of --slice_columns.

    The test split is closed to the train stage: asking for it there is a programming error (PermissionError).
    """
    if run_dir.stage == "train" and "test" in splits:
        raise PermissionError("training must not see the test split")
    run_dir.load_result("dataset", DatasetReport)
    frame = _read(run_dir.splits)
    return frame[frame["split"].isin(splits)].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    slices = [column for column in pd.read_csv(path, nrows=0).columns if column.startswith(SLICE)]
    return pd.read_csv(path, dtype={**TEXT, **dict.fromkeys(slices, str)}, keep_default_na=False)
