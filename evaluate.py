"""Score the run's bundle on validation and test data: metrics with intervals, slices, corruptions and plots."""

from spectacles import cli
from spectacles.core.config import EvaluateConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("evaluate", EvaluateConfig, __doc__)

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectacles.core.device import prepare_device, resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_csv, write_json
from spectacles.core.results import DatasetReport, EvaluateReport
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import count_of
from spectacles.data import file_index, label_sets, schemas
from spectacles.evaluation import corruptions, run_comparison, slices
from spectacles.inference import prediction_rows
from spectacles.inference.predictor import Predictor
from spectacles.metrics import classification, multilabel, scoring, selective, thresholds
from spectacles.metrics.calibration import Calibration
from spectacles.metrics.decisions import Scored
from spectacles.models import pretrained
from spectacles.models.bundle import BundleInfo, read_bundle_info
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.report import evaluation_plots, reliability_plots

log = logging.getLogger("spectacles")

FEW = 100
MATRIX_CLASSES = 1000
"""Classes up to which there is a confusion matrix: of 10,000 it would be a file of a gigabyte that nobody reads."""
MOST_PROBABILITIES = 100_000_000
"""Images times classes: a table of 4 GB, and some 10 GB of memory on the way to it."""
OPTIONAL = (
    "confusion_matrix.png",
    "comparison.json",
    "corruptions.json",
    "corruptions.png",
    "slices.json",
    "slices.csv",
    "slices.png",
)
"""Files that an earlier evaluation may have left and this one may not write."""
TOLD = {"label_accuracy": "accuracy of each label", "balanced_accuracy": "balanced accuracy", "micro_f1": "micro F1",
        "macro_f1": "macro F1", "mean_average_precision": "mAP", "hter": "HTER", "roc_auc": "ROC-AUC",
        "log_loss": "log loss", "brier": "Brier score", "ece": "ECE"}  # fmt: skip


def run(config: EvaluateConfig, run_dir: RunDir) -> EvaluateReport:
    """Writes predictions.csv, metrics.json, slices.json, corruptions.json, with --compare comparison.json, and plots.

    The test split is opened here, and scored where it has labels.
    """
    device = prepare_device(resolve_device(config.device))
    data = run_dir.load_result("dataset", DatasetReport)
    if read_bundle_info(run_dir.bundle)[0].data_fingerprint != data.fingerprint:
        raise UserError(
            f"the bundle in {run_dir.bundle} was trained on other data or another split than {run_dir.splits} "
            "holds now, so test images may have been trained on: run train.py again."
        )
    other = run_comparison.load(config.compare, run_dir, data.classes) if config.compare else None
    folder = run_dir.folder("evaluate")
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    rows = schemas.load_split(run_dir, "val", "test")
    rows = rows[rows["label"] != ""].reset_index(drop=True)
    _check_size(len(rows), len(data.classes))
    changed = corruptions.passes(min(len(rows), config.corruption_images))
    predictor = Predictor(run_dir.bundle, device, config.batch_size, config.engine, images=len(rows) + changed)
    info = predictor.info
    table = prediction_rows.predict_rows(predictor, rows, config.num_workers)
    schemas.PREDICTIONS.write(run_dir.predictions, table)
    scores = {split: _score(table, split, info, config) for split in ("val", "test")}
    scores = {split: values for split, values in scores.items() if values}
    if not scores:
        raise UserError(f"{run_dir.splits} has no readable labelled validation or test image: nothing can be scored.")
    write_json(folder / "metrics.json", scores)

    headline = "test" if "test" in scores else "val"
    part = _readable(table, headline)
    own, scored = rows.loc[part.index], _scored(part, info)
    found: dict[str, Any] = {}
    if other is not None:
        found["comparison"] = run_comparison.compare(
            scored, own["sha256"], other, run_dir, list(info.classes), config.seed, config.bootstrap_resamples, headline
        )
    features = frozen_features(own, run_dir, info, device, config)
    found["slices"] = slices.score(
        slices.find(own, features, config.seed), scored, config.seed, config.bootstrap_resamples
    )
    if config.corruption_images:
        places = corruptions.sample(own, config.corruption_images, config.seed)
        found["corruptions"] = corruptions.measure(predictor, own.iloc[places], scored.labels[places], config)
    for name, values in found.items():
        write_json(folder / f"{name}.json", values)
    write_csv(folder / "slices.csv", slices.to_table(found["slices"]))
    plots = [*_draw(part, scored, scores[headline], info, folder), *_draw_found(found, scores[headline], folder)]
    report = _report(table, scores, headline, found, plots, predictor.model_id, run_dir)
    altered = [path for path, what in file_index.changed_files(rows).items() if what == file_index.CHANGED]
    if altered:
        report.summary.append(
            f"{count_of(len(altered), 'file')} no longer what was indexed, {altered[0]} among them: scores are of what "
            "they hold now, under the labels of before; restore them, or run the dataset stage again"
        )
    return report


def _check_size(images: int, classes: int) -> None:
    if images * classes > MOST_PROBABILITIES:
        raise UserError(
            f"{images:,} validation and test images of {classes:,} classes are {images * classes:,} probabilities to "
            f"write down, and {MOST_PROBABILITIES:,} is the most: make splits with a smaller --val_fraction and "
            "--test_fraction, or merge rare classes."
        )


def _readable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[(table["split"] == split) & (table["status"] == "predicted")]


def _scored(part: pd.DataFrame, info: BundleInfo) -> Scored:
    classes = list(info.classes)
    return Scored(
        labels=label_sets.encode(part["label"], classes, info.multi_label),
        probabilities=schemas.probabilities(part, classes),
        predicted=label_sets.encode(part["predicted"], classes, info.multi_label),
        clusters=pd.factorize(part["cluster"])[0],
    )


def _raw_probabilities(part: pd.DataFrame, info: BundleInfo) -> np.ndarray | None:
    """(N, K) of the raw logits: what calibration started from."""
    columns = [schemas.LOGIT_PREFIX + name for name in info.classes]
    raw = Calibration(multi_label=info.multi_label)
    return raw.probabilities(part[columns].to_numpy(dtype=np.float64)) if set(columns) <= set(part.columns) else None


def _score(table: pd.DataFrame, split: str, info: BundleInfo, config: EvaluateConfig) -> dict[str, Any]:
    """All numbers of one split; empty where it has no labelled, readable image."""
    part, classes = _readable(table, split), list(info.classes)
    if part.empty:
        return {}
    scored = _scored(part, info)
    right = scored.correct
    # Near duplicates and groups are not independent evidence: whole clusters are resampled.
    known = scoring.intervals_of(scored, config.seed, config.bootstrap_resamples)
    values = {
        "images": len(part),
        "rejected": int(((table["split"] == split) & (table["status"] != "predicted")).sum()),
        **scoring.metrics_of(scored),
        "accuracy_interval": known["accuracy"],
        "intervals": known,
        "per_class": dict(zip(classes, scoring.per_class(scored), strict=True)),
        "selective": selective.selective(right, thresholds.certainty(scored.probabilities, scored.predicted)),
    }
    if not info.multi_label and len(classes) <= MATRIX_CLASSES:
        matrix = classification.confusion_matrix(scored.labels, scored.predicted, len(classes))
        values["confusion_matrix"] = matrix.tolist()
    raw = _raw_probabilities(part, info)
    if raw is not None:
        values["calibration"] = {
            "before": scoring.calibration(scored, raw),
            "after": scoring.calibration(scored, scored.probabilities),
        }
    if "abstain_reason" in part:
        reasons = part["abstain_reason"].to_numpy(dtype=str)
        values |= selective.by_abstention(right, reasons, scored.clusters, config.seed, config.bootstrap_resamples)
    return values


def frozen_features(
    rows: pd.DataFrame, run_dir: RunDir, info: BundleInfo, device: torch.device, config: EvaluateConfig
) -> np.ndarray | None:
    """(N, D) of the backbone before training, as a rule from the cache; None where it has no pretrained weights."""
    try:
        backbone = pretrained.frozen_backbone_of_run(run_dir, info)
        if backbone is None:
            return None
        extractor = FeatureExtractor(
            backbone, info.backbone, info.preprocessing, run_dir.cache, device, config.batch_size, config.engine
        )
        return extractor.embed_rows(rows, config.num_workers)
    except UserError as error:
        log.info("  images are not grouped by their looks: %s", error)
        return None


def _draw(part: pd.DataFrame, scored: Scored, values: dict[str, Any], info: BundleInfo, folder: Path) -> list[Path]:
    labels, probabilities, classes = scored.labels, scored.probabilities, list(info.classes)
    surest, raw = part["confidence"].to_numpy(dtype=np.float64), _raw_probabilities(part, info)
    plots = [
        *_draw_errors(values, info, folder),
        evaluation_plots.roc_curves(labels, probabilities, classes, folder / "roc.png"),
        evaluation_plots.precision_recall_curves(labels, probabilities, classes, folder / "precision_recall.png"),
        _draw_reliability(labels, probabilities, raw, folder / "reliability.png"),
        evaluation_plots.confidence_histograms(surest, scored.correct, folder / "confidence.png"),
        reliability_plots.coverage(
            values["selective"], values.get("answered"), values["images"], folder / "coverage.png"
        ),
    ]
    if info.multi_label:
        return plots
    if len(classes) == 2:
        by_threshold = folder / "threshold.png"
        plots.append(
            reliability_plots.thresholds(labels, probabilities[:, 1], info.threshold, classes[1], by_threshold)
        )
    else:
        recall = [score["recall"] for score in values["per_class"].values()]
        support = [int(score["support"] or 0) for score in values["per_class"].values()]
        plots.append(evaluation_plots.per_class_accuracy(classes, recall, support, folder / "per_class.png"))
    return plots


def _draw_errors(values: dict[str, Any], info: BundleInfo, folder: Path) -> list[Path]:
    """Which classes are confused, or which labels are missed and added."""
    if info.multi_label:
        each = list(values["per_class"].values())
        return [evaluation_plots.label_errors(info.classes, each, values["images"], folder / "label_errors.png")]
    if "confusion_matrix" not in values:
        return []
    matrix = np.array(values["confusion_matrix"])
    return [evaluation_plots.confusion_matrix(matrix, info.classes, folder / "confusion_matrix.png")]


def _draw_reliability(labels: np.ndarray, probabilities: np.ndarray, raw: np.ndarray | None, path: Path) -> Path:
    if labels.ndim == 2:  # each label's answer, yes or no
        raw = None if raw is None else multilabel.as_binary(labels, raw)[1]
        labels, probabilities = multilabel.as_binary(labels, probabilities)
    return evaluation_plots.reliability(labels, probabilities, path, raw)


def _draw_found(found: dict[str, Any], values: dict[str, Any], folder: Path) -> list[Path]:
    plots = []
    if found["slices"]["slices"]:
        plots.append(reliability_plots.slices(found["slices"]["slices"], values["accuracy"], folder / "slices.png"))
    if found.get("corruptions", {}).get("accuracies"):
        plots.append(reliability_plots.corruptions(found["corruptions"], folder / "corruptions.png"))
    return plots


def _report(
    table: pd.DataFrame,
    scores: dict[str, dict[str, Any]],
    headline: str,
    found: dict[str, Any],
    plots: list[Path],
    model_id: str,
    run_dir: RunDir,
) -> EvaluateReport:
    values, folder = scores[headline], run_dir.folder("evaluate")
    summary = [*_told(values, headline), *_told_of(found), *_cautions(values, headline)]
    rejected = int((table["status"] != "predicted").sum())
    if rejected:
        summary.append(f"{rejected} files have become unreadable since they were indexed: see {run_dir.predictions}")
    numbers: dict[str, float | None] = {}
    for split, each in scores.items():
        scalar = {name: value for name, value in each.items() if value is None or isinstance(value, int | float)}
        scalar |= {"aurc": each["selective"]["aurc"]}
        for name, (low, high) in each["intervals"].items():
            scalar |= {f"{name}_low": low, f"{name}_high": high}
        numbers |= {f"{split}_{name}": None if value is None else float(value) for name, value in scalar.items()}
    numbers |= {f"{headline}_{name}": value for name, value in _numbers_of(found).items()}
    tables = [folder / "metrics.json", run_dir.predictions]
    tables += [folder / "comparison.json"] if "comparison" in found else []
    return EvaluateReport(
        summary=summary,
        metrics=numbers,
        artifacts=run_dir.relative(*tables, *plots),
        scored_on=headline,
        model_id=model_id,
        accuracy_interval=(values["accuracy_interval"][0], values["accuracy_interval"][1]),
    )


def _told(values: dict[str, Any], headline: str) -> list[str]:
    def with_interval(name: str) -> str:
        low, high = values["intervals"].get(name, (None, None))
        reach = f" ({low:.4f}-{high:.4f})" if low is not None else ""
        return f"{TOLD[name]} {values[name]:.4f}{reach}"

    low, high = values["accuracy_interval"]
    what = "all labels correct" if "label_accuracy" in values else "accuracy"
    names = [name for name in TOLD if values.get(name) is not None]
    summary = [
        f"{headline}: {what} {values['accuracy']:.4f} ({low:.4f}-{high:.4f}, 95 %), {values['images']} images",
        f"{headline}: {', '.join(map(with_interval, names[: len(names) // 2]))}",
        f"{headline}: {', '.join(map(with_interval, names[len(names) // 2 :]))}",
    ]
    if "calibration" in values:
        before, after = values["calibration"]["before"], values["calibration"]["after"]
        pairs = (f"{label} {before[key]:.4f} -> {after[key]:.4f}" for key, label in
                 (("log_loss", "log loss"), ("ece", "ECE"), ("classwise_ece", "class-wise ECE")))  # fmt: skip
        summary.append(f"{headline}: calibration took {', '.join(pairs)}")
    if "answered" in values and values["answered"]["images"] < values["images"]:
        summary.append(f"{headline}: {selective.sentence(values)}")
    return summary


def _told_of(found: dict[str, Any]) -> list[str]:
    told = [found["comparison"]["sentence"]] if "comparison" in found else []
    told += [sentence] if (sentence := slices.sentence(found["slices"])) else []
    return told + (corruptions.sentences(found["corruptions"]) if "corruptions" in found else [])


def _cautions(values: dict[str, Any], headline: str) -> list[str]:
    told = []
    if headline == "val":
        told.append(
            "validation data chose the best epoch: this is optimistic. Give labelled test data or --test_fraction"
        )
    if values["images"] < FEW:
        told.append(f"{values['images']} images are few: mind the interval")
    if len(values["per_class"]) > MATRIX_CLASSES and "label_accuracy" not in values:
        told.append(
            f"no confusion matrix of more than {MATRIX_CLASSES:,} classes: predictions.csv has every decision, and "
            "error_analysis.py names the classes that are most often confused"
        )
    return told


def _numbers_of(found: dict[str, Any]) -> dict[str, float]:
    """To compare runs by: the gap of the weakest slice, the mean accuracy under each corruption, and under attack."""
    worst = found["slices"]["worst_gap"]
    numbers = {"worst_gap": worst["gap"]} if worst else {}
    changed = found.get("corruptions", {})
    numbers |= {f"accuracy_{name}": float(np.mean(each)) for name, each in changed.get("accuracies", {}).items()}
    for name, each in (changed.get("attacks") or {}).items():
        numbers |= {f"accuracy_{name}_{level.split('/')[0]}": value for level, value in each.items()}
    return numbers
