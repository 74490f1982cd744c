"""Show which images the model gets wrong, which labels look wrong, and which parts of a photo predictions rest on."""

from spectacles import cli
from spectacles.core.config import ErrorAnalysisConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("error_analysis", ErrorAnalysisConfig, __doc__)

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectacles.core.csv_cells import protect, write_csv
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.core.results import ErrorReport, EvaluateReport
from spectacles.core.run_dir import RunDir
from spectacles.data import label_corrections, label_sets, schemas, similarity
from spectacles.data.splits import SPLITS
from spectacles.evaluation import cross_training, label_quality
from spectacles.evaluation.error_explanations import explain_decisions
from spectacles.inference.predictor import Predictor
from spectacles.models import pretrained
from spectacles.models.bundle import BundleInfo
from spectacles.models.classifier import Classifier
from spectacles.models.feature_blocks import FeatureBlocks, blocks_for, describe
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.report import error_galleries, review_page
from spectacles.report.review_page import Review

log = logging.getLogger("spectacles")

FOLDS = 5
"""Of the logistic regression that checks labels out of fold."""


def run(config: ErrorAnalysisConfig, run_dir: RunDir) -> ErrorReport:
    """Writes misclassified.csv, nearest.csv, confused_pairs.csv, noisy_labels.csv, review.html, and galleries."""
    if config.fine_tuned_folds == 1:
        raise UserError("--fine_tuned_folds 1 leaves no training data: use 0, or at least 2.")
    scored_on = run_dir.load_result("evaluate", EvaluateReport).scored_on
    predicted = load_predictions(run_dir)
    scored = predicted[predicted["split"] == scored_on]
    predictor = Predictor(run_dir.bundle, resolve_device(config.device), config.batch_size, config.engine, images=0)
    classifier, info = predictor.classifier, predictor.info
    folder = run_dir.folder("error_analysis")

    errors = find_errors(predicted)
    pairs = count_confusions(scored, info)
    rows, features, feature_notes = labelled_features(config, run_dir, classifier, info)
    doubtful, label_notes = check_labels(config, run_dir, rows, features, info)
    units = similarity.centred(features.last)
    nearest = similarity.nearest_training_images(errors, rows, units)
    tables = write_tables(list_tables(errors, pairs, doubtful, nearest), folder, config.spreadsheet_safe)
    review = Review(
        run_dir, doubtful, rows, units, info.classes, info.label_column, info.multi_label,
        earlier=label_corrections.fixes_of_run(run_dir), value_ranges=info.preprocessing.value_ranges,
    )  # fmt: skip
    page = review_page.write(review, folder / "review.html", config.galleries, config.num_workers)

    shown = errors[errors["split"] == scored_on].head(config.gallery_size)
    galleries = []
    if config.galleries:
        to_check = doubtful.head(config.gallery_size)
        ranges = info.preprocessing.value_ranges
        galleries = error_galleries.draw(shown, nearest, to_check, folder, scored_on, config.num_workers, ranges)
    explanations, findings, measured = explain_decisions(scored, shown, predictor, config, folder, scored_on)

    counts = {split: int((errors["split"] == split).sum()) for split in predicted["split"].unique()}
    suspected = int(doubtful["suspected"].sum())
    return ErrorReport(
        summary=[
            f"{scored_on}: {counts.get(scored_on, 0)} of {len(scored)} images misclassified: {tables[0]}",
            *most_frequent_confusion(pairs, tables[1]),
            *labels_to_review(doubtful, info.multi_label, tables[2], page),
            *findings, *label_notes, *feature_notes,
        ],
        metrics={f"{split}_errors": float(count) for split, count in counts.items()}
        | {"suspected_labels": float(suspected), "labels_to_check": float(len(doubtful))}
        | measured,
        artifacts=run_dir.relative(*galleries, *explanations, page, *tables),
        errors=counts.get(scored_on, 0),
        suspected_labels=suspected,
    )  # fmt: skip


def load_predictions(run_dir: RunDir) -> pd.DataFrame:
    """The labelled images of evaluate's predictions.csv that could be read."""
    if not run_dir.predictions.is_file():
        raise UserError(f"{run_dir.predictions} is missing: run `python evaluate.py --run_name {run_dir.name}` first.")
    table = schemas.PREDICTIONS.read(run_dir.predictions)
    return table[(table["status"] == "predicted") & (table["label"] != "")]


def find_errors(predicted: pd.DataFrame) -> pd.DataFrame:
    """The misclassified rows, most confident first: these are the most instructive, or wrongly labelled."""
    errors = predicted[predicted["label"] != predicted["predicted"]]
    return errors.sort_values("confidence", ascending=False, kind="stable")


def count_confusions(scored: pd.DataFrame, info: BundleInfo) -> pd.DataFrame:
    """`confused_pairs` or, with any number of labels per image, `label_errors`; the most frequent first."""
    pairs = label_errors(scored, info.classes) if info.multi_label else confused_pairs(scored)
    return pairs.sort_values(["count", "share"], ascending=False, kind="stable", ignore_index=True)


def confused_pairs(scored: pd.DataFrame) -> pd.DataFrame:
    """Columns label, predicted, count, and share of the label's images."""
    errors = scored[scored["label"] != scored["predicted"]]
    pairs = errors.groupby(["label", "predicted"]).size().reset_index(name="count")
    pairs["share"] = pairs["count"] / scored["label"].value_counts().reindex(pairs["label"]).to_numpy()
    return pairs


def label_errors(scored: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Columns label, error, count, share: of the images with the label (missed) or without it (added)."""
    labels, decided = (label_sets.encode(scored[column], classes, True) for column in ("label", "predicted"))
    wrong = {"missed": labels & ~decided, "added": decided & ~labels}
    possible = {"missed": labels.sum(axis=0), "added": (1 - labels).sum(axis=0)}
    counted = [
        (name, error, count, count / possible[error][place])
        for error, matrix in wrong.items()
        for place, (name, count) in enumerate(zip(classes, matrix.sum(axis=0).tolist(), strict=True))
        if count
    ]
    return pd.DataFrame(counted, columns=["label", "error", "count", "share"])


def labelled_features(
    config: ErrorAnalysisConfig, run_dir: RunDir, classifier: Classifier, info: BundleInfo
) -> tuple[pd.DataFrame, FeatureBlocks, list[str]]:
    """All labelled rows, their features, and notes for the summary; see `frozen_backbone`."""
    rows = schemas.load_split(run_dir, *SPLITS)
    rows = rows[rows["label"] != ""].reset_index(drop=True)
    backbone, notes = frozen_backbone(run_dir, classifier, info)
    log.info("  checking %d labels with features of %s", len(rows), info.backbone)
    device = torch.device(resolve_device(config.device))
    extractor = FeatureExtractor(backbone, info.backbone, info.preprocessing, run_dir.cache, device, config)
    return rows, extractor.embed_rows(rows, config.num_workers, blocks_for(len(rows))), notes


def frozen_backbone(run_dir: RunDir, classifier: Classifier, info: BundleInfo) -> tuple[torch.nn.Module, list[str]]:
    """The backbone as it was before training: it has not seen the labels, so it cannot have memorised wrong ones.

    Without pretrained weights its features would be random: then the trained backbone, with a note for the summary.
    """
    reason = "it was trained from random weights"
    try:
        backbone = pretrained.frozen_backbone_of_run(run_dir, info)
        if backbone is not None:
            return backbone, []
    except UserError as error:
        reason = str(error)
    note = "labels were checked with features of the trained network, which has learnt from them and so misses more"
    return classifier.backbone, [f"{note} ({reason})"]


def check_labels(
    config: ErrorAnalysisConfig, run_dir: RunDir, rows: pd.DataFrame, features: FeatureBlocks, info: BundleInfo
) -> tuple[pd.DataFrame, list[str]]:
    """The labelled images whose out-of-fold prediction differs from the label, least credible first; and notes.

    Columns file, label, suggested_label, score, probability_given, probability_suggested, suspected, split, path and
    row (the position in `rows`). With any number of labels per image also doubtful_label, the least credible one, to
    which score and probabilities refer. Labels decided in the review that the run was made with are left out.
    """
    labels = label_sets.encode(rows["label"], info.classes, info.multi_label)
    groups = rows["cluster"].to_numpy(dtype=np.int64)
    probabilities, blocks = label_quality.out_of_fold_probabilities(features, labels, FOLDS, config.seed, groups)
    if config.fine_tuned_folds:
        device = resolve_device(config.device)
        fine_tuned = cross_training.out_of_fold_probabilities(
            rows, labels, run_dir, config.fine_tuned_folds, config.seed, device
        )
        probabilities = label_quality.average(probabilities, fine_tuned)
    notes = [f"labels were checked with features of {describe(blocks)}"]
    unknown = np.isnan(probabilities)
    unchecked = int((unknown if info.multi_label else unknown.any(axis=1)).sum())
    if unchecked:
        notes.append(f"{unchecked} labels could not be checked: too few independent images of their class")
    doubtful = _label_table(rows, label_quality.rank_label_issues(labels, probabilities), info.classes)
    decided = doubtful["file"].isin(label_corrections.fixes_of_run(run_dir)["file"])
    if decided.any():
        notes.append(f"{decided.sum()} labels decided in an earlier review are not listed again")
    return doubtful[~decided].reset_index(drop=True), notes


def _label_table(rows: pd.DataFrame, ranked: dict[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    listed = rows.loc[ranked["row"]].reset_index(drop=True)
    doubtful = {"doubtful_label": [classes[place] for place in ranked["doubtful"]]} if "doubtful" in ranked else {}
    return listed[["file", "label"]].assign(
        suggested_label=label_sets.decode(ranked["suggested"], classes),
        **doubtful,
        score=ranked["score"].round(6),
        probability_given=ranked["p_given"].round(6),
        probability_suggested=ranked["p_suggested"].round(6),
        suspected=ranked["suspected"],
        split=listed["split"],
        path=listed["path"],
        row=ranked["row"],
    )


def list_tables(
    errors: pd.DataFrame, pairs: pd.DataFrame, doubtful: pd.DataFrame, nearest: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Name of the file -> table."""
    return {
        "misclassified": schemas.MISCLASSIFIED.select(errors),
        "confused_pairs": pairs,
        "noisy_labels": schemas.NOISY_LABELS.select(doubtful),
        "nearest": schemas.NEAREST.select(nearest),
    }


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path, spreadsheet_safe: bool) -> list[Path]:
    paths = [folder / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        write_csv(path, protect(table, spreadsheet_safe))
    return paths


def most_frequent_confusion(pairs: pd.DataFrame, path: Path) -> list[str]:
    """A sentence on the first row of `count_confusions`; none without errors."""
    if pairs.empty:
        return []
    worst: pd.Series[Any] = pairs.iloc[0]
    often = f"{worst['count']} times ({100 * worst['share']:.1f} % of"
    if "predicted" in worst:
        return [f"most frequent error: {worst['label']} mistaken for {worst['predicted']}, {often} its images): {path}"]
    images = "the images with it" if worst["error"] == "missed" else "the images without it"
    return [f"most frequent error: {worst['label']} {worst['error']}, {often} {images}): {path}"]


def labels_to_review(doubtful: pd.DataFrame, multi_label: bool, path: Path, page: Path) -> list[str]:
    suspected = int(doubtful["suspected"].sum())
    what = f"{len(doubtful)} labels to review, {suspected} of them probably wrong"
    if multi_label:
        what = f"the labels of {len(doubtful)} images to review, those of {suspected} probably wrong"
    sentences = [f"{what}: {path}"]
    if len(doubtful):
        sentences.append(f"next: open {page} to review them, least credible first")
    return sentences
