"""One inference pass over validation and test data; every metric and plot comes from the predictions it writes."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dataset
from spectacles import bundle, cli, evaluation_plots, metrics, predictions, runtime
from spectacles.config import EvaluateConfig
from spectacles.errors import UserError
from spectacles.inference import Predictor
from spectacles.records import DatasetReport, EvaluateReport
from spectacles.run_dir import RunDir, write_csv, write_json

log = logging.getLogger("spectacles")

FEW = 100


def run(config: EvaluateConfig, run_dir: RunDir) -> EvaluateReport:
    """Writes predictions.csv, metrics.json and the plots. The test split is scored where it has labels."""
    device = runtime.prepare(runtime.resolve_device(config.device))
    data = run_dir.load_result("dataset", DatasetReport)
    if bundle.read_info(run_dir.bundle)[0].data_fingerprint != data.fingerprint:
        raise UserError(
            f"the bundle in {run_dir.bundle} was trained on other data or another split than {run_dir.splits} "
            "holds now, so test images may have been trained on: run train.py again."
        )
    rows = dataset.load_split(run_dir, "val", "test")
    rows = rows[rows["label"] != ""]
    predictor = Predictor(run_dir.bundle, device, config.batch_size, config.engine, images=len(rows))
    classes = list(predictor.info.classes)
    table = predictions.predict_rows(predictor, rows, config.num_workers)
    write_csv(run_dir.predictions, table)
    scored = {split: _score(table, split, classes, config) for split in ("val", "test")}
    scored = {split: values for split, values in scored.items() if values}
    if not scored:
        raise UserError(f"{run_dir.splits} has no readable labelled validation or test image: nothing can be scored.")
    write_json(run_dir.folder("evaluate") / "metrics.json", scored)
    headline = "test" if "test" in scored else "val"
    plots = _draw(_readable(table, headline), classes, run_dir.folder("evaluate"))
    return _report(table, scored, headline, classes, plots, predictor.model_id, run_dir)


def _readable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    return table[(table["split"] == split) & (table["status"] == "predicted")]


def _arrays(part: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels (N,), probabilities (N, K), predicted (N,)) as class indices."""
    labels = np.array(dataset.class_indices(part["label"], classes), dtype=np.int64)
    predicted = np.array(dataset.class_indices(part["predicted"], classes), dtype=np.int64)
    return labels, predictions.probabilities(part, classes), predicted


def _score(table: pd.DataFrame, split: str, classes: list[str], config: EvaluateConfig) -> dict[str, Any]:
    """All metrics of one split; empty where it has no labelled, readable image."""
    part = _readable(table, split)
    if part.empty:
        return {}
    labels, probabilities, predicted = _arrays(part, classes)
    # Near duplicates and groups are not independent evidence: whole clusters are resampled.
    clusters = pd.factorize(part["cluster"])[0]
    interval = metrics.bootstrap_interval(
        labels == predicted, config.seed, resamples=config.bootstrap_resamples, groups=clusters
    )
    return {
        "images": len(part),
        "refused": int(((table["split"] == split) & (table["status"] != "predicted")).sum()),
        **metrics.classification_metrics(labels, probabilities, predicted, len(classes)),
        "accuracy_interval": list(interval),
        "per_class": dict(zip(classes, metrics.per_class_metrics(labels, predicted, len(classes)), strict=True)),
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, len(classes)).tolist(),
    }


def _draw(part: pd.DataFrame, classes: list[str], folder: Path) -> list[Path]:
    labels, probabilities, predicted = _arrays(part, classes)
    matrix = metrics.confusion_matrix(labels, predicted, len(classes))
    scores = metrics.per_class_metrics(labels, predicted, len(classes))
    confidence = part["confidence"].to_numpy(dtype=np.float64)
    return [
        evaluation_plots.confusion_matrix(matrix, classes, folder / "confusion_matrix.png"),
        evaluation_plots.roc_curves(labels, probabilities, classes, folder / "roc.png"),
        evaluation_plots.precision_recall_curves(labels, probabilities, classes, folder / "precision_recall.png"),
        evaluation_plots.reliability(labels, probabilities, folder / "reliability.png"),
        evaluation_plots.confidence_histograms(confidence, labels == predicted, folder / "confidence.png"),
        evaluation_plots.per_class_accuracy(
            classes, [s["recall"] for s in scores], [int(s["support"] or 0) for s in scores], folder / "per_class.png"
        ),
    ]


def _report(
    table: pd.DataFrame,
    scored: dict[str, dict[str, Any]],
    headline: str,
    classes: list[str],
    plots: list[Path],
    model_id: str,
    run_dir: RunDir,
) -> EvaluateReport:
    values = scored[headline]
    low, high = values["accuracy_interval"]
    summary = [
        f"{headline}: accuracy {values['accuracy']:.4f} ({low:.4f}-{high:.4f}, 95 %), {values['images']} images",
        f"{headline}: balanced accuracy {values['balanced_accuracy']:.4f}, macro F1 {values['macro_f1']:.4f}, "
        f"log loss {values['log_loss']:.4f}, ECE {values['ece']:.4f}",
    ]
    if len(classes) == 2 and values["hter"] is not None:
        summary.append(f"{headline}: HTER {values['hter']:.4f}, ROC-AUC {values['roc_auc'] or 0:.4f}")
    if headline == "val":
        summary.append(
            "validation data chose the best epoch: this is optimistic. Give labelled test data or --test_fraction"
        )
    if values["images"] < FEW:
        summary.append(f"{values['images']} images are few: mind the interval")
    refused = int((table["status"] != "predicted").sum())
    if refused:
        summary.append(f"{refused} files have become unreadable since they were indexed: see {run_dir.predictions}")
    folder = run_dir.folder("evaluate")
    scalar = {
        f"{split}_{name}": value
        for split, each in scored.items()
        for name, value in each.items()
        if value is None or isinstance(value, int | float)
    }
    metrics_by_name = {name: None if value is None else float(value) for name, value in scalar.items()}
    return EvaluateReport(
        summary=summary,
        metrics=metrics_by_name | {f"{headline}_accuracy_low": low, f"{headline}_accuracy_high": high},
        artifacts=run_dir.relative(folder / "metrics.json", run_dir.predictions, *plots),
        scored_on=headline,
        model_id=model_id,
        accuracy_interval=(low, high),
    )


if __name__ == "__main__":
    cli.main("evaluate", run, EvaluateConfig, "Score the run's bundle on validation and test data.")
