"""Show what the model gets wrong, which labels look wrong, and where in a photo the model looks."""

from spectacles import cli
from spectacles.core.config import ErrorAnalysisConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("error_analysis", ErrorAnalysisConfig, __doc__)

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import dataset
from spectacles.core.device import prepare_device, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_csv
from spectacles.core.results import ErrorReport, EvaluateReport
from spectacles.core.run_dir import RunDir
from spectacles.data import label_corrections, label_sets, similarity
from spectacles.data.similarity import centred
from spectacles.evaluation import cross_training, label_quality
from spectacles.evaluation.error_explanations import explain_decisions
from spectacles.metrics import prediction_table
from spectacles.models import feature_cache
from spectacles.models.bundle import BundleInfo
from spectacles.models.classifier import Classifier, load_classifier
from spectacles.report import error_galleries, review_page

log = logging.getLogger("spectacles")


def run(config: ErrorAnalysisConfig, run_dir: RunDir) -> ErrorReport:
    """Writes misclassified.csv, nearest.csv, confused_pairs.csv, noisy_labels.csv and review.html, with galleries and
    checked explanations."""
    if config.fine_tuned_folds == 1:
        raise UserError("--fine_tuned_folds 1 leaves nothing to learn from: use 0, or at least 2.")
    scored_on = run_dir.load_result("evaluate", EvaluateReport).scored_on
    predicted = load_predictions(run_dir)
    scored = predicted[predicted["split"] == scored_on]
    classifier, info, _ = load_classifier(run_dir.bundle)
    device = prepare_device(resolve_device(config.device))
    classifier.to(device, memory_format=torch.channels_last)
    folder = run_dir.folder("error_analysis")

    errors, pairs = find_errors(predicted), confusions(scored, info)
    rows, features, notes = labelled_features(config, run_dir, classifier, info, device)
    noisy, unchecked = check_labels(config, run_dir, rows, features, info, device)
    units = centred(features)
    nearest = similarity.nearest_training_images(errors, rows, units)
    write_csv(folder / "misclassified.csv", errors[["file", "split", "label", "predicted", "confidence"]])
    write_csv(folder / "confused_pairs.csv", pairs)
    write_csv(folder / "noisy_labels.csv", noisy.drop(columns=["path", "row"]))
    write_csv(folder / "nearest.csv", nearest.drop(columns="neighbour_path"))
    review_page.write(
        folder / "review.html", run_dir, noisy, rows, units, info.classes, info.label_column,
        label_corrections.of_run(run_dir), config.galleries, config.num_workers, info.multi_label,
    )  # fmt: skip

    shown = errors[errors["split"] == scored_on].head(config.gallery_size)
    galleries = []
    if config.galleries:
        doubtful = noisy.head(config.gallery_size)
        galleries = error_galleries.draw(shown, nearest, doubtful, folder, scored_on, config.num_workers)
    files, sentences, measured = explain_decisions(scored, shown, classifier, info, config, folder, scored_on)
    galleries, notes = [*galleries, *files], [*sentences, *unchecked, *notes]
    return _report(predicted, scored_on, errors, pairs, noisy, notes, galleries, measured, info, run_dir)


def load_predictions(run_dir: RunDir) -> pd.DataFrame:
    """Evaluate's table without the files that it could not read."""
    if not run_dir.predictions.is_file():
        raise UserError(f"{run_dir.predictions} is missing: run `python evaluate.py --run_name {run_dir.name}` first.")
    table = prediction_table.load(run_dir.predictions)
    return table[(table["status"] == "predicted") & (table["label"] != "")]


def find_errors(predicted: pd.DataFrame) -> pd.DataFrame:
    """The misclassified rows, the most confident first: those tell most, or have a wrong label."""
    errors = predicted[predicted["label"] != predicted["predicted"]]
    return errors.sort_values("confidence", ascending=False, kind="stable")


def confusions(scored: pd.DataFrame, info: BundleInfo) -> pd.DataFrame:
    """What is confused how often, the most frequent first: `confused_pairs`, or `label_errors`."""
    pairs = label_errors(scored, info.classes) if info.multi_label else confused_pairs(scored)
    return pairs.sort_values(["count", "share"], ascending=False, kind="stable", ignore_index=True)


def confused_pairs(scored: pd.DataFrame) -> pd.DataFrame:
    """label, predicted, count, and share of the label's images."""
    errors = scored[scored["label"] != scored["predicted"]]
    pairs = errors.groupby(["label", "predicted"]).size().reset_index(name="count")
    pairs["share"] = pairs["count"] / scored["label"].value_counts().reindex(pairs["label"]).to_numpy()
    return pairs


def label_errors(scored: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """label, error (missed or added), count, and share of the images that have the label, or do not have it."""
    labels, decided = (label_sets.encode(scored[column], classes, True) for column in ("label", "predicted"))
    wrong = {"missed": labels & ~decided, "added": decided & ~labels}
    could_be = {"missed": labels.sum(axis=0), "added": (1 - labels).sum(axis=0)}
    found = [
        (name, error, count, count / could_be[error][place])
        for error, each in wrong.items()
        for place, (name, count) in enumerate(zip(classes, each.sum(axis=0).tolist(), strict=True))
        if count
    ]
    return pd.DataFrame(found, columns=["label", "error", "count", "share"])


def labelled_features(
    config: ErrorAnalysisConfig, run_dir: RunDir, classifier: Classifier, info: BundleInfo, device: torch.device
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """All labelled rows, their features (N, D), which have seen no label where such can be had, and notes."""
    rows = dataset.load_split(run_dir, *dataset.SPLITS)
    rows = rows[rows["label"] != ""].reset_index(drop=True)
    backbone, notes = frozen_backbone(run_dir, classifier, info)
    log.info("  checking %d labels with features of %s", len(rows), info.backbone)
    features = feature_cache.features(
        rows, backbone, info.backbone, info.preprocessing, run_dir.cache, device, config, config.num_workers
    )
    return rows, features, notes


def check_labels(
    config: ErrorAnalysisConfig,
    run_dir: RunDir,
    rows: pd.DataFrame,
    features: np.ndarray,
    info: BundleInfo,
    device: torch.device,
) -> tuple[pd.DataFrame, list[str]]:
    """Every labelled image whose out-of-fold prediction is another class, the least credible label first; and notes.

    Columns file, label, suggested_label, score, probability_given, probability_suggested, suspected, split, path and
    row, the place in `rows`. Of several labels also doubtful_label, the least credible one, which score and
    probabilities are about. What a person decided on in the fixes that the run was made with is not listed again.
    """
    labels = label_sets.encode(rows["label"], info.classes, info.multi_label)
    groups = rows["cluster"].to_numpy(dtype=np.int64)
    probabilities = label_quality.out_of_fold_probabilities(features, labels, config.folds, config.seed, groups)
    if config.fine_tuned_folds:
        folds = config.fine_tuned_folds
        tuned = cross_training.out_of_fold_probabilities(rows, labels, run_dir, folds, config.seed, device)
        probabilities = label_quality.average(probabilities, tuned)
    notes = []
    unknown = np.isnan(probabilities)
    unjudged = int((unknown if info.multi_label else unknown.any(axis=1)).sum())
    if unjudged:
        notes.append(f"{unjudged} labels could not be checked: too few independent images of their class")
    listed = _label_table(rows, label_quality.rank_label_issues(labels, probabilities), info.classes)
    decided = listed["file"].isin(label_corrections.of_run(run_dir)["file"])
    if decided.any():
        notes.append(f"{decided.sum()} labels that a person has decided on before are not listed again")
    return listed[~decided].reset_index(drop=True), notes


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


def frozen_backbone(run_dir: RunDir, classifier: Classifier, info: BundleInfo) -> tuple[torch.nn.Module, list[str]]:
    """The backbone as it was before training: it has seen no label, so it cannot have learnt the wrong ones by heart.

    Where there is none (random weights tell nothing), the trained one, and a note that says so.
    """
    reason = "it was trained from random weights"
    try:
        backbone = feature_cache.of_run(run_dir, info)
        if backbone is not None:
            return backbone, []
    except UserError as error:
        reason = str(error)
    note = "labels were checked with the trained network's features, which have seen them: expect fewer finds"
    return classifier.backbone, [f"{note} ({reason})"]


def _report(
    predicted: pd.DataFrame,
    scored_on: str,
    errors: pd.DataFrame,
    pairs: pd.DataFrame,
    noisy: pd.DataFrame,
    notes: Sequence[str],
    galleries: Sequence[Path],
    measured: dict[str, float | None],
    info: BundleInfo,
    run_dir: RunDir,
) -> ErrorReport:
    folder = run_dir.folder("error_analysis")
    images, wrong = predicted["split"].value_counts(), errors["split"].value_counts()
    count, suspected = int(wrong.get(scored_on, 0)), int(noisy["suspected"].sum())
    summary = [
        f"{scored_on}: {count} of {int(images.get(scored_on, 0))} images misclassified: {folder / 'misclassified.csv'}"
    ]
    if len(pairs):
        summary.append(f"{_most_confused(pairs.iloc[0])}: {folder / 'confused_pairs.csv'}")
    doubts = f"{len(noisy)} labels are worth a look, {suspected} of them probably wrong"
    if info.multi_label:
        doubts = f"the labels of {len(noisy)} images are worth a look, those of {suspected} are probably wrong"
    summary.append(f"{doubts}: {folder / 'noisy_labels.csv'}")
    if len(noisy):
        summary.append(f"next: open {folder / 'review.html'} and decide on them, the least credible first")
    metrics: dict[str, float | None] = {f"{split}_errors": float(wrong.get(split, 0)) for split in images.index}
    metrics |= {"suspected_labels": float(suspected), "labels_to_check": float(len(noisy))}
    metrics |= measured
    tables = [folder / f"{name}.csv" for name in ("misclassified", "confused_pairs", "noisy_labels", "nearest")]
    return ErrorReport(
        summary=[*summary, *notes],
        metrics=metrics,
        artifacts=run_dir.relative(*galleries, folder / "review.html", *tables),
        errors=count,
        suspected_labels=suspected,
    )


def _most_confused(worst: "pd.Series[Any]") -> str:
    """A row of `confusions` in words."""
    often = f"{worst['count']} times ({100 * worst['share']:.1f} % of"
    if "predicted" in worst:
        return f"most confused: {worst['label']} taken for {worst['predicted']}, {often} its images)"
    whose = "the images that have it" if worst["error"] == "missed" else "the images without it"
    return f"most frequent error: {worst['label']} {worst['error']}, {often} {whose})"
