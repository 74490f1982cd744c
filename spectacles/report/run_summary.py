"""The results of a run's stages, read for the report and the model card. Any part may be missing."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from spectacles.core.run_dir import STAGES, RunDir
from spectacles.core.value_ranges import ValueRanges
from spectacles.data import schemas

Json = dict[str, Any]

METRIC_NAMES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "label_accuracy": "accuracy of each label",
    "balanced_accuracy": "balanced accuracy",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "hter": "HTER",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "mean_average_precision": "mAP",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
    "classwise_ece": "class-wise ECE",
    "top_3_accuracy": "top-3 accuracy",
    "top_5_accuracy": "top-5 accuracy",
}
"""Key of metrics.json -> display name, in the order of the tables."""


@dataclass(frozen=True)
class RunSummary:
    """Empty dicts, lists and tables stand for stages that have not been run."""

    results: dict[str, Json]
    """Finished stage -> its result.json, paths in its summary relative to the run folder."""
    config: Json
    environment: Json
    bundle: Json
    """bundle.json of the trained model."""
    seconds: dict[str, float]
    """Finished stage -> wall time of its last run."""
    scores: dict[str, Json]
    """Split -> metrics.json, the headline split first."""
    slices: list[Json]
    """Worst first, slices with too few images last."""
    worst_gap: Json
    comparison: Json
    corruptions: Json
    baseline: Json
    duplicates: pd.DataFrame
    outliers: pd.DataFrame
    noisy_labels: pd.DataFrame
    label_fixes: dict[str, int]
    """Decision -> labels, of the review that the run was made with."""
    faithfulness: Json
    """Attribution method -> how far its maps show what matters to the model."""

    @property
    def split(self) -> str:
        """The split of the headline: test, or val without labelled test images; '' before evaluation."""
        return str(self.results["evaluate"]["scored_on"]) if "evaluate" in self.results else ""

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels: then it counts as correct only if all of them are."""
        return bool((self.bundle or self.results.get("dataset", {})).get("multi_label"))

    @property
    def images(self) -> dict[str, int]:
        """Split -> labelled images."""
        return dict(self.results["dataset"]["images"])

    @property
    def value_ranges(self) -> ValueRanges:
        ranges = self.results.get("dataset", {}).get("value_ranges", {})
        return ValueRanges(**{kind: pair and tuple(pair) for kind, pair in ranges.items()})

    @property
    def scored(self) -> Json:
        return self.scores.get(self.split, {})


def read(run_dir: RunDir) -> RunSummary:
    results = {stage: _result(run_dir, stage) for stage in (*STAGES, "export") if run_dir.done(stage)}

    def json_of(stage: str, name: str) -> Json:
        return read_json(run_dir.path / stage / name) if stage in results else {}

    def table_of(schema: schemas.Schema, stage: str, name: str) -> pd.DataFrame:
        return schema.read_text(run_dir.path / stage / name) if stage in results else schema.empty()

    config = run_dir.trained_config()
    groups = json_of("evaluate", "slices.json")
    return RunSummary(
        results=results,
        config=config,
        environment=read_json(run_dir.environment),
        bundle=json_of("train", "bundle/bundle.json"),
        seconds={stage: result["seconds"] for stage, result in results.items() if "seconds" in result},
        scores=_headline_first(json_of("evaluate", "metrics.json"), results),
        slices=sorted(groups.get("slices", []), key=_slice_order),
        worst_gap=groups.get("worst_gap") or {},
        comparison=json_of("evaluate", "comparison.json"),
        corruptions=json_of("evaluate", "corruptions.json"),
        baseline=json_of("explore", "baseline.json"),
        duplicates=table_of(schemas.DUPLICATE_PAIRS, "dataset", "duplicates.csv"),
        outliers=table_of(schemas.OUTLIERS, "explore", "outliers.csv"),
        noisy_labels=table_of(schemas.NOISY_LABELS, "error_analysis", "noisy_labels.csv"),
        label_fixes=_decisions(config.get("label_fixes")),
        faithfulness=json_of("error_analysis", "faithfulness.json").get("methods", {}),
    )


def read_json(path: Path) -> Json:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read_csv(path: Path, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
    """All cells as text, of those `columns` that the file has; empty if there is no such file."""
    if not path.is_file():
        return pd.DataFrame()
    wanted = None if columns is None else lambda name: name in columns
    return pd.read_csv(path, dtype=str, keep_default_na=False, usecols=wanted)


def shows_photos(run_dir: RunDir, stage: str) -> bool:
    """Whether a stage's pictures may contain photos: not if it ran with --no_galleries."""
    path = run_dir.path / stage / "config.yaml"
    saved = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    return bool(saved.get("galleries", True))


def interval_of(scores: Json, metric: str) -> list[float] | None:
    """The 95 % interval of one split's metric; None where it was not measured."""
    interval: list[float] | None = scores["intervals"].get(metric)
    return interval


def metric_names(run: RunSummary) -> dict[str, str]:
    """Key of metrics.json -> display name."""
    names = {"accuracy": "all labels correct"} if run.multi_label else {}
    if (positive := run.scored.get("positive_class")) is not None:
        names |= {name: f"{name} of {positive}" for name in ("precision", "recall")}
    return METRIC_NAMES | names


def weakest_first(scored: Json) -> list[tuple[str, Json]]:
    """(class, scores), the lowest F1 first."""
    rows = scored.get("per_class", {}).items()
    return sorted(rows, key=lambda row: (row[1]["f1"] is None, row[1]["f1"] or 0.0))


def per_class_columns(multi_label: bool) -> dict[str, str]:
    """Key of `per_class` in metrics.json -> display name."""
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    return columns | ({"average_precision": "AP"} if multi_label else {})


def _result(run_dir: RunDir, stage: str) -> Json:
    """Summary lines name files by their full path, for the terminal; in the report the relative path is enough."""
    result = read_json(run_dir.result(stage))
    inside = f"{run_dir.path}{os.sep}"
    return result | {"summary": [line.replace(inside, "") for line in result["summary"]]}


def _decisions(path: str | None) -> dict[str, int]:
    fixes = schemas.LABEL_FIXES.read_text(Path(path)) if path else schemas.LABEL_FIXES.empty()
    return {str(name): int(count) for name, count in fixes["decision"].value_counts().items()}


def _headline_first(scores: dict[str, Json], results: dict[str, Json]) -> dict[str, Json]:
    return dict(sorted(scores.items(), key=lambda item: item[0] != results["evaluate"]["scored_on"]))


def _slice_order(entry: Json) -> tuple[bool, float, int]:
    accuracy = entry["accuracy"]
    return not entry["sufficient"], 2.0 if accuracy is None else float(accuracy), -int(entry["images"])
