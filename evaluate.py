"""Score the run's bundle on validation and test data: metrics with intervals, slices, corruptions and plots."""

from spectacles import cli
from spectacles.core.config import EvaluateCommand, EvaluateConfig

if __name__ == "__main__":  # flags are read before the imports below, which take seconds
    cli.main("evaluate", EvaluateCommand, __doc__)

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectacles.core.csv_cells import protect, write_csv
from spectacles.core.device import resolve_device
from spectacles.core.errors import UserError
from spectacles.core.fileio import write_json
from spectacles.core.results import DatasetReport, EvaluateReport
from spectacles.core.run_dir import RunDir
from spectacles.core.wording import count_of
from spectacles.data import file_index, schemas
from spectacles.evaluation import (
    corruptions,
    evaluation_summary,
    precision_check,
    run_comparison,
    slices,
    split_scores,
)
from spectacles.evaluation.evaluation_summary import Evaluation
from spectacles.evaluation.split_scores import ScoredSplit
from spectacles.inference import prediction_rows
from spectacles.inference.exported_file import is_exported, open_file
from spectacles.inference.predictor import Predictor
from spectacles.inference.registered_bundle import folder_of
from spectacles.models import pretrained
from spectacles.models.bundle import BundleInfo, read_bundle_info
from spectacles.models.feature_blocks import LAST
from spectacles.models.feature_cache import FeatureExtractor
from spectacles.report import reliability_plots

log = logging.getLogger("spectacles")

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


def run(config: EvaluateConfig, run_dir: RunDir) -> EvaluateReport:
    """Writes predictions.csv, metrics.json, slices.json, corruptions.json, with --compare comparison.json, and plots.

    The test split is opened here, and scored where it has labels.
    """
    data = run_dir.load_result("dataset", DatasetReport)
    bundle = _bundle_of(config, run_dir)
    _check_data(bundle, run_dir, data)
    other = run_comparison.load(config.compare, run_dir, data.classes) if config.compare else None
    folder = run_dir.folder("evaluate")
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    rows = schemas.load_split(run_dir, "val", "test")
    rows = rows[rows["label"] != ""].reset_index(drop=True)
    _check_size(len(rows), len(data.classes))
    corrupted = corruptions.passes(min(len(rows), config.corruption_images))
    predictor = Predictor(
        bundle, resolve_device(config.device), config.batch_size, config.engine, images=len(rows) + corrupted,
        precision=config.precision if is_exported(bundle) else "fp32",
    )  # fmt: skip
    predictor, about_precision = _at_precision(predictor, run_dir, config)
    table = prediction_rows.predict_rows(predictor, rows, config.num_workers)
    schemas.PREDICTIONS.write(run_dir.predictions, table, config.spreadsheet_safe)

    splits = [ScoredSplit.of(table, name, predictor.info) for name in ("val", "test")]
    splits = [split for split in splits if len(split.rows)]
    if not splits:
        raise UserError(f"{run_dir.splits} has no readable labelled validation or test image: nothing can be scored.")
    headline = splits[-1]
    scores = _score(splits, config)
    write_json(folder / "metrics.json", scores)

    scored_rows = rows.loc[headline.rows.index]
    analyses = {}
    if other is not None:
        analyses["comparison"] = run_comparison.compare(
            headline.scored, scored_rows["sha256"], other, headline.name, config
        )
    analyses |= _analyses(headline, scored_rows, predictor, run_dir, config)
    for name, values in analyses.items():
        write_json(folder / f"{name}.json", values)
    write_csv(folder / "slices.csv", protect(slices.to_table(analyses["slices"]), config.spreadsheet_safe))
    evaluation = Evaluation(scores, headline.name, analyses)
    plots = split_scores.draw(headline, evaluation.headline, folder) + _draw_analyses(evaluation, folder)
    files = [folder / "metrics.json", run_dir.predictions, *plots]
    files += [folder / "comparison.json"] if "comparison" in analyses else []
    low, high = evaluation.headline["accuracy_interval"]
    return EvaluateReport(
        summary=evaluation_summary.sentences(evaluation) + about_precision + _warn_of_files(table, rows, run_dir),
        metrics=evaluation_summary.numbers(evaluation),
        artifacts=run_dir.relative(*files),
        scored_on=headline.name,
        model_id=predictor.model_id,
        accuracy_interval=(low, high),
    )


def _at_precision(predictor: Predictor, run_dir: RunDir, config: EvaluateConfig) -> tuple[Predictor, list[str]]:
    """What scores, at --precision, and a sentence about what was checked; with auto float32 scores, and bf16 is checked
    for the commands after this one."""
    if is_exported(predictor.path):
        return predictor, [f"scored {predictor.path}, which {predictor.engine} computed in {predictor.precision}"]
    if config.precision == "fp32":
        return predictor, []
    if config.precision == "auto":
        checked = precision_check.bfloat16_if_possible(predictor, run_dir, config)
        return predictor, [checked.sentence()] if checked else []
    checked = precision_check.check(config.precision, predictor, run_dir, config)
    at_precision = Predictor(
        predictor.path, predictor.device, config.batch_size, config.engine, precision=config.precision
    )
    return at_precision, [f"scored in {config.precision}", checked.sentence()]


def _score(splits: list[ScoredSplit], config: EvaluateConfig) -> dict[str, Any]:
    """What metrics.json holds by split; the last one, which is the headline, with what other thresholds would give."""
    scores = {split.name: split_scores.score(split, config) for split in splits}
    val = next((split for split in splits if split.name == "val"), None)
    if points := split_scores.other_thresholds(splits[-1], val, config):
        scores[splits[-1].name]["operating_points"] = points
    return scores


def _bundle_of(config: EvaluateConfig, run_dir: RunDir) -> Path:
    """The run's, or what evaluate.py is given in its place. Raises UserError."""
    if not isinstance(config, EvaluateCommand) or config.bundle is None:
        return run_dir.bundle
    if config.attacks and is_exported(config.bundle):
        raise UserError(f"--attacks needs gradients, which {config.bundle} does not give: leave out one of them.")
    return folder_of(config.bundle, config.output_dir)


def _check_data(bundle: Path, run_dir: RunDir, data: DatasetReport) -> None:
    info = open_file(bundle).described.info if is_exported(bundle) else read_bundle_info(bundle)[0]
    if info.data_fingerprint != data.fingerprint:
        raise UserError(
            f"the model in {bundle} was trained on other data or another split than {run_dir.splits} "
            "holds now, so test images may have been trained on: run train.py again."
        )


def _check_size(images: int, classes: int) -> None:
    if images * classes > MOST_PROBABILITIES:
        raise UserError(
            f"{images:,} validation and test images of {classes:,} classes are {images * classes:,} probabilities to "
            f"write down, and {MOST_PROBABILITIES:,} is the most: make splits with a smaller --val_fraction and "
            "--test_fraction, or merge rare classes."
        )


def _analyses(
    split: ScoredSplit, rows: pd.DataFrame, predictor: Predictor, run_dir: RunDir, config: EvaluateConfig
) -> dict[str, Any]:
    """`slices`, and if asked for `corruptions`; `rows` are those of the split in splits.csv."""
    features = _frozen_features(rows, run_dir, predictor.info, torch.device(predictor.device), config)
    found = slices.find(rows, features, config.seed)
    analyses = {"slices": slices.score(found, split.scored, config.seed, config.bootstrap_resamples)}
    if config.corruption_images:
        places = corruptions.sample(rows, config.corruption_images, config.seed)
        labels = split.scored.labels[places]
        analyses["corruptions"] = corruptions.measure(predictor, rows.iloc[places], labels, config)
    return analyses


def _frozen_features(
    rows: pd.DataFrame, run_dir: RunDir, info: BundleInfo, device: torch.device, config: EvaluateConfig
) -> np.ndarray | None:
    """(N, D) of the backbone before training, as a rule from the cache; None where it has no pretrained weights."""
    try:
        backbone = pretrained.frozen_backbone_of_run(run_dir, info)
        if backbone is None:
            return None
        extractor = FeatureExtractor(backbone, info.backbone, info.preprocessing, run_dir.cache, device, config)
        return extractor.embed_rows(rows, config.num_workers, (LAST,)).last
    except UserError as error:
        log.info("  images are not grouped by similarity: %s", error)
        return None


def _draw_analyses(evaluation: Evaluation, folder: Path) -> list[Path]:
    plots = []
    if entries := evaluation.analyses["slices"]["slices"]:
        plots.append(reliability_plots.slices(entries, evaluation.headline["accuracy"], folder / "slices.png"))
    corrupted = evaluation.analyses.get("corruptions", {})
    if corrupted.get("accuracies"):
        plots.append(reliability_plots.corruptions(corrupted, folder / "corruptions.png"))
    return plots


def _warn_of_files(table: pd.DataFrame, rows: pd.DataFrame, run_dir: RunDir) -> list[str]:
    """About files that became unreadable or changed after they were indexed."""
    warnings = []
    rejected = int((table["status"] != "predicted").sum())
    if rejected:
        warnings.append(f"{count_of(rejected, 'file')} became unreadable after indexing: see {run_dir.predictions}")
    changed = [path for path, what in file_index.changed_files(rows).items() if what == file_index.CHANGED]
    if changed:
        warnings.append(
            f"{count_of(len(changed), 'file')} changed after indexing, {changed[0]} among them: scores compare the new "
            "contents with the old labels; restore them, or run the dataset stage again"
        )
    return warnings
